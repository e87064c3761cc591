"""Checkpoints that are not as a stock TorchTitan 0.3.0 saves them, and convert all the same: other names, more tensors than
the model's, a tie that was lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from converter.common import errors
from tests.support.checkpoints.cases import BY_NAME
from tests.support.checkpoints.reference import load_source
from tests.unit.converter.editing import save, save_changed
from tests.unit.converter.exported import assert_same_weights, assert_verified, weights
from tests.unit.converter.running import Convert, Refused

CopyStep = Callable[..., Path]
States = dict[str, Any]
NEW, OLD = BY_NAME["two_steps"], BY_NAME["one_rank"]
LOST = BY_NAME["untied_values"]


def renamed(step: Path, rename: Callable[[str], str]) -> None:
    """The step's model saved again under other names."""
    save(step, {rename(fqn): tensor for fqn, tensor in load_source(step).items()})


# Names
@pytest.mark.parametrize(
    ("rename", "parts"),
    [
        (lambda fqn: f"_orig_mod.{fqn}", "_orig_mod"),
        (lambda fqn: fqn.replace("layers.1.", "layers.1._checkpoint_wrapped_module."), "_checkpoint_wrapped_module"),
        (lambda fqn: f"_fsdp_wrapped_module.{fqn}".replace(".attention.", "._orig_mod._fsdp_wrapped_module.attention."),
         "_fsdp_wrapped_module, _orig_mod"),
        (lambda fqn: f"model.{fqn}", "model"),
        (lambda fqn: f"module._orig_mod.{fqn}", "_orig_mod, module"),
    ],
    ids=["compile", "activation checkpointing", "fsdp1", "a state of its own", "ddp"],
)  # fmt: skip
def test_wrapper_parts_are_taken_off_and_listed_in_the_manifest(
    rename: Callable[[str], str], parts: str, copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(OLD)
    plain = weights(convert(step))
    renamed(step, rename)
    converted = convert(step)
    assert_same_weights(converted, plain)
    assert converted.check("names") == {
        "name": "names", "verdict": "passed", "reason": f"taken off: {parts}", "tolerance": None,
    }  # fmt: skip
    assert_verified(step, converted)


def test_a_wrapped_and_a_plain_name_for_one_tensor_are_refused(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(OLD)
    save_changed(step, lambda states: states.update({"_orig_mod.norm.weight": states["norm.weight"] + 1}))
    assert "same tensor" in refused(step, errors.UnknownTensor).what


def test_huggingfaces_names_in_a_dcp_are_named_for_what_they_are(
    copy_step: CopyStep, refused: Refused, convert: Convert
) -> None:
    step = copy_step(OLD)
    states = weights(convert(step))
    shutil.rmtree(OLD.published(step.parents[2]))
    save(step, states)
    error = refused(step, errors.UnsupportedModel)
    assert "HuggingFace's names" in error.what
    assert "model." in error.what
    assert error.retry == errors.Retry.UNSUPPORTED


@pytest.mark.parametrize("whole", [False, True], ids=["under its own names", "under module"])
def test_a_second_model_in_a_container_is_beside_the_model(
    whole: bool, copy_step: CopyStep, refused: Refused, convert: Convert
) -> None:
    step = copy_step(OLD)
    own = load_source(step)
    first = {f"module.{fqn}" if whole else fqn: tensor for fqn, tensor in own.items()}
    save(step, first | {f"model.{fqn}": tensor * 2 for fqn, tensor in own.items()})
    with pytest.raises(errors.ConversionError) as caught:
        refused.convert(step)
    assert caught.value.retry == errors.Retry.UNSUPPORTED
    converted = convert(step, ignore_tensors=("model.*",))
    assert torch.equal(weights(converted)["model.norm.weight"], own["norm.weight"])
    assert len(converted.manifest["accepted"]["ignored_tensors"]) == len(own)
    assert_verified(step, converted)


# State beside the model
BESIDE: States = {
    "rng_state": torch.arange(16, dtype=torch.uint8),
    "freqs_cis": torch.polar(torch.ones(8), torch.arange(8.0)),
    "ema.norm.weight": torch.zeros(72),
    "metrics.loss": torch.tensor(2.5),
    "layers.0.attention.rope.cache": torch.zeros(4, 8),
    "scales": torch.ones(4).to(torch.float8_e8m0fnu),
    "notes": {"text": "no tensor"},
    "started": b"bytes",
}
PATTERNS = ("rng_state", "freqs_*", "ema.*", "metrics.*", "*.rope.cache", "scales")
IGNORED = sorted(fqn for fqn in BESIDE if fqn not in ("notes", "started"))


def test_state_beside_the_model_makes_a_run_unsupported_and_the_hint_names_the_option(
    copy_step: CopyStep, refused: Refused
) -> None:
    for fqn in IGNORED:
        step = copy_step(OLD)
        save_changed(step, lambda states, fqn=fqn: states.update({fqn: BESIDE[fqn]}))
        with pytest.raises(errors.ConversionError) as caught:
            refused.convert(step)
        error = caught.value
        assert fqn in error.what
        assert (type(error), error.retry) in [
            (errors.UnknownTensor, errors.Retry.UNSUPPORTED), (errors.UnsupportedModel, errors.Retry.UNSUPPORTED),
        ]  # fmt: skip
        assert "--ignore-tensors" in error.hint
        shutil.rmtree(step.parent)


def test_ignored_tensors_are_left_out_and_listed_and_the_weights_are_the_same(
    copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(OLD)
    plain = weights(convert(step))
    save_changed(step, lambda states: states.update(BESIDE))
    converted = convert(step, ignore_tensors=PATTERNS)
    assert_same_weights(converted, plain)
    assert converted.manifest["accepted"] == {"ignored_tensors": IGNORED}
    assert_verified(step, converted)


def test_verify_takes_ignored_names_as_they_are_not_as_patterns(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(OLD)
    save_changed(step, lambda states: states.update({"ema.[0]*": torch.zeros(2)}))
    converted = convert(step, ignore_tensors=("ema.*",))
    assert converted.manifest["accepted"] == {"ignored_tensors": ["ema.[0]*"]}
    assert_verified(step, converted)


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("*", "layers.0"),
        ("norm.*", "norm.weight"),
        ("layers.2.attention.wq.*", "layers.2.attention.wq.weight"),
        ("output.weight", "output.weight"),
        ("*.wq.bias", "layers.0.attention.wq.bias"),
    ],
)
def test_a_pattern_that_matches_a_tensor_of_the_model_is_an_error_that_names_it(
    pattern: str, named: str, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(OLD)
    save_changed(step, lambda states: states.update({"layers.0.attention.wq.bias": torch.ones(128)}))
    error = refused(step, errors.IgnoredModelTensor, ignore_tensors=(pattern,))
    assert named in error.what
    assert "--ignore-tensors" in error.hint


def test_an_adapter_beside_the_model_is_never_left_out(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(OLD)
    save_changed(step, lambda states: states.update({"adapter.layers.0.wq.lora_a": torch.ones(2, 72)}))
    assert "LoRA" in refused(step, errors.UnsupportedModel, ignore_tensors=("adapter.*",)).what


def test_a_weight_in_a_dtype_that_is_not_read_is_unsupported_by_its_name(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(OLD)
    name = "layers.0.feed_forward.w1.weight"
    save_changed(step, lambda states: states.update({name: states[name].to(torch.float8_e4m3fn)}))
    assert f"{name} is stored as float8_e4m3fn" in refused(step, errors.UnsupportedModel).what


def test_dtypes_of_an_optimizers_state_do_not_matter(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(OLD)
    moments = {
        f"optimizer.state.{dtype}": torch.ones(4).to(dtype) for dtype in (torch.float8_e8m0fnu, torch.complex128)
    }
    save_changed(step, lambda states: states.update(moments))
    assert convert(step).manifest["accepted"] == {}


# A tie that was lost
def test_a_lost_tie_is_exported_as_two_and_every_reader_is_told(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(LOST)
    source = load_source(step)
    converted = convert(step, untie=True)
    written = weights(converted)
    assert torch.equal(written["model.embed_tokens.weight"], source["tok_embeddings.weight"])
    assert torch.equal(written["lm_head.weight"], source["lm_head.weight"])
    assert json.loads((converted.published / "config.json").read_text())["tie_word_embeddings"] is False
    loaded = AutoModelForCausalLM.from_pretrained(converted.published, dtype=torch.float32)
    assert torch.equal(loaded.lm_head.weight, source["lm_head.weight"])
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
    assert converted.manifest["accepted"] == {"untied": True}
    assert converted.check("tied_weights")["verdict"] == "accepted"
    assert converted.check("architecture")["verdict"] == "passed"
    assert converted.check("forward")["verdict"] == "passed"
    assert_verified(step, converted)


def test_without_the_flag_the_hint_names_it(copy_step: CopyStep, refused: Refused) -> None:
    assert "--untie" in refused(copy_step(LOST), errors.TiedWeightsDiffer).hint


def test_a_lost_tie_of_a_run_that_recorded_no_tie_is_exported_as_two(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(OLD)
    save_changed(step, lambda states: states.update({"output.weight": states["output.weight"] * 1.5}))
    converted = convert(step, untie=True)
    assert torch.equal(weights(converted)["lm_head.weight"], load_source(step)["output.weight"])
    assert converted.manifest["accepted"] == {"untied": True}


def test_a_tie_that_holds_stays_one_whatever_is_allowed(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(NEW)
    plain = convert(step)
    manifest = (plain.published / "conversion.json").read_bytes()
    converted = convert(step, untie=True)
    assert "lm_head.weight" not in weights(converted)
    assert (converted.published / "conversion.json").read_bytes() == manifest


def test_a_model_that_was_never_tied_is_exported_the_same_with_untie(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(BY_NAME["dense_untied-0.3-fsdp-bfloat16"])
    manifest = (convert(step).published / "conversion.json").read_bytes()
    assert (convert(step, untie=True).published / "conversion.json").read_bytes() == manifest


def test_a_pattern_that_leaves_nothing_of_a_step_is_named_and_no_step_without_a_model_is_blamed(
    copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(OLD)
    renamed(step, lambda fqn: f"transformer.{fqn}")
    error = refused(step, errors.NoModelInStep, ignore_tensors=("*",))
    assert "--ignore-tensors leaves out every tensor" in error.what
    assert "narrow" in error.hint
