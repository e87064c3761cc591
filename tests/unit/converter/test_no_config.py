"""Base assets without config.json, as TorchTitan's README downloads them: the config is made of the run's record, or asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from converter.common import errors
from converter.run.base_assets import Search
from converter.run.options import Options
from converter.verify import verify
from tests.support.checkpoints.cases import BY_NAME, ROPE_THETA, SEQ_LEN
from tests.unit.converter.editing import edit_json
from tests.unit.converter.running import Convert, Refused

CopyStep = Callable[..., Path]
BaseAssets = Callable[..., Path]
TOLD = (
    "dense_tied-0.3-2x2-float32",
    "dense_untied-0.3-fsdp-bfloat16",
    "moe-0.3-2x2-float32",
)
"""Records of 0.3."""
FIGURES, UNTOLD = "moe-0.2-2x2-float32", "one_rank"
"""Records of 0.2 of a flavor that is not TorchTitan's, with dimensions and without."""


@pytest.fixture
def bare(base_assets: BaseAssets) -> Callable[[str], Search]:
    """Base assets of a case without their config.json and generation_config.json."""

    def without(name: str) -> Search:
        folder = base_assets(BY_NAME[name])
        (folder / "config.json").unlink()
        (folder / "generation_config.json").unlink(missing_ok=True)
        return Search(hf_assets=folder)

    return without


@pytest.mark.parametrize("name", TOLD)
def test_the_config_is_made_of_what_the_run_recorded_and_is_the_base_models(
    name: str, bare: Callable[[str], Search], copy_step: CopyStep, convert: Convert, checkpoints: Path
) -> None:
    case = BY_NAME[name]
    step = copy_step(case)

    done = convert(step, search=bare(name), architecture="run")

    assert done.check("forward")["verdict"] == "passed"
    assert done.check("architecture")["verdict"] == "accepted"
    assert "made from what the run recorded" in done.check("architecture")["reason"]
    assert "made from what the run recorded" in done.check("independence")["reason"]
    config, base = AutoConfig.from_pretrained(done.published), AutoConfig.from_pretrained(case.base_assets(checkpoints))
    keys = [
        *("num_hidden_layers", "hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
        *("tie_word_embeddings", "hidden_act", "attention_bias", "eos_token_id", "model_type"),
        *(("num_experts", "num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size") if case.moe else ()),
    ]
    assert {key: getattr(config, key) for key in keys} == {key: getattr(base, key) for key in keys}
    assert config.rope_parameters["rope_theta"] == ROPE_THETA
    assert config.max_position_embeddings == SEQ_LEN
    tokenizer = AutoTokenizer.from_pretrained(done.published)
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    said = json.loads((done.published / "config.json").read_text())
    assert said["rope_theta"] == ROPE_THETA
    model = AutoModelForCausalLM.from_pretrained(done.published)
    assert model.generation_config.eos_token_id == config.eos_token_id


@pytest.mark.parametrize(("name", "flavor"), [(UNTOLD, "debugmodel"), (FIGURES, "debugmodel_moe")])
def test_a_record_of_02_is_told_by_its_registered_flavor(
    name: str, flavor: str, bare: Callable[[str], Search], copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(BY_NAME[name])
    edit_json(BY_NAME[name].run_config(step.parents[2]), lambda run: run["model"].update(flavor=flavor))

    done = convert(step, search=bare(name), architecture="run")

    assert done.check("forward")["verdict"] == "passed"
    config = AutoConfig.from_pretrained(done.published)
    assert config.rope_parameters["rope_theta"] == ROPE_THETA
    assert config.rms_norm_eps == 1e-6


def test_such_an_export_verifies(bare: Callable[[str], Search], copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(BY_NAME[TOLD[0]])
    search = bare(TOLD[0])
    done = convert(step, search=search, architecture="run")

    verdict = verify(step, done.published, int(step.name.partition("-")[2]), Options(search=search))

    assert verdict.equal, vars(verdict)


def test_without_being_asked_for_it_the_error_says_both_ways_out(
    bare: Callable[[str], Search], copy_step: CopyStep, refused: Refused
) -> None:
    error = refused(copy_step(BY_NAME[TOLD[0]]), errors.AssetsMissing, search=bare(TOLD[0]))
    assert "no config.json" in error.what
    assert "--architecture run" in error.hint
    assert "download_hf_assets.py --assets config" in error.hint


@pytest.mark.parametrize(
    ("name", "drop", "lacks"),
    [
        (UNTOLD, None, "rope_theta, rms_norm_eps, tie_word_embeddings"),
        (FIGURES, None, "rope_theta, rms_norm_eps, norm_topk_prob"),
        (TOLD[0], lambda model: model["layers"][0]["attention"]["rope"].pop("theta"), "rope_theta"),
        (TOLD[0], lambda model: model.pop("enable_weight_tying"), "tie_word_embeddings"),
        (TOLD[2], lambda model: model["layers"][0]["moe"]["router"].pop("top_k"), "num_experts_per_tok"),
    ],
)
def test_a_record_that_does_not_tell_the_whole_architecture_is_not_filled_up(
    name: str, drop: Callable[[Any], Any] | None, lacks: str, bare: Callable[[str], Search], copy_step: CopyStep,
    refused: Refused,
) -> None:  # fmt: skip
    step = copy_step(BY_NAME[name])
    if drop is not None:
        edit_json(BY_NAME[name].run_config(step.parents[2]), lambda run: drop(run["model_spec"]["model"]))
    error = refused(step, errors.AssetsMissing, search=bare(name), architecture="run")
    assert lacks in error.what
    assert "download_hf_assets.py" in error.hint
