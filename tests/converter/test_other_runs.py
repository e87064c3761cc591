"""Runs that are not as a stock TorchTitan 0.3.0 saves them, and convert all the same: newer records, other names, more
tensors than the model's, a tie that was lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from converter import errors
from converter.source import Options
from converter.verify import verify
from tests.build.cases import BY_NAME, SEQ_LEN
from tests.build.reference import load_source
from tests.converter.dialects import to_main
from tests.converter.editing import SECOND, edit_json, save, save_changed
from tests.converter.running import Convert, Converted, Refused

CopyStep = Callable[..., Path]
States = dict[str, Any]
NEW, OLD, MOE = BY_NAME["two_steps"], BY_NAME["one_rank"], BY_NAME["moe-0.3-fsdp-bfloat16"]
LOST = BY_NAME["untied_values"]


def renamed(step: Path, rename: Callable[[str], str]) -> None:
    """The step's model saved again under other names."""
    save(step, {rename(fqn): tensor for fqn, tensor in load_source(step).items()})


def weights(converted: Converted) -> dict[str, torch.Tensor]:
    return dict(load_file(converted.published / "model.safetensors"))


def assert_same_weights(one: Converted, other: dict[str, torch.Tensor]) -> None:
    found = weights(one)
    assert found.keys() == other.keys()
    assert all(torch.equal(found[name], other[name]) for name in other)


def assert_verified(step: Path, converted: Converted) -> None:
    assert verify(step, converted.published, int(step.name[5:]), Options()).equal


# TorchTitan's main branch
@pytest.mark.parametrize("in_spec", [False, True], ids=["training", "model_spec"])
@pytest.mark.parametrize("case", [NEW, MOE], ids=["dense", "moe"])
def test_a_run_of_torchtitans_main_branch_converts_with_every_check(
    case: Any, in_spec: bool, copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(case)
    edit_json(case.run_config(step.parents[2]), lambda said: to_main(said, in_spec=in_spec))
    converted = convert(step, allow_routing_drift=True)
    assert json.loads((converted.published / "config.json").read_text())["max_position_embeddings"] == SEQ_LEN
    assert {check["name"] for check in converted.manifest["checks"] if check["verdict"] == "not run"} <= {
        "tied_weights", "balancing_bias",
    }  # fmt: skip


def test_a_record_with_two_lengths_converts_and_is_not_independent(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(OLD)
    edit_json(step.parent / "config.json", lambda said: said["training"].update(max_context_length=64))
    converted = convert(step)
    assert json.loads((converted.published / "config.json").read_text())["max_position_embeddings"] == 64
    assert "training.max_context_length is used" in converted.check("independence")["reason"]


def test_a_recorded_key_that_might_change_the_function_is_refused_and_an_empty_one_is_not(
    copy_step: CopyStep, refused: Refused, convert: Convert
) -> None:
    step = copy_step(NEW)
    layers = lambda said: said["model_spec"]["model"]["layers"]  # noqa: E731
    edit_json(NEW.run_config(step.parents[2]), lambda said: layers(said)[0]["attention"].update(softcap=30.0))
    assert "softcap" in refused(step, errors.UnsupportedModel).what
    edit_json(
        NEW.run_config(step.parents[2]),
        lambda said: layers(said)[0]["attention"].update(softcap=None, hooks={}, taps=[]),
    )
    assert convert(step).check("architecture")["verdict"] == "passed"


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


# A TOML of 0.2, and a run config that is newer than the step
TOML = """
[job]
dump_folder = "./outputs"
[model]
name = "qwen3"
flavor = "tiny"
hf_assets_path = "{assets}"
[training]
seq_len = 128
steps = 10
[molgen_data]
tokenizer_override = "{tokenizer}"
"""


def as_toml(step: Path, checkpoints: Path) -> Path:
    path = step.parent / "train.toml"
    path.write_text(TOML.format(assets=OLD.base_assets(checkpoints), tokenizer=OLD.tokenizer(checkpoints)))
    (step.parent / "config.json").unlink()
    return path


def test_a_toml_named_by_hand_is_read_with_the_defaults_of_0_2_and_says_so(
    copy_step: CopyStep, checkpoints: Path, convert: Convert
) -> None:
    step = copy_step(OLD)
    plain = weights(convert(step))
    path = as_toml(step, checkpoints)
    for converted in (convert(step, run_config=path), convert(step, run_config_names=("train.toml",))):
        assert_same_weights(converted, plain)
        assert converted.manifest["dtype"] == "float32"
        reason = converted.check("independence")["reason"]
        assert "does not hold what the command line changed" in reason
        assert "training.dtype float32" in reason
        assert "training.seq_len" not in reason


@pytest.mark.parametrize("text", ["[model", "model = 3", "[training]\nseq_len = 4", "a = " + "[" * 5000, "[model]\nname = 'q'\n[training]\nseq_len = 2000-01-01"])  # fmt: skip
def test_what_is_no_run_config_in_toml_is_named(
    text: str, copy_step: CopyStep, checkpoints: Path, refused: Refused
) -> None:
    step = copy_step(OLD)
    path = as_toml(step, checkpoints)
    path.write_text(text)
    error = refused(step, errors.RunConfigUnreadable, run_config=path)
    assert error.path == str(path)


def test_a_toml_that_nobody_named_is_not_looked_for(copy_step: CopyStep, checkpoints: Path, refused: Refused) -> None:
    step = copy_step(OLD)
    as_toml(step, checkpoints)
    refused(step, errors.RunConfigMissing)


def make_config_newer(step: Path, seconds: float) -> None:
    at = (step / ".metadata").stat().st_mtime_ns + int(seconds * SECOND)
    os.utime(step.parent / "config.json", ns=(at, at))


def test_a_run_config_written_at_a_later_launch_is_used_and_not_called_independent(
    copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(NEW)
    make_config_newer(step, 3600)
    converted = convert(step)
    assert "written after this step" in converted.check("independence")["reason"]
    assert any("written after this step" in text for text in converted.warnings())
    make_config_newer(step, -3600)
    assert_verified(step, converted)


@pytest.mark.parametrize("seconds", [-86400, 0, 65])
def test_a_run_config_that_a_launcher_wrote_just_after_a_first_step_is_that_steps(
    seconds: float, copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(NEW)
    make_config_newer(step, seconds)
    converted = convert(step)
    assert converted.warnings() == []
    make_config_newer(step, 3600)
    assert_verified(step, converted)


def test_a_run_config_that_a_person_named_or_that_lies_in_the_step_is_the_steps(
    copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(NEW)
    make_config_newer(step, 3600)
    assert convert(step, run_config=step.parent / "config.json").warnings() == []
    shutil.copy2(step.parent / "config.json", step / "config.json")
    assert convert(step).warnings() == []
