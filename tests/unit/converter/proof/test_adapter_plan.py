"""The plan: TorchTitan's adapter on nothing tells what each HF tensor is made of, and its stand-in says the same at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torchtitan.models.qwen3 as titan
from transformers import Qwen3MoeConfig

from converter.checkpoint.completeness import list_step
from converter.checkpoint.tensors import from_pickle
from converter.common import errors
from converter.export import provisional_plan
from converter.export.plan import Plan
from converter.families.qwen3 import model as qwen3
from converter.families.qwen3.spec import SPEC
from converter.families.renamed_tensors import source_names
from converter.proof import adapter_plan
from tests.support.checkpoints import reference
from tests.support.checkpoints.cases import BY_NAME, CASES, Case
from tests.support.checkpoints.models import tiny_config

STEP = Path("/run/step-1")
MOE = BY_NAME["moe-0.2-2x2-float32"]


def tiny_hf(case: Case, **changes: int) -> torch.nn.Module:
    dims = case.dims
    kind = Qwen3MoeConfig if case.moe else qwen3.Qwen3Config
    experts = {
        "num_experts": dims.experts,
        "num_experts_per_tok": dims.top_k,
        "moe_intermediate_size": dims.expert_hidden,
    }
    said = {
        "vocab_size": dims.rows, "hidden_size": dims.dim, "num_hidden_layers": dims.layers, "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads, "head_dim": dims.head_dim, "intermediate_size": dims.hidden, "tie_word_embeddings": dims.tied,
    }  # fmt: skip
    return qwen3.hf_model(kind(**said | (experts if case.moe else {}) | changes))


def both(case: Case, checkpoints: Path) -> tuple[Plan, Plan | None]:
    """The real plan and the provisional one."""
    step = case.step(checkpoints)
    metadata = from_pickle((step / ".metadata").read_bytes(), list_step(step))
    sources = source_names(SPEC, metadata, step)
    shapes = {name: metadata.tensors[fqn].shape for name, fqn in sources.items()}
    adapter = qwen3.adapter(tiny_config(case.dims, fuse_qkv=False))
    real = adapter_plan.make_plan(
        step, SPEC, {name: [fqn] for name, fqn in sources.items()}, shapes, adapter, tiny_hf(case)
    )
    return real, provisional_plan.provisional_plan(SPEC, sources, shapes, tied=case.dims.tied)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_provisional_plan_is_the_real_one_for_every_case(case: Case, checkpoints: Path) -> None:
    real, provisional = both(case, checkpoints)
    assert provisional is not None
    assert provisional_plan.same(provisional, real)


@pytest.mark.parametrize("case", CASES[::5], ids=lambda case: case.name)
def test_the_plan_carried_out_by_hand_is_what_the_adapter_gives_for_real_tensors(case: Case, checkpoints: Path) -> None:
    real, _ = both(case, checkpoints)
    source = reference.load_source(case.step(checkpoints))
    expected = reference.hf_weights(case, reference.weights(case, case.step(checkpoints)))
    found = {e.name: source[e.source].flatten()[e.start : e.start + e.elements].view(e.shape) for e in real.exports}
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor.to(expected[name].dtype), expected[name]) for name, tensor in found.items())


def test_plans_that_differ_are_not_the_same(checkpoints: Path) -> None:
    real, provisional = both(MOE, checkpoints)
    assert provisional is not None
    first, second, *rest = provisional.exports
    for other in (
        Plan((first, second, *rest), ("a", "b"), provisional.zero), Plan(provisional.exports, None, ()), Plan(tuple(rest), None, provisional.zero),
    ):  # fmt: skip
        assert not provisional_plan.same(other, real)
    assert provisional_plan.same(Plan((*rest, second, first), None, provisional.zero), real)


def test_a_checkpoint_that_the_stand_ins_do_not_know_waits_for_the_real_plan() -> None:
    shapes = {"layers.0.moe.routed_experts.inner_experts.w1_EFD": (), "tok_embeddings.weight": (3, 4)}
    names = {name: name for name in shapes}
    assert provisional_plan.provisional_plan(SPEC, names, shapes, tied=False) is None
    assert provisional_plan.provisional_plan(SPEC, {}, {}, tied=True) == Plan(())


def test_a_model_of_another_shape_than_the_tensors_is_refused_by_the_first_name(checkpoints: Path) -> None:
    step = MOE.step(checkpoints)
    metadata = from_pickle((step / ".metadata").read_bytes(), list_step(step))
    sources = source_names(SPEC, metadata, step)
    shapes = {name: metadata.tensors[fqn].shape for name, fqn in sources.items()}
    made_of = {name: [fqn] for name, fqn in sources.items()}
    adapter = qwen3.adapter(tiny_config(MOE.dims, fuse_qkv=False))
    for changes, text in (
        ({"vocab_size": 639}, "lm_head"),
        ({"num_hidden_layers": 4}, "lacks"),
        ({"num_experts": 5}, "does not know"),
    ):
        with pytest.raises(errors.PlanMismatch, match=text):
            adapter_plan.make_plan(step, SPEC, made_of, shapes, adapter, tiny_hf(MOE, **changes))


def test_30b_a3b_is_planned_in_seconds() -> None:
    config = titan.model_registry("30B-A3B").model
    with torch.device("meta"):
        whole = qwen3.titan_model(config, 8).state_dict()
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in whole.items()
        if not name.endswith((".cache", "tokens_per_expert_E"))
    }
    shapes = {name: shape for name, shape in shapes.items() if "rope" not in name}
    said = qwen3.with_architecture({}, qwen3.architecture_of(config))
    model = qwen3.hf_model(Qwen3MoeConfig(vocab_size=config.vocab_size, **said))
    begun = time.monotonic()
    made = adapter_plan.make_plan(STEP, SPEC, {name: [name] for name in shapes}, shapes, qwen3.adapter(config), model)
    took = time.monotonic() - begun
    assert len(made.exports) == 18_867
    assert len(made.zero) == 48
    provisional = provisional_plan.provisional_plan(SPEC, {name: name for name in shapes}, shapes, tied=False)
    assert provisional is not None
    assert provisional_plan.same(provisional, made)
    assert took < 10  # 0.95 s on 2 cores; a busy machine may take longer
