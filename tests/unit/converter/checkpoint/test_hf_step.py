"""A step that TorchTitan saved in HF form becomes a whole HF directory: the same weights in the run's dtype, and its assets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from converter.common import errors
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.editing import edit_json, flip
from tests.unit.converter.running import Convert, Refused

CopyStep = Callable[..., Path]
NAMES = ["last_in_hf", "last_in_hf_one_file", "last_in_hf_moe"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_completed_with_the_same_weights_and_loads(name: str, copy_step: CopyStep, convert: Convert) -> None:
    case = BY_NAME[name]
    step = copy_step(case)
    converted = convert(step)
    saved = {key: tensor for path in step.glob("model-*.safetensors") for key, tensor in load_file(path).items()}
    found = load_file(converted.published / "model.safetensors")
    dtype = getattr(torch, case.dtype)
    if case.dims.tied:
        saved.pop("lm_head.weight", None)
    assert found.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[key].to(dtype)) and tensor.dtype == dtype for key, tensor in found.items())
    assert AutoModelForCausalLM.from_pretrained(converted.published, dtype="auto").dtype == dtype
    assert len(AutoTokenizer.from_pretrained(converted.published)) == case.known_tokens
    assert converted.check("checksums")["verdict"] == "not run"
    assert converted.check("forward")["verdict"] == "passed"


def test_settings_of_a_dcp_do_nothing_for_a_step_in_hf_form_and_that_is_said(
    copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(BY_NAME["last_in_hf_one_file"])
    plain = convert(step)
    before = (plain.published / "conversion.json").read_bytes()
    asked = convert(step, untie=True, ignore_tensors=("model.*",))
    assert (asked.published / "conversion.json").read_bytes() == before
    said = [text for text in asked.warnings() if text not in plain.warnings()]
    assert [text.partition(" ")[0] for text in said] == ["--ignore-tensors", "--untie"]
    assert all("HF form" in text for text in said)


def test_a_moe_in_hf_form_says_that_its_bias_was_not_checked(copy_step: CopyStep, convert: Convert) -> None:
    bias = convert(copy_step(BY_NAME["last_in_hf_moe"])).check("balancing_bias")
    assert bias["verdict"] == "not run"
    assert bias["reason"]


def test_values_that_are_no_numbers_are_found(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(BY_NAME["last_in_hf_one_file"])
    path = step / "model-00001-of-00001.safetensors"
    for bit in range(5, 8):  # float32: exponent and sign of the last element
        if not path.read_bytes()[-1] >> bit & 1:
            flip(path, path.stat().st_size - 1, bit)
    for bit in range(8):
        for position in (1, 2):
            at = path.stat().st_size - position
            if not path.read_bytes()[at] >> bit & 1:
                flip(path, at, bit)
    refused(step, errors.NonFiniteTensor)


@pytest.mark.parametrize("change", [
    lambda said: said["weight_map"].update({"model.norm.weight": "../model.safetensors"}),
    lambda said: said["weight_map"].update({"model.norm.weight": "/etc/passwd"}),
    lambda said: said["weight_map"].update({"model.norm.weight": 5}),
    lambda said: said.update(weight_map=[]),
    lambda said: said.pop("weight_map"),
])  # fmt: skip
def test_an_index_that_leads_elsewhere_or_nowhere_is_not_followed(
    change: Callable[[dict[str, object]], object], copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(BY_NAME["last_in_hf"])
    edit_json(step / "model.safetensors.index.json", change)
    refused(step, errors.StepIncomplete)


def header_of(path: Path) -> dict[str, dict[str, object]]:
    with path.open("rb") as file:
        return dict(json.loads(file.read(int.from_bytes(file.read(8), "little"))))


@pytest.mark.parametrize("change", [
    {"dtype": "F128"}, {"dtype": 5}, {"shape": [-1]}, {"shape": "72"}, {"data_offsets": [0]}, {"data_offsets": [8, 0]},
    {"data_offsets": None}, {"shape": [10**9, 10**9]}, {"shape": ["x"]},
], ids=str)  # fmt: skip
def test_a_malformed_entry_is_one_clear_error(change: dict[str, object], copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(BY_NAME["last_in_hf_one_file"])
    path = step / "model-00001-of-00001.safetensors"
    header = header_of(path)
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header["model.norm.weight"] |= change
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob[8 + length :])
    with pytest.raises((errors.StepDamaged, errors.StepIncomplete)):
        refused.convert(step)
