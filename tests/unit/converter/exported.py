"""Owns what tests of exports compare: the weights of one, another's, and `verify`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from converter.run.options import Options
from converter.verify import verify
from tests.unit.converter.running import Converted


def weights(converted: Converted) -> dict[str, torch.Tensor]:
    return dict(load_file(converted.published / "model.safetensors"))


def assert_same_weights(one: Converted, other: dict[str, torch.Tensor]) -> None:
    found = weights(one)
    assert found.keys() == other.keys()
    assert all(torch.equal(found[name], other[name]) for name in other)


def assert_verified(step: Path, converted: Converted) -> None:
    assert verify(step, converted.published, int(step.name[5:]), Options()).equal
