"""Owns the damage that tests do to private copies of steps and configs: a change to a file, a step saved anew."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

SECOND = 1_000_000_000


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a JSON file in place; its times stay."""
    facts = path.stat()
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def edit_metadata(step: Path, change: Callable[[Any], Any]) -> None:
    """Changes `.metadata` by torch's own classes; it is as old as the save's last file."""
    newest = max(path.stat().st_mtime_ns for path in (step / ".metadata", *step.glob("*.distcp")))
    metadata = pickle.loads((step / ".metadata").read_bytes())  # noqa: S301 - written by our own builders
    change(metadata)
    (step / ".metadata").write_bytes(pickle.dumps(metadata))
    os.utime(step / ".metadata", ns=(newest, newest))


def save(step: Path, states: dict[str, Any]) -> None:
    """A step written by DCP from this process, in place of what was there."""
    shutil.rmtree(step, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "torch.distributed is disabled": it is
        dcp.save(states, checkpoint_id=str(step))


def save_changed(step: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """The step's model saved again by this process, after a change to its tensors (names as in the checkpoint)."""
    from tests.support.checkpoints.reference import load_source

    states = load_source(step)
    change(states)
    save(step, states)


def make_newer(step: Path, seconds: float, name: str = "*.distcp") -> None:
    """Sets the mtime of DCP shards to `seconds` after that of `.metadata`."""
    at = (step / ".metadata").stat().st_mtime_ns + int(seconds * SECOND)
    for path in step.glob(name):
        os.utime(path, ns=(at, at))


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Flips one bit of a file; its times stay."""
    facts = path.stat()
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
