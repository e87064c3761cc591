"""Owns what the end-to-end tests share: real daemons, roots of real runs, and one root that two daemons converted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from converter.common import names_on_disk
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.daemon.running import Daemon, daemons, dcp2hfd

Start = Callable[..., Daemon]
PATIENCE = 150.0
"""Seconds for what takes ten on a machine that does nothing else."""
TWO_STEPS, ONE_STEP = BY_NAME["two_steps"], BY_NAME["one_rank"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `dcp2hfd run ARGUMENTS` with its ledger in `state`."""
    with daemons() as begin:
        yield lambda state, *arguments, **environ: begin(
            "-m", "daemon", "run", *arguments, DCP2HF_STATE_DIR=str(state), **environ
        )


@dataclass(frozen=True)
class Once:
    """A root that two `--once` converted at the same time, with one ledger."""

    root: Path
    state: Path
    daemons: tuple[Daemon, ...]
    codes: tuple[int, ...]

    def events(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [said for daemon in self.daemons for said in daemon.events(event, **fields)]

    def copy(self, to: Path) -> Path:
        """A private copy of the root, as `cp -a` makes it: what is published there is up to date, no ledger knows it."""
        return Path(shutil.copytree(self.root, to / "root"))


@pytest.fixture(scope="session")
def once(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Runs `a` (two steps, one incomplete, foreign and suspect each) and `b` (one step, keep_latest_k 2). Read only."""
    folder = tmp_path_factory.mktemp("once")
    root = folder / "root"
    run = root / "a" / "checkpoint"
    shutil.copytree(TWO_STEPS.checkpoint(checkpoints), run)
    shutil.copytree(run / "step-2", run / "step-6", ignore=shutil.ignore_patterns(".metadata"))
    shutil.copytree(run / "step-2", run / "step-8")
    (run / "step-8-hf").mkdir()
    (run / "step-8-hf" / "thesis.tex").write_text("mine")
    shutil.copytree(run / "step-2", run / "step-10")
    make_shards_newer(run / "step-10")
    shutil.copytree(ONE_STEP.checkpoint(checkpoints), root / "b" / "checkpoint")
    edit(root / "b" / "checkpoint" / "config.json", keep_latest_k=2)
    with daemons() as begin:
        command = ("-m", "daemon", "run", "--once", root)
        both = tuple(begin(*command, DCP2HF_STATE_DIR=str(folder / "state")) for _ in range(2))
        codes = tuple(daemon.end(PATIENCE) for daemon in both)
    return Once(root, folder / "state", both, codes)


def make_shards_newer(step: Path, seconds: int = 60) -> None:
    """mtimes as `cp -r` may leave them: `.metadata` first, then the DCP shards, over a slow line."""
    at = step.joinpath(".metadata").stat().st_mtime_ns + seconds * 1_000_000_000
    for shard in step.glob("*.distcp"):
        os.utime(shard, ns=(at, at))


def edit(config: Path, **checkpoint: Any) -> None:
    """Changes what a run config says of its checkpoints."""
    said = json.loads(config.read_text())
    said["checkpoint"] |= checkpoint
    config.write_text(json.dumps(said))


def status(state: Path) -> dict[str, Any]:
    """`dcp2hfd status --json`."""
    return dict(json.loads(dcp2hfd("status", "--json", state=state)))


def steps(state: Path) -> dict[str, dict[str, Any]]:
    """Of `status --json`, every step by `run/N`."""
    return {f"{run['run']}/{step['step']}": step for run in status(state)["runs"] for step in run["steps"]}


def states(state: Path) -> dict[str, str]:
    return {name: step["state"] for name, step in steps(state).items()}


def published(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and mtime of every published directory below `root`, by its path there."""
    found = sorted(path for path in root.rglob("step-*-hf") if names_on_disk.published_step(path.name) is not None)
    return {str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def ours(root: Path) -> list[str]:
    """Names of ours below `root` that are no published directory."""
    return [str(path) for path in root.rglob("*") if path.name.startswith(names_on_disk.PREFIX)]
