"""Runs trained with YaRN: converted where every reader reads the same of it, else refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.common import errors
from converter.families.qwen3 import model
from converter.run.base_assets import Search
from tests.support.checkpoints.cases import BY_NAME, SEQ_LEN
from tests.unit.converter.editing import edit_json
from tests.unit.converter.exported import assert_verified
from tests.unit.converter.running import Convert, Refused

CopyStep = Callable[..., Path]
NEW, OLD, MOE = BY_NAME["two_steps"], BY_NAME["one_rank"], BY_NAME["moe-0.3-fsdp-bfloat16"]


# YaRN
def as_yarn(step: Path, case: Any = NEW, length: int = SEQ_LEN // 4, **changes: Any) -> None:
    """The run trained with YaRN of factor 4 over 32 positions, or `length`; `changes` in every layer's rope."""
    scaling = {"scaling": "yarn", "rope_factor": 4.0, "original_seq_len": length} | changes

    def change(said: dict[str, Any]) -> None:
        said["training"]["seq_len"] = 4 * length
        for layer in said["model_spec"]["model"]["layers"]:
            layer["attention"]["rope"].update(scaling)

    edit_json(case.run_config(step.parents[2]), change)


def test_a_run_trained_with_yarn_is_said_to_be_that(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(NEW)
    as_yarn(step)
    error = refused(step, errors.ArchitectureMismatch)
    assert "rope_type: base default, run yarn" in error.what
    assert "YaRN" in error.hint
    assert "--architecture run" in error.hint


@pytest.mark.parametrize("case", [NEW, MOE], ids=["dense", "moe"])
def test_a_run_trained_with_yarn_converts_and_older_readers_find_its_keys(
    case: Any, copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(case)
    as_yarn(step, case)
    converted = convert(step, architecture="run", allow_routing_drift=True)
    assert converted.check("forward")["verdict"] == "passed"
    written = json.loads((converted.published / "config.json").read_text())
    yarn = {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SEQ_LEN // 4,
        "attention_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
    }  # fmt: skip
    assert written["rope_scaling"] == yarn
    assert written["rope_parameters"] == yarn | {"rope_theta": 1_000_000.0}
    assert (written["rope_theta"], written["max_position_embeddings"]) == (1_000_000.0, SEQ_LEN)
    assert_verified(step, converted)


@pytest.mark.parametrize("length", [SEQ_LEN // 4, 4096])
@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings", "attention_factor"])
def test_a_yarn_that_is_written_wrong_is_seen_by_two_checks(
    key: str, length: int, copy_step: CopyStep, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = copy_step(NEW)
    as_yarn(step, length=length)
    rightly = model.with_architecture

    def wrongly(*arguments: Any) -> dict[str, Any]:
        said = rightly(*arguments)
        said["rope_parameters"][key] *= 2
        return said

    monkeypatch.setattr(model, "with_architecture", wrongly)
    with pytest.raises(errors.ExportMismatch, match="says another model"):
        convert(step, architecture="run")
    monkeypatch.setattr(model, "check_written", lambda *_, **__: None)
    with pytest.raises(errors.ForwardMismatch):
        convert(step, architecture="run")


def test_base_assets_with_the_same_yarn_need_no_option(
    copy_step: CopyStep, base_assets: Callable[..., Path], convert: Convert
) -> None:
    step = copy_step(NEW)
    as_yarn(step)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SEQ_LEN // 4}
    base = base_assets(NEW, drop=("rope_parameters",), rope_theta=1e6, rope_scaling=yarn | {"attention_factor": 1.0})
    assert convert(step, search=Search(hf_assets=base)).check("architecture")["verdict"] == "passed"


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({}, "rope_attention_factor: base 1.138"),
        ({"attention_factor": 1.0, "truncate": False}, "rope_truncate: base False, run True"),
        ({"attention_factor": "much"}, "rope_factor: base None, run 4.0"),
    ],
)
def test_base_assets_whose_yarn_is_another_are_another_model(
    own: dict[str, Any], said: str, copy_step: CopyStep, base_assets: Callable[..., Path], refused: Refused
) -> None:
    step = copy_step(NEW)
    as_yarn(step)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SEQ_LEN // 4}
    base = base_assets(NEW, drop=("rope_parameters",), rope_theta=1e6, rope_scaling=yarn | own)
    assert said in refused(step, errors.ArchitectureMismatch, search=Search(hf_assets=base)).what


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_factor": 2.0}, "YaRN of factor 2 over 32 positions"),
        ({"truncate": False}, "not rounded"),
        ({"scaling": "llama"}, "rope scaling 'llama'"),
    ],
)
def test_a_scaling_that_some_reader_takes_for_another_is_refused_by_its_name(
    changes: dict[str, Any], named: str, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(NEW)
    as_yarn(step, **changes)
    assert named in refused(step, errors.UnsupportedModel, architecture="run").what


def test_layers_with_another_yarn_each_are_refused(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(NEW)
    as_yarn(step)
    edit_json(
        NEW.run_config(step.parents[2]),
        lambda said: said["model_spec"]["model"]["layers"][1]["attention"]["rope"].update(beta_slow=2.0),
    )
    assert "more than one rope scaling" in refused(step, errors.UnsupportedModel, architecture="run").what


def test_a_yarn_of_factor_one_is_none(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(NEW)
    as_yarn(step, rope_factor=1.0)
    assert convert(step).check("architecture")["verdict"] == "passed"
