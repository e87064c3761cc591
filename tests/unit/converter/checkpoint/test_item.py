"""One DCP item: what it holds is read exactly, or refused; no flipped bit changes what is read without a word."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from converter.checkpoint.tensor_reader import Shards, bands
from converter.checkpoint.tensors import TensorItems
from converter.common import errors
from tests.unit.converter.editing import flip
from tests.unit.converter.shards import dtype_of, item, one_item, rezipped, zip64

DTYPES = ["float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
TENSOR = torch.arange(1, 13, dtype=torch.float32).reshape(3, 4)


def read(step: Path, tensor: TensorItems) -> bytes:
    """All of a tensor, through its bands."""
    with Shards(step) as shards:
        parts = [(first, bytes(raw)) for band in bands(shards, tensor) for first, raw in band.read(64)]
    return b"".join(raw for _, raw in sorted(parts))


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def plain(step: Path, blob: bytes | None = None) -> TensorItems:
    return one_item(step, blob or item(TENSOR), "float32", (3, 4))


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (1, 1), (5, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_rank_is_read_as_it_was_saved(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = (torch.rand(shape) * 100).to(getattr(torch, dtype))
    assert read(tmp_path, one_item(tmp_path, item(tensor), dtype, shape)) == raw(tensor)


def test_a_parameter_is_read_as_its_tensor(tmp_path: Path) -> None:
    assert read(tmp_path, plain(tmp_path, item(torch.nn.Parameter(TENSOR)))) == raw(TENSOR)


def test_an_item_in_zip64_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, plain(tmp_path, zip64(item(TENSOR)))) == raw(TENSOR)


def test_no_flipped_bit_of_an_item_changes_what_is_read_without_a_word(tmp_path: Path) -> None:
    tensor = plain(tmp_path)
    path = tmp_path / "__0_0.distcp"
    [chunk] = tensor.chunks
    caught = 0
    for position in range(chunk.offset, chunk.offset + chunk.length):
        for bit in (0, 3, 7):
            flip(path, position, bit)
            try:
                assert read(tmp_path, tensor) == raw(TENSOR), (position - chunk.offset, bit)
            except (errors.PayloadCorrupt, errors.StepDamaged, errors.HostileCheckpoint, errors.UnknownObject):
                caught += 1
            flip(path, position, bit)
    assert read(tmp_path, tensor) == raw(TENSOR)
    assert caught > 3 * len(raw(TENSOR))


def test_a_flipped_bit_of_the_payload_is_named_with_fqn_file_and_place(tmp_path: Path) -> None:
    tensor = plain(tmp_path)
    content = (tmp_path / "__0_0.distcp").read_bytes()
    at = content.index(raw(TENSOR))
    flip(tmp_path / "__0_0.distcp", at + 17)
    with pytest.raises(errors.PayloadCorrupt) as caught:
        read(tmp_path, tensor)
    assert caught.value.path == str(tmp_path / "__0_0.distcp")
    assert "t.weight" in caught.value.what
    assert f"{at:,}" in caught.value.what


@pytest.mark.parametrize(
    ("dtype", "shape", "text"),
    [("int32", (3, 4), "float32"), ("float32", (4, 3), "[4, 3]"), ("float32", (12,), "[12]"), ("bfloat16", (3, 8), "bfloat16")],
)  # fmt: skip
def test_an_item_of_another_dtype_or_shape_than_metadata_says_is_refused(
    dtype: str, shape: tuple[int, ...], text: str, tmp_path: Path
) -> None:
    with pytest.raises(errors.PayloadCorrupt) as caught:
        read(tmp_path, one_item(tmp_path, item(TENSOR), dtype, shape))
    assert text in caught.value.what
    assert "t.weight" in caught.value.what


@pytest.mark.parametrize(
    "tensor", [torch.zeros(4, 3).t(), torch.zeros(3, 8)[:, ::2], torch.zeros(4, 4)[1:], torch.zeros(1, 4).expand(3, 4)]
)
def test_a_view_is_refused_by_its_stride_and_offset(tensor: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(errors.StepDamaged, match=r"stored as a view \(offset \d+, stride \["):
        read(tmp_path, plain(tmp_path, item(tensor)))


def test_a_compressed_item_is_refused(tmp_path: Path) -> None:
    blob = rezipped(item(torch.zeros(30, 40)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(errors.StepDamaged, match="compressed"):
        read(tmp_path, one_item(tmp_path, blob, "float32", (30, 40)))


def test_a_big_endian_item_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.StepDamaged, match="byte order"):
        read(tmp_path, plain(tmp_path, rezipped(item(TENSOR), byteorder=b"big")))


@pytest.mark.parametrize("value", [{"a": TENSOR}, [TENSOR, TENSOR], "text"], ids=["dict", "list", "text"])
def test_an_item_that_is_no_tensor_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises((errors.StepDamaged, errors.PayloadCorrupt)):
        read(tmp_path, plain(tmp_path, item(value)))


def test_a_dtype_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    tensor = torch.zeros(3, 4).to(torch.float8_e4m3fn)
    with pytest.raises(errors.UnsupportedModel, match="float8_e4m3fn"):
        read(tmp_path, one_item(tmp_path, item(tensor), "float8_e4m3fn", (3, 4)))


def test_a_record_cut_short_or_displaced_is_refused(tmp_path: Path) -> None:
    blob = item(TENSOR)
    for damaged in (blob[1:], blob[:-20], blob[: len(blob) // 2], b"", b"PK\x05\x06" + bytes(18), bytes(5000)):
        tensor = plain(tmp_path)
        (tmp_path / "__0_0.distcp").write_bytes(b"\xa5" * 77 + damaged + bytes(9000))
        with pytest.raises((errors.PayloadCorrupt, errors.StepDamaged)):
            read(tmp_path, tensor)


def test_a_shard_that_ends_early_or_goes_away_is_a_step_that_vanished(tmp_path: Path) -> None:
    tensor = plain(tmp_path)
    path = tmp_path / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(errors.StepVanished):
        read(tmp_path, tensor)
    path.unlink()
    with pytest.raises(errors.StepVanished):
        read(tmp_path, tensor)


def test_a_checksum_that_was_not_computed_is_no_checksum(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        blob = item(TENSOR)
    finally:
        torch.serialization.set_crc32_options(True)
    tensor = plain(tmp_path, blob)
    assert read(tmp_path, tensor) == raw(TENSOR)
    with Shards(tmp_path) as shards:
        assert [band.unchecked for band in bands(shards, tensor)] == [True]
        assert dtype_of(TENSOR) == tensor.dtype
