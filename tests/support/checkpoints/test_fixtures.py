"""The test checkpoints are what `cases` says they are: without this, a test that passes on them proves little."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import AutoTokenizer

from tests.support.checkpoints import reference
from tests.support.checkpoints.cases import ALL, BY_NAME, CASES, NAMINGS, Case

Chunks = set[tuple[tuple[int, ...], tuple[int, ...]]]
DCP = [case for case in ALL if not case.name.startswith(("last_in_hf", "torch_checkpointing"))]


def chunks(step: Path, end: str) -> Chunks:
    """Offsets and sizes of the chunks of the first tensor whose name ends so, of layer 0 if it has one."""
    items = dcp.FileSystemReader(str(step)).read_metadata().state_dict_metadata
    item = next(v for k, v in items.items() if k.endswith(end) and not k.startswith("optimizer"))
    assert isinstance(item, TensorStorageMetadata)
    return {(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in item.chunks}


def by_name(name: str) -> Case:
    return BY_NAME[name]


@pytest.mark.parametrize("case", DCP, ids=lambda case: case.name)
def test_each_dcp_step_is_complete_and_as_long_as_its_metadata_says(case: Case, checkpoints: Path) -> None:
    for number in case.steps:
        step = case.step(checkpoints, number)
        storage = dcp.FileSystemReader(str(step)).read_metadata().storage_data
        ends: dict[str, int] = {}
        for info in storage.values():
            ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
        assert {path.name: path.stat().st_size for path in step.glob("*.distcp")} == ends
        assert max(path.stat().st_mtime_ns for path in step.glob("*.distcp")) <= (step / ".metadata").stat().st_mtime_ns


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_of_the_matrix_has_all_that_a_trainer_saves(case: Case, checkpoints: Path) -> None:
    items = dcp.FileSystemReader(str(case.step(checkpoints))).read_metadata().state_dict_metadata
    assert {"train_state.step", "lr_scheduler.last_epoch", "dataloader.world_size"} <= set(items)
    assert "optimizer.state.tok_embeddings.weight.exp_avg_sq" in items
    source = reference.load_source(case.step(checkpoints))
    assert {reference.renamed(fqn) for fqn in source} == set(reference.weights(case, case.step(checkpoints)))
    assert {str(t.dtype) for k, t in source.items() if "expert_bias" not in k} == {f"torch.{case.dtype}"}
    head = "lm_head.weight" if case.naming == "0.3" or (case.moe and case.naming == "between") else "output.weight"
    assert torch.equal(source[head], source["tok_embeddings.weight"]) == case.dims.tied
    assert ("layers.0.attention.wq.weight" in source) == (case.naming == "0.2")


@pytest.mark.parametrize("naming", NAMINGS)
def test_meshes_split_dim_0_and_dim_1_and_both_unevenly(naming: str, checkpoints: Path) -> None:
    flat = by_name(f"dense_untied-{naming}-fsdp-float32").step(checkpoints)
    square = by_name(f"dense_untied-{naming}-2x2-float32").step(checkpoints)
    assert {sizes for _, sizes in chunks(flat, "tok_embeddings.weight")} == {(160, 72), (158, 72)}
    assert len(chunks(flat, "wq.weight")) == (1 if naming == "0.3" else 4)
    assert chunks(square, "tok_embeddings.weight") == {
        ((0, 0), (160, 72)),
        ((160, 0), (159, 72)),
        ((319, 0), (160, 72)),
        ((479, 0), (159, 72)),
    }
    assert chunks(square, "wo.weight") == {((0, 0), (72, 64)), ((0, 64), (72, 64))}
    assert {offsets for offsets, _ in chunks(square, "w2.weight")} == {(0, 0), (0, 47), (36, 0), (36, 47)}


@pytest.mark.parametrize("naming", NAMINGS)
def test_experts_are_split_by_expert_and_within_and_one_rank_may_have_none(naming: str, checkpoints: Path) -> None:
    flat = by_name(f"moe-{naming}-fsdp-float32").step(checkpoints)
    square = by_name(f"moe-{naming}-2x2-float32").step(checkpoints)
    one, two = ("w1", "w2") if naming == "0.2" else ("w1_EFD", "w2_EDF")
    assert {sizes for _, sizes in chunks(flat, one)} == {(2, 56, 72), (0, 56, 72)}
    assert {offsets for offsets, _ in chunks(square, one)} == {(0, 0, 0), (3, 0, 0), (0, 28, 0), (3, 28, 0)}
    assert {offsets for offsets, _ in chunks(square, two)} == {(0, 0, 0), (3, 0, 0), (0, 0, 28), (3, 0, 28)}


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_the_run_config_leads_to_assets_and_a_tokenizer_that_loads(case: Case, checkpoints: Path) -> None:
    config = json.loads(case.run_config(checkpoints).read_text())
    recorded = config if case.config == "0.3" else config["model"]
    assert Path(recorded["hf_assets_path"]) == case.base_assets(checkpoints)
    if case.config != "0.3":
        assert Path(config["molgen_data"]["tokenizer_override"]) == case.tokenizer(checkpoints)
        assert ("padded_vocab_size" in config["model"]) == (case.config == "0.2-figures")
    assert config["training"]["dtype"] == case.dtype
    assert json.loads((case.base_assets(checkpoints) / "config.json").read_text())["vocab_size"] < case.dims.rows
    assert len(AutoTokenizer.from_pretrained(case.tokenizer(checkpoints))) == case.known_tokens


@pytest.mark.parametrize("kind", ["dense_tied", "dense_untied", "moe"])
def test_swapping_any_two_tensors_of_a_shape_moves_the_logits(kind: str, checkpoints: Path) -> None:
    case = by_name(f"{kind}-0.3-2x2-float32")
    weights = reference.weights(case, case.step(checkpoints))
    tokens = reference.some_tokens(case, length=48)
    truth = reference.forward(reference.titan_model(case, weights), tokens).logits
    tied = {"tok_embeddings.weight", "lm_head.weight"} if case.dims.tied else set()
    for first, second in itertools.combinations(weights, 2):
        same = weights[first].shape == weights[second].shape and not first.endswith("expert_bias_E")
        if not same or {first, second} == tied:
            continue
        swapped = weights | {first: weights[second], second: weights[first]}
        moved = reference.forward(reference.titan_model(case, swapped), tokens).logits
        assert (moved - truth).abs().max() > 0.02, (first, second)


def test_extra_cases_hold_their_one_speciality(checkpoints: Path) -> None:
    def source(name: str) -> reference.Weights:
        return reference.load_source(BY_NAME[name].step(checkpoints))

    assert sum(int(tensor.isnan().sum()) for tensor in source("nan").values()) == 1
    assert sum(int(tensor.isinf().sum()) for tensor in source("inf").values()) == 1
    assert all(tensor.isfinite().all() for tensor in source("overflow").values())
    assert sum(int(tensor.bfloat16().isinf().sum()) for tensor in source("overflow").values()) == 1
    untied = source("untied_values")
    assert int((untied["lm_head.weight"] != untied["tok_embeddings.weight"]).sum()) == 1
    assert all(source("moe_bias")[f"layers.{layer}.moe.expert_bias_E"].any() for layer in range(3))
    assert "vision_proj.weight" in source("unknown_tensor")
    assert "layers.2.attention.qkv_linear.wq.lora_a.weight" in source("lora")
    assert not source("dataloader_only")
    assert not source("optimizer_only")
    assert {tensor.dtype for tensor in source("model_only_last").values()} == {torch.float32}
    first = reference.load_source(BY_NAME["two_steps"].step(checkpoints, 2))
    assert not torch.equal(first["norm.weight"], source("two_steps")["norm.weight"])


def test_a_fused_checkpoint_is_the_function_of_its_parts(checkpoints: Path) -> None:
    case = BY_NAME["fused_qkv"]
    fused = reference.load_source(case.step(checkpoints))["layers.0.attention.qkv_linear.wqkv.weight"]
    weights = reference.weights(case, case.step(checkpoints))
    assert fused.shape == (256, 72)
    group = [weights[f"layers.0.attention.qkv_linear.{name}.weight"] for name in ("wq", "wk", "wv")]
    assert torch.equal(fused[:64], group[0][:64])
    assert torch.equal(fused[64:96], group[1][:32])
    assert torch.equal(fused[96:128], group[2][:32])


def test_other_formats_look_as_their_writers_leave_them(checkpoints: Path) -> None:
    def names(name: str) -> set[str]:
        return set(os.listdir(BY_NAME[name].step(checkpoints)))

    assert {"metadata.pkl", "model_0.pt", "optimizer_0.pt"} <= names("torch_checkpointing")
    two = {"sharded", "model.safetensors.index.json", "model-00001-of-00002.safetensors"}
    assert two | {"model-00002-of-00002.safetensors"} == names("last_in_hf") == names("last_in_hf_corrupt")
    assert names("last_in_hf_one_file") == two ^ {
        "model-00001-of-00002.safetensors",
        "model-00001-of-00001.safetensors",
    }
    corrupt = BY_NAME["last_in_hf_corrupt"].step(checkpoints)
    with open(corrupt / "model-00001-of-00002.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["lm_head.weight"]["dtype"] == ""
    assert header["lm_head.weight"]["shape"] == []


def test_a_copy_keeps_every_time(copy_run: Callable[..., Path], checkpoints: Path) -> None:
    case = BY_NAME["two_steps"]
    out = copy_run(case)
    assert {path.name for path in case.checkpoint(out).iterdir()} == {"config.json", "step-2", "step-4"}
    for path in case.step(checkpoints).iterdir():
        assert (case.step(out) / path.name).stat().st_mtime_ns == path.stat().st_mtime_ns
