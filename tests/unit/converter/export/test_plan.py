"""HF shards laid out here are the bytes that safetensors' own writer makes; groups of them, those of huggingface_hub."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from converter.common.dtypes import SAFETENSORS, target_dtype
from converter.export.hf_shards import lay_out
from converter.export.plan import Export, Plan

SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (5, 7), (2, 3, 4), (0, 4), (64,)]


def tensors(seed: int, dtypes: list[str]) -> dict[str, torch.Tensor]:
    """Tensors of all kinds of names and shapes, filled with random bytes."""
    choose = random.Random(seed)
    names = ["a", "A", "b.10", "b.9", "b.1.weight", "model.layers.0.x", "é", 'quo"te', "tab\t", "model.layers.10.x"]
    found = {}
    for name in names + [f"x{i}" for i in range(choose.randrange(9))]:
        dtype, shape = choose.choice(dtypes), choose.choice(SHAPES)
        size = SAFETENSORS[dtype][1]
        count = torch.Size(shape).numel()
        values = torch.randint(0, 2 if dtype == "bool" else 256, (count * size,), dtype=torch.uint8)
        found[name] = values.view(getattr(torch, dtype)).view(shape)
    return found


@pytest.mark.parametrize(
    "dtypes", [["float32"], ["bfloat16"], ["float32", "int64", "uint8"], list(SAFETENSORS)], ids=len
)
@pytest.mark.parametrize("seed", range(12))
def test_a_shard_is_byte_for_byte_what_safetensors_writes(seed: int, dtypes: list[str], tmp_path: Path) -> None:
    state = tensors(seed, dtypes)
    save_file(state, tmp_path / "theirs", metadata={"format": "pt"})
    exports = [Export(name, "source", 0, tuple(tensor.shape)) for name, tensor in state.items()]
    named = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}
    [shard], index = lay_out(exports, named, 1 << 40)
    ours = bytearray(shard.size)
    ours[: len(shard.header)] = shard.header
    for name, tensor in state.items():
        blob = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        ours[shard.positions[name] : shard.positions[name] + len(blob)] = blob
    assert bytes(ours) == (tmp_path / "theirs").read_bytes()
    assert index is None
    assert shard.name == "model.safetensors"


@pytest.mark.parametrize("limit", [1, 40, 100, 101, 400, 4000])
@pytest.mark.parametrize("seed", range(6))
def test_groups_are_those_of_huggingface_hub(seed: int, limit: int) -> None:
    state = {name: tensor for name, tensor in tensors(seed, ["float32", "bfloat16"]).items() if tensor.numel()}
    theirs = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    exports = [Export(name, "source", 0, tuple(tensor.shape)) for name, tensor in state.items()]
    named = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}
    shards, index = lay_out(exports, named, limit)
    assert {shard.name: set(shard.positions) for shard in shards} == {
        name: set(found) for name, found in theirs.filename_to_tensors.items()
    }
    if index is not None:
        said = json.loads(index)
        assert said["weight_map"] == theirs.tensor_to_filename
        assert said["metadata"]["total_size"] == theirs.metadata["total_size"]


@pytest.mark.parametrize("limit", [1, 60, 200, 1000])
def test_tensors_of_one_unit_lie_in_one_shard_as_those_that_share_memory_do(limit: int) -> None:
    fused = torch.zeros(3, 10)
    state = {"first": torch.zeros(5), "e.0": fused[0], "e.1": fused[1], "mid": torch.zeros(7), "e.2": fused[2]}
    theirs = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    exports = [
        Export(name, "source", 0, tuple(tensor.shape), "e.0" if name.startswith("e.") else "")
        for name, tensor in state.items()
    ]
    shards, _ = lay_out(exports, dict.fromkeys(state, "float32"), limit)
    assert {shard.name: set(shard.positions) for shard in shards} == {
        name: set(found) for name, found in theirs.filename_to_tensors.items()
    }


def test_a_plan_crosses_the_process_boundary_as_it_is() -> None:
    plan = Plan((Export("a", "x", 3, (2, 3), "u"), Export("b", "y", 0, ())), ("x", "z"), ("bias",))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert Plan.from_json(json.loads(json.dumps(Plan(()).to_json()))) == Plan(())


def test_only_floating_point_is_cast() -> None:
    assert target_dtype("float32", "bfloat16") == "bfloat16"
    assert target_dtype("float64", "float16") == "float16"
    assert target_dtype("int64", "bfloat16") == "int64"
    assert target_dtype("bool", "bfloat16") == "bool"
