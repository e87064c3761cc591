"""Owns every name that we create (published, staging, set-aside and lock), and decides which names are steps.

Uses only the standard library. TorchTitan up to 0.3.0 takes every name that contains `step-<digits>` for a checkpoint,
counts it against `keep_latest_k` and may delete it. So only the published name contains that.
"""

import os
import re
from pathlib import Path

MANIFEST = "conversion.json"
SIGNATURE = "model.sig"
"""What a `sign` hook leaves: over all the rest, so that no manifest can list it."""
SUBDIRECTORY = "hf"
"""Folder of a run that holds published directories where siblings would hurt training."""
PREFIX = ".dcp2hf-"
"""Begins every name of ours that is not published."""

_STEP = re.compile(r"step-(0|[1-9][0-9]{0,17})")
"""ASCII digits alone, and no more of them than SQLite's integers hold: other names are nobody's steps."""
_ALMOST = re.compile(r"step[-_]?\d+", re.IGNORECASE)
_OURS = re.compile(r"\.dcp2hf-(0|[1-9][0-9]{0,17})\.(?:([0-9a-f]{16})\.(staging|replaced|discarded)|lock(?:\..*)?)")


def step_number(name: str) -> int | None:
    """N of a directory called exactly `step-N`, else None (`step-N-hf`, `tmp_step-N`, `step-007`)."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def is_almost_step(name: str) -> bool:
    """Whether a name is nearly a step's (`step-0010`, `step_10`): its directory is neither a step nor a folder of runs."""
    return _ALMOST.fullmatch(name) is not None


def contains_step(name: str) -> bool:
    """Whether a step's name, or nearly one, is part of a name (`tmp_step-5`, `step-10.bak`)."""
    return _ALMOST.search(name) is not None


def published_name(step: int) -> str:
    """`step-N-hf`."""
    return f"step-{step}-hf"


def published_step(name: str) -> int | None:
    """N of a directory called exactly `step-N-hf`, else None."""
    return step_number(name[:-3]) if name.endswith("-hf") else None


def published_path(run: Path, step: int, *, subdirectory: bool) -> Path:
    """Where a step of the checkpoint folder `run` is published."""
    return (run / SUBDIRECTORY if subdirectory else run) / published_name(step)


def staging_name(step: int, token: str) -> str:
    """The directory an export grows in, beside the published one; `token` is its lock's."""
    return f"{PREFIX}{step}.{token}.staging"


def replaced_name(step: int, token: str) -> str:
    """Where an older published directory waits where the file system cannot swap two names."""
    return f"{PREFIX}{step}.{token}.replaced"


def discarded_name(step: int, token: str) -> str:
    """What a directory of ours is renamed to before it is removed: nobody publishes half of it. `token` is new."""
    return f"{PREFIX}{step}.{token}.discarded"


def kept_name(step: int, token: str) -> str:
    """Where somebody's files go that had the name of ours: a directory that was swapped out and cannot be put back, or files
    of a replaced export that a person had edited. Nothing removes it."""
    return f"{PREFIX}{step}.{token}.foreign"


def lock_name(step: int) -> str:
    """The lock of one published name, in the folder that holds it."""
    return f"{PREFIX}{step}.lock"


def new_token() -> str:
    """16 hex digits that tell one attempt's files from another's."""
    return os.urandom(8).hex()  # `secrets` would load `random` into every scanner


def parse_ours(name: str) -> tuple[int, str | None, str] | None:
    """(step, token, "staging" | "replaced" | "discarded" | "lock") of a name of ours, else None.

    The token is None for locks (it stands in the file).
    """
    match = _OURS.fullmatch(name)
    return (int(match[1]), match[2], match[3] or "lock") if match else None


def run_name(root: Path, run: Path) -> str:
    """A run's name in logs: its path relative to the root, without a trailing `/checkpoint`.

    Of a root that is itself a run: the folder's name, or its parent's if that is `checkpoint`; of one that holds just its
    `checkpoint`: the root's own.
    """
    if run == root:
        return run.parent.name if run.name == "checkpoint" else run.name
    relative = os.path.relpath(run, root)
    head, _, tail = relative.rpartition("/")
    if tail != "checkpoint":
        return relative
    return head or root.name or relative


INDEX = "model.safetensors.index.json"
