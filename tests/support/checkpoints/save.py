"""Owns saving from one process, inside a test: a step with whatever tensors the test has made."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp


def save_alone(states: Mapping[str, Any], step: Path) -> None:
    """Write `states` (FQN to tensor, and whatever else) to `step` as a run of one rank does.

    Over an existing step it is what a resumed run does: shards rewritten in place, `.metadata` replaced last.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "torch.distributed is disabled": it is
        dcp.save(dict(states), checkpoint_id=str(step), no_dist=True)
