"""Casts are torch's, bit for bit, for every pair of dtypes; what a cast loses is counted exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from converter.export.cast import Caster, Counts

FLOATS = ("float64", "float32", "bfloat16", "float16")
TARGETS = ("float32", "bfloat16", "float16")
PAIRS = list(itertools.product(FLOATS, TARGETS))
_INTS = {"float64": torch.int64, "float32": torch.int32, "bfloat16": torch.int16, "float16": torch.int16}


def raw(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


def patterns(dtype: str) -> torch.Tensor:
    """All bits of two-byte types; of wider ones random bits, and every exponent with the edges of rounding."""
    torch_dtype = getattr(torch, dtype)
    if dtype in ("bfloat16", "float16"):
        return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch_dtype)
    ints = _INTS[dtype]
    generator = torch.Generator().manual_seed(1)
    info = torch.iinfo(ints)
    mantissa = 23 if dtype == "float32" else 52
    found = [torch.randint(info.min, info.max, (200_000,), dtype=ints, generator=generator)]
    edges = [0, 1, (1 << mantissa) - 1]
    for kept in (7, 10, 23):  # places that bfloat16, float16 and float32 keep
        if kept < mantissa:
            half = 1 << mantissa - kept - 1
            edges += [half, half - 1, half + 1, 2 * half, 3 * half, 3 * half - 1, 3 * half + 1, (1 << mantissa) - half]
    exponents = torch.arange(1 << (8 if dtype == "float32" else 11), dtype=ints) << mantissa
    for edge in edges:
        found += [exponents | edge, exponents | edge | info.min]
    return torch.cat(found).view(torch_dtype)


def cast(tensor: torch.Tensor, source: str, target: str) -> tuple[torch.Tensor, Counts]:
    out, counts = Caster(source, target)(raw(tensor))
    return torch.from_numpy(out.copy()).view(getattr(torch, target)), counts


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_value_is_cast_as_torch_casts_it(source: str, target: str) -> None:
    values = patterns(source)
    values = values[~values.isnan()]
    out, _ = cast(values, source, target)
    expected = values.to(getattr(torch, target))
    wrong = (raw(out).reshape(len(values), -1) != raw(expected).reshape(len(values), -1)).any(1)
    assert not wrong.any(), [(values[i].item(), out[i].item(), expected[i].item()) for i in wrong.nonzero()[0][:5]]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_what_is_lost_is_counted_exactly(source: str, target: str) -> None:
    values = patterns(source)
    values = values[~values.isnan()]
    _, counts = cast(values, source, target)
    finite, expected = values.isfinite(), values.to(getattr(torch, target))
    assert counts.nan == 0
    assert counts.inf == int(values.isinf().sum())
    assert counts.to_zero == int(((expected == 0) & (values != 0)).sum())
    assert counts.to_inf == int((expected.isinf() & finite).sum())


@pytest.mark.parametrize("source", FLOATS)
def test_not_a_number_of_any_payload_is_one_in_every_target_or_counted_before(source: str) -> None:
    values = patterns(source)
    values = values[values.isnan()]
    assert len(values) > 100
    for target in (*TARGETS, source):
        assert cast(values, source, target)[1].nan == len(values)


@pytest.mark.parametrize(
    ("bits", "met"),
    [
        (0x7FFF_FFFF, Counts(nan=1)), (0xFFFF_FFFF, Counts(nan=1)), (0x7FFF_8000, Counts(nan=1)), (0xFFFF_8000, Counts(nan=1)),
        (0x7F80_0001, Counts(nan=1)), (0xFF80_0000, Counts(inf=1)), (0x7F7F_8000, Counts(to_inf=1)), (0x0000_0001, Counts(to_zero=1)),
        (0x8000_7FFF, Counts(to_zero=1)), (0x0000_0000, Counts()), (0x7F7F_7FFF, Counts()),
    ],
)  # fmt: skip
def test_one_such_value_among_plain_ones_is_counted(bits: int, met: Counts) -> None:
    block = np.full(1000, 1.5, np.float32).view(np.uint32)
    block[500] = bits

    counts = Caster("float32", "bfloat16")(block.view(np.uint8))[1]
    if met.nan:  # refused whatever else: rounding may have carried it into zero
        counts.to_zero = 0
    assert counts == met


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_same_dtype_passes_untouched_and_is_looked_at(dtype: str) -> None:
    values = patterns(dtype)
    out, counts = Caster(dtype, dtype)(raw(values))
    assert np.array_equal(out, raw(values))
    assert (counts.to_inf, counts.to_zero) == (0, 0)
    assert counts.inf == int(values.isinf().sum())


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8", "bool"])
def test_integers_and_booleans_pass_untouched(dtype: str) -> None:
    values = np.arange(256, dtype=np.uint8)
    out, counts = Caster(dtype, dtype)(values)
    assert np.array_equal(out, values)
    assert counts == Counts()


def test_a_caster_keeps_its_scratch_between_blocks_of_all_sizes() -> None:
    caster = Caster("float32", "bfloat16")
    generator = torch.Generator().manual_seed(2)
    for size in (5, 0, 1, 100_000, 7, 100_001, 33):
        values = torch.randn(size, generator=generator)
        out, counts = caster(raw(values))
        assert np.array_equal(out, raw(values.bfloat16()))
        assert counts == Counts()


def test_counts_of_blocks_add_up() -> None:
    counts = Counts(1, 2, 3, 4)
    counts.add(Counts(10, 20, 30, 40))
    assert counts == Counts(11, 22, 33, 44)
