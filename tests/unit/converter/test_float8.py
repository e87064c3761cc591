"""Weights of float8 training are read as what they are, float32 inside a wrapper; any other wrapper is refused by name.

`data/float8_weight.item` is an item that DCP (torch 2.13.0) wrote of torchao 0.18's Float8Linear(16, 24), seed 0, with
`enable_fsdp_float8_all_gather`. Where more are needed, a class of that name is made here: torchao itself is never there.
"""

from __future__ import annotations

import importlib.util
import io
import os
import pickletools
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from converter.checkpoint.tensor_reader import Shards, bands
from converter.common import errors
from tests.robustness.faults.stored import put_elsewhere
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.editing import edit_json, save_changed
from tests.unit.converter.running import Convert, Refused
from tests.unit.converter.shards import item, one_item

CopyStep = Callable[..., Path]
REAL = Path(__file__).parent / "data" / "float8_weight.item"
CASE = BY_NAME["one_rank"]
FLOAT8 = ("torchao.float8.fsdp_utils", "WeightWithDynamicFloat8CastTensor")
TRAINING = "torchao.float8.float8_training_tensor"


class ScaledMMConfig(NamedTuple):
    """As torchao's."""

    emulate: bool = False
    use_fast_accum: bool = True
    fp8_output: bool = False
    pad_inner_dim: bool = False


class Wrapper(torch.Tensor):
    """A tensor subclass round a plain tensor, as torchao's WeightWithDynamicFloat8CastTensor is."""

    @staticmethod
    def __new__(cls, tensor: torch.Tensor) -> Wrapper:
        made: Wrapper = torch.Tensor._make_wrapper_subclass(
            cls, tensor.size(), strides=tensor.stride(), dtype=tensor.dtype, requires_grad=tensor.requires_grad
        )
        return made

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor
        self._linear_mm_config = ScaledMMConfig()
        self._dtype = torch.float8_e4m3fn
        self._precomputed_scale = None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0]._tensor)
        return func(*[a._tensor if isinstance(a, Wrapper) else a for a in args], **kwargs or {})


@contextmanager
def called(module: str, name: str) -> Iterator[type[Wrapper]]:
    """A wrapper class that pickles under that name, while this lasts."""
    kind = type(name, (Wrapper,), {"__module__": module})
    with pytest.MonkeyPatch.context() as patch:
        for dotted in (module, TRAINING):
            parts = dotted.split(".")
            for end in range(1, len(parts) + 1):
                part = ".".join(parts[:end])
                patch.setitem(sys.modules, part, sys.modules.get(part, types.ModuleType(part)))
        patch.setattr(sys.modules[module], name, kind, raising=False)
        patch.setattr(sys.modules[TRAINING], "ScaledMMConfig", ScaledMMConfig, raising=False)
        patch.setattr(ScaledMMConfig, "__module__", TRAINING)
        yield kind


def test_torchao_is_not_installed() -> None:
    assert importlib.util.find_spec("torchao") is None


def test_a_real_weight_of_float8_training_is_read_as_its_float32_values(tmp_path: Path) -> None:
    blob = REAL.read_bytes()
    tensor = one_item(tmp_path, blob, "float32", (24, 16))
    with Shards(tmp_path) as shards:
        read = b"".join(block.tobytes() for band in bands(shards, tensor) for _, block in band.read(512))
    torch.manual_seed(0)
    expected = torch.nn.Linear(16, 24, bias=False).weight.detach()
    assert torch.equal(torch.frombuffer(bytearray(read), dtype=torch.float32).view(24, 16), expected)
    assert read == zipfile.ZipFile(io.BytesIO(blob)).read("archive/data/0")


