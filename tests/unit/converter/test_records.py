"""Run configs of other origins: TorchTitan's main branch, a TOML of 0.2, and one that is newer than the step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.common import errors
from tests.support.checkpoints.cases import BY_NAME, SEQ_LEN
from tests.unit.converter.dialects import to_main
from tests.unit.converter.editing import SECOND, edit_json
from tests.unit.converter.exported import assert_same_weights, assert_verified, weights
from tests.unit.converter.running import Convert, Refused

CopyStep = Callable[..., Path]
NEW, OLD, MOE = BY_NAME["two_steps"], BY_NAME["one_rank"], BY_NAME["moe-0.3-fsdp-bfloat16"]


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


def test_a_run_config_written_at_a_later_launch_is_used_and_warned_of(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(NEW)
    make_config_newer(step, 3600)
    (warned,) = (text for text in convert(step).warnings() if "written after this step" in text)
    assert str(step.parent / "config.json") in warned


def test_when_a_run_config_was_written_changes_no_byte_of_an_export(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(NEW)
    before = (convert(step).published / "conversion.json").read_bytes()
    make_config_newer(step, 3600)
    converted = convert(step)
    assert (converted.published / "conversion.json").read_bytes() == before
    make_config_newer(step, -3600)
    assert_verified(step, converted)


def unrelated(warnings: list[str]) -> list[str]:
    """Warnings but for those of what the base assets' generation config does."""
    return [text for text in warnings if not text.startswith("generation_config.json")]


@pytest.mark.parametrize("seconds", [-86400, 0, 65])
def test_a_run_config_that_a_launcher_wrote_just_after_a_first_step_is_that_steps(
    seconds: float, copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(NEW)
    make_config_newer(step, seconds)
    converted = convert(step)
    assert unrelated(converted.warnings()) == []
    make_config_newer(step, 3600)
    assert_verified(step, converted)


def test_a_run_config_that_a_person_named_or_that_lies_in_the_step_is_the_steps(
    copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(NEW)
    make_config_newer(step, 3600)
    assert unrelated(convert(step, run_config=step.parent / "config.json").warnings()) == []
    shutil.copy2(step.parent / "config.json", step / "config.json")
    assert unrelated(convert(step).warnings()) == []
