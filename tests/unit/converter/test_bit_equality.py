"""Each of the 36 runs, converted: every bit, every file and every logit is what TorchTitan and transformers say it is."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from converter.publish.manifest import ASSET_NAMES
from tests.support.checkpoints import reference
from tests.support.checkpoints.cases import CASES, SEQ_LEN, Case
from tests.unit.converter.running import Convert, Converted

OLDER_KEYS = {"rope_theta", "rope_scaling", "torch_dtype"}
"""What transformers 4 reads and 5 does not write; of a MoE, num_experts as well."""


@dataclass
class Exported:
    """A case and its conversion, with what tests of both compare."""

    case: Case
    out: Path
    converted: Converted
    saved: Path
    """Where transformers saves the loaded model, once."""

    @property
    def folder(self) -> Path:
        return self.converted.published

    @cached_property
    def source(self) -> reference.Weights:
        """Of the checkpoint, by `dcp.load`, under torchtitan 0.3.0's names."""
        return reference.weights(self.case, self.case.step(self.out))

    @cached_property
    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype="auto", experts_implementation="eager")

    @cached_property
    def again(self) -> Path:
        """The folder that `save_pretrained` writes for the model as loaded."""
        AutoModelForCausalLM.from_pretrained(self.folder, dtype="auto").save_pretrained(self.saved)
        return self.saved

    def json(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / name).read_text()))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def exported(request: pytest.FixtureRequest, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    case = request.param
    folder = tmp_path_factory.mktemp(case.name)
    return Exported(case, checkpoints, Convert()(case.step(checkpoints), output=folder), folder / "saved")


def test_every_tensor_is_the_sources_cast_to_the_runs_dtype(exported: Exported) -> None:
    expected = reference.hf_weights(exported.case, exported.source)
    found = load_file(exported.folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == getattr(torch, exported.case.dtype)
        assert torch.equal(tensor.view(torch.uint8), expected[name].contiguous().view(torch.uint8)), name


def test_the_logits_are_torchtitans(exported: Exported) -> None:
    tokens = reference.some_tokens(exported.case)
    with torch.no_grad():
        found = exported.model.float()(tokens, use_cache=False).logits
    expected = reference.forward(reference.titan_model(exported.case, exported.source), tokens)
    clear = expected.clear()
    assert clear.float().mean() > 0.9
    assert (found - expected.logits).abs()[clear].max() < 1e-4
    assert expected.logits.std() > 0.1
    assert exported.converted.result["figures"]["near_ties"] <= 3


def test_the_tokenizer_is_the_runs(exported: Exported) -> None:
    ours = AutoTokenizer.from_pretrained(exported.folder)
    theirs = AutoTokenizer.from_pretrained(exported.case.tokenizer(exported.out))
    text = "Aspirin is <SMILES>CC(=O)Oc1ccccc1C(=O)O</SMILES>.<|im_end|>\n"
    assert len(ours) == exported.case.known_tokens
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.get_vocab() == theirs.get_vocab()


def test_the_weights_are_byte_for_byte_what_save_pretrained_writes(exported: Exported) -> None:
    assert (exported.folder / "model.safetensors").read_bytes() == (exported.again / "model.safetensors").read_bytes()


def test_the_config_is_what_save_pretrained_writes_and_the_older_readers_keys(exported: Exported) -> None:
    written, saved = exported.json("config.json"), json.loads((exported.again / "config.json").read_text())
    added = {key: value for key, value in written.items() if key not in saved}
    assert {key: value for key, value in written.items() if key in saved} == saved
    assert added.keys() == OLDER_KEYS | ({"num_experts"} if exported.case.moe else set())
    assert added["rope_theta"] == saved["rope_parameters"]["rope_theta"] == 1_000_000
    assert added["rope_scaling"] is None
    assert added["torch_dtype"] == saved["dtype"] == exported.case.dtype
    if exported.case.moe:
        assert added["num_experts"] == exported.case.dims.experts


def test_the_config_has_the_runs_vocabulary_length_and_dtype(exported: Exported) -> None:
    written, dims = exported.json("config.json"), exported.case.dims
    assert written["vocab_size"] == dims.rows
    assert written["max_position_embeddings"] == SEQ_LEN
    assert written["tie_word_embeddings"] == dims.tied
    assert written["architectures"] == ["Qwen3MoeForCausalLM" if exported.case.moe else "Qwen3ForCausalLM"]


def test_the_tokenizers_files_are_copied_byte_for_byte_and_the_generation_config_is_the_bases(
    exported: Exported,
) -> None:
    theirs = exported.case.tokenizer(exported.out)
    copied = {name for name in ASSET_NAMES if (theirs / name).exists()}
    for name in copied:
        assert (exported.folder / name).read_bytes() == (theirs / name).read_bytes()
    base = exported.case.base_assets(exported.out) / "generation_config.json"
    assert (exported.folder / base.name).read_bytes() == base.read_bytes()
    other = {"config.json", "generation_config.json", "conversion.json", "model.safetensors"}
    assert {path.name for path in exported.folder.iterdir()} == copied | other


def test_modes_follow_the_umask(exported: Exported) -> None:
    os.umask(umask := os.umask(0))
    assert stat.S_IMODE(exported.folder.stat().st_mode) == 0o777 & ~umask
    assert {stat.S_IMODE(path.stat().st_mode) for path in exported.folder.iterdir()} == {0o666 & ~umask}


def test_the_manifest_lists_every_file_and_each_check_of_this_kind_of_run(exported: Exported) -> None:
    manifest = exported.converted.manifest
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == {
        path.name: path.stat().st_size for path in exported.folder.iterdir() if path.name != "conversion.json"
    }
    with safe_open(exported.folder / "model.safetensors", "pt") as file:
        assert manifest["tensors"] == len(file.keys())
    assert manifest["parameters"] == exported.model.num_parameters()
    assert (manifest["step"], manifest["dtype"], manifest["accepted"]) == (2, exported.case.dtype, {})
    verdicts = {check["name"]: check["verdict"] for check in manifest["checks"]}
    passed = {name for name, verdict in verdicts.items() if verdict == "passed"}
    assert {"complete", "names", "plan", "finite", "checksums", "forward", "read_back", "vocabulary"} <= passed
    assert ("tied_weights" in passed) == exported.case.dims.tied
    assert ("balancing_bias" in passed) == exported.case.moe
    recorded_all = exported.case.config == "0.3"
    assert (verdicts.get("independence") != "not run") == recorded_all
