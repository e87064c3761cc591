"""Owns the last word on an export: its tensors against `dcp.load` and TorchTitan's own adapter. Nothing of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torchtitan.models.qwen3 import Qwen3StateDictAdapter

from tests.support.checkpoints import reference
from tests.support.checkpoints.cases import Case


def assert_case(case: Case, step: Path, folder: Path) -> None:
    """`folder` holds what `step`, a save of `case`, gives."""
    _assert_same(reference.hf_weights(case, reference.weights(case, step)), folder)


def assert_run(config: Any, step: Path, folder: Path) -> None:
    """`folder` holds what `step`, saved by torchtitan 0.3.0 in float32 with this model config, gives."""
    _assert_same(Qwen3StateDictAdapter(config, None).to_hf(reference.load_source(step)), folder)


def _assert_same(expected: dict[str, torch.Tensor], folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    if json.loads((folder / "config.json").read_text())["tie_word_embeddings"]:
        expected.pop("lm_head.weight", None)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)
