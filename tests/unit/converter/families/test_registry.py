"""A family is chosen by the names of tensors and by the run's word; and each provides all that is asked of a family."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest

from converter.checkpoint.tensors import StorageMetadata, TensorItems
from converter.common import errors
from converter.families import registry
from converter.families.family import FamilyModel, FamilySpec
from converter.families.qwen3.spec import SPEC
from converter.families.registry import FAMILIES, family_of, model_of
from converter.run.run_config import RunConfig

STEP = Path("/run/step-1")
QWEN3 = ("tok_embeddings.weight", "layers.0.attention.q_norm.weight", "layers.0.attention.wq.weight")
LLAMA3 = ("tok_embeddings.weight", "layers.0.attention.wq.weight", "layers.0.attention.wk.weight")


def holding(*names: str, form: str = "dcp") -> StorageMetadata:
    return StorageMetadata("", {name: TensorItems(name, "float32", (1,), ()) for name in names}, form=form)


def recorded_as(name: str) -> RunConfig:
    return RunConfig(
        path=Path("/run/config.json"), sha256="", generation="0.3", model_name=name, flavor="", dtype="float32",
        seq_len=8, keep_latest_k=None, hf_assets_path=None, tokenizer_path=None,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3", "", "my_model"])
def test_a_family_is_told_by_its_tensors_whatever_name_the_run_gave_it(name: str) -> None:
    assert family_of(holding(*QWEN3), recorded_as(name), STEP) is SPEC
    assert family_of(holding(*(f"module._orig_mod.{fqn}" for fqn in QWEN3)), recorded_as(name), STEP) is SPEC


def test_a_family_is_told_by_the_names_of_hf_in_a_step_of_that_form() -> None:
    names = ("model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.q_proj.weight")
    assert family_of(holding(*names, form="hf"), recorded_as("qwen3"), STEP) is SPEC


def test_the_run_has_the_word_where_the_names_are_those_of_two_families(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(SPEC, name="other")
    monkeypatch.setattr(registry, "FAMILIES", (SPEC, other))
    assert family_of(holding(*QWEN3), recorded_as("other"), STEP) is other
    assert family_of(holding(*QWEN3), recorded_as("my_model"), STEP) is SPEC


def test_a_model_of_no_family_is_refused_by_the_names_of_its_tensors() -> None:
    with pytest.raises(errors.UnsupportedModel) as caught:
        family_of(holding(*LLAMA3), recorded_as("llama3"), STEP)
    assert caught.value.what == (
        "this is another model than Qwen3, by the names of its tensors "
        "(layers.0.attention.wk.weight, layers.0.attention.wq.weight, tok_embeddings.weight, …)"
    )
    assert caught.value.hint == (
        "what is converted: TorchTitan's Qwen3 models, dense and MoE, under TorchTitan's names"
    )
    assert caught.value.path == str(STEP)


@pytest.mark.parametrize(
    ("fqn", "text"),
    [
        ("layers.0.attention.wq.lora_a.weight", "LoRA"),
        ("layers.0.attention.wq.lora_b", "LoRA"),
        ("layers.0.attention.qkv_linear.wqkv.weight", "fused attention"),
        ("layers.0.feed_forward.w13.weight", "fused SwiGLU"),
    ],
)
def test_names_of_models_that_are_stored_otherwise_are_refused(fqn: str, text: str) -> None:
    with pytest.raises(errors.UnsupportedModel, match=text) as caught:
        family_of(holding("norm.weight", fqn), recorded_as("qwen3"), STEP)
    assert fqn in caught.value.what
    assert caught.value.retry == errors.Retry.UNSUPPORTED


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_family_provides_every_function_with_the_arguments_it_is_called_with(family: FamilySpec) -> None:
    model = model_of(family)
    assert model.SPEC is family
    for name, asked in inspect.getmembers(FamilyModel, inspect.isfunction):
        if name.startswith("_"):
            continue
        wanted = [*inspect.signature(asked).parameters.values()][1:]
        given = inspect.signature(getattr(model, name)).parameters.values()
        assert [value.kind for value in given] == [value.kind for value in wanted], name
        assert [v.name for v in given if v.kind == v.KEYWORD_ONLY] == [
            v.name for v in wanted if v.kind == v.KEYWORD_ONLY
        ]