def test_a_class_made_here_is_pickled_as_the_real_one() -> None:
    def globals_of(blob: bytes) -> set[str]:
        text = zipfile.ZipFile(io.BytesIO(blob)).read("archive/data.pkl")
        return {str(argument) for op, argument, _ in pickletools.genops(text) if op.name == "GLOBAL"}

    with called(*FLOAT8) as kind:
        ours = globals_of(item(kind(torch.randn(24, 16))))
    real = globals_of(REAL.read_bytes()) - {"torch._utils _rebuild_parameter", f"{TRAINING} LinearMMConfig"}
    assert ours == real


def test_a_run_of_float8_training_converts(copy_step: CopyStep, convert: Convert, tmp_path: Path) -> None:
    whole = convert(copy_step(CASE)).published
    step = copy_step(CASE, to=tmp_path / "float8")

    def wrap(states: dict[str, torch.Tensor]) -> None:
        for fqn, tensor in states.items():
            if tensor.ndim == 2 and "layers." in fqn:
                states[fqn] = kind(tensor)

    with called(*FLOAT8) as kind:
        save_changed(step, wrap)
    converted = convert(step)
    assert (converted.published / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert converted.check("checksums")["verdict"] == converted.check("forward")["verdict"] == "passed"


def test_a_record_of_float8_layers_is_understood(copy_step: CopyStep, convert: Convert) -> None:
    case = BY_NAME["dense_tied-0.3-2x2-float32"]
    step = copy_step(case)

    def float8(said: dict[str, Any]) -> None:
        for layer in said["model_spec"]["model"]["layers"]:
            layer["feed_forward"]["w1"]["_torchao_config"] = {"cast_config_input": "dynamic", "emulate": False}

    edit_json(case.run_config(step.parents[2]), float8)
    assert convert(step).check("forward")["verdict"] == "passed"


@pytest.mark.parametrize(
    ("module", "name"),
    [("torchao.quantization.quantize_.workflows.float8.float8_tensor", "Float8Tensor"), ("torchao.dtypes.nf4tensor", "NF4Tensor"), ("users.own", "Quantized")],
)  # fmt: skip
def test_any_other_tensor_subclass_is_refused_by_its_class(
    module: str, name: str, copy_step: CopyStep, refused: Refused
) -> None:
    fqn, step = "layers.1.feed_forward.w3.weight", copy_step(CASE)
    with called(module, name) as kind:
        save_changed(step, lambda states: states.update({fqn: kind(states[fqn])}))
    error = refused(step, errors.UnsupportedModel)
    assert f"{fqn} is stored as a {module}.{name}" in error.what
    assert error.path.endswith(".distcp")


def test_a_wrapper_that_is_not_as_large_as_what_it_wraps_is_damaged(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(CASE)
    with called(*FLOAT8) as kind:
        wrong = kind(torch.randn(94, 72))
        wrong._tensor = torch.randn(72, 94)
        put_elsewhere(step, "layers.1.feed_forward.w3.weight", item(wrong))
    assert "does not parse" in refused(step, errors.StepDamaged).what


class Runs:
    """Pickles as a call of `os.system`."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_nothing_that_a_wrapper_holds_is_run(copy_step: CopyStep, refused: Refused, tmp_path: Path) -> None:
    step, ran = copy_step(CASE), tmp_path / "ran"
    with called(*FLOAT8) as kind:
        wrong = kind(torch.randn(94, 72))
        wrong._precomputed_scale = Runs(f"touch {ran}")  # type: ignore[assignment]
        put_elsewhere(step, "layers.1.feed_forward.w3.weight", item(wrong))
    assert "posix.system" in refused(step, errors.HostileCheckpoint).what
    assert not ran.exists()


def test_a_negated_view_is_refused(copy_step: CopyStep, refused: Refused) -> None:
    """torch stores what it is not, and a note of that."""
    step, negated = copy_step(CASE), torch._neg_view(torch.randn(94, 72))
    assert negated.is_neg()
    put_elsewhere(step, "layers.1.feed_forward.w3.weight", item(negated))
    assert "does not parse" in refused(step, errors.StepDamaged).what
