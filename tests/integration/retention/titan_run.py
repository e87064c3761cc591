"""Owns a run as TorchTitan 0.3.0's retention sees it: its own CheckpointManager deletes, and looks for what to resume from.

Saves are copies of one that DCP made; which names there are is all that the manager looks at, `.metadata` and an index
within. Its background thread is replaced by a call of the same function, so that a purge has ended when it returns.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.checkpointer.base import purge_thread
from torchtitan.tools import filesystem

from converter.checkpoint import probe
from converter.common import names_on_disk
from converter.common.names_on_disk import INDEX
from daemon.config.settings import Settings
from daemon.rules import judge_step
from tests.unit.daemon.conftest import facts, run_facts, with_

EVERY = 10
"""Steps between two saves."""
MORE = 6
"""Saves past those that are kept."""


class TitanRun:
    """A run below `base` that keeps the latest `keep`, each step a copy of `saved`. Needs a process group."""

    def __init__(self, base: Path, saved: Path, keep: int):
        self.folder, self.keep, self._saved = base / "checkpoint", keep, saved
        self.folder.mkdir(parents=True)
        self._manager = CheckpointManager(
            CheckpointManager.Config(enable=True, folder="checkpoint", keep_latest_k=keep), dataloader=None, model_parts=[],
            optimizers=None, lr_schedulers=None, states={}, sd_adapter=None, base_folder=str(base),
        )  # fmt: skip
        self._manager.purge_queue.put(None)
        self._manager.purge_thread.join()

    def begin(self, step: int) -> None:
        """The save of a step begins: its DCP shards are there, its `.metadata` is not."""
        shutil.copytree(self._saved, self.folder / f"step-{step}", ignore=shutil.ignore_patterns(".metadata"))

    def finish(self, step: int) -> None:
        """The save of a step ends."""
        shutil.copy2(self._saved / ".metadata", self.folder / f"step-{step}")

    def purge(self) -> None:
        """As at the end of the manager's `save`, and until everything it wants deleted is."""
        self._manager._purge_stale_checkpoints()
        self._manager.purge_queue.put(None)
        purge_thread(self._manager.purge_queue, filesystem.rmtree)

    def resumes_from(self) -> int:
        """The step that a restarted trainer would load; -1: none."""
        return int(self._manager._find_load_step())

    def complete(self) -> list[int]:
        """Steps that are complete, as the scanner says."""
        numbers = [n for path in self.folder.iterdir() if (n := names_on_disk.step_number(path.name)) is not None]
        return sorted(n for n in numbers if probe.probe(self.folder / f"step-{n}")["state"] == "complete")

    def exported(self) -> list[int]:
        """Steps that have an export, in either place."""
        names = [
            path.name for folder in (self.folder, self.folder / names_on_disk.SUBDIRECTORY) for path in folder.glob("*")
        ]
        return sorted(n for name in names if (n := names_on_disk.published_step(name)) is not None)


@dataclass(frozen=True)
class Exports:
    """How the run's steps are exported: `output` as configured, or "none"; with an index, or a single file."""

    output: str
    has_index: bool = False

    def place(self, keep: int) -> str:
        """Where the daemon publishes: alongside or subdirectory."""
        settings = with_(Settings(), output=self.output, max_shard_size=1000)
        size = 1000 if self.has_index else 100
        return judge_step.place(facts(model_elements=size), run_facts(keep_latest_k=keep), settings)

    def publish(self, run: TitanRun, step: int) -> None:
        """An export of a step, where the daemon puts it."""
        below = self.place(run.keep) == "subdirectory"
        published = names_on_disk.published_path(run.folder, step, subdirectory=below)
        if published.exists():
            return
        published.mkdir(parents=True)
        for name in ("config.json", names_on_disk.MANIFEST, *([INDEX] if self.has_index else ["model.safetensors"])):
            (published / name).write_text("{}")


@dataclass(frozen=True)
class Moment:
    """What is there after a purge."""

    complete: list[int]
    exported: list[int]
    resumes_from: int


Convert = Callable[[TitanRun, int], None]
"""What the daemon does of a complete step before the next purge."""


def nothing(_run: TitanRun, _step: int) -> None:
    """No daemon."""


def saves(run: TitanRun, convert: Convert, *, in_flight: bool = True) -> Iterator[Moment]:
    """Six saves more than are kept, and what is there after the purge of each of the last six.

    `in_flight`: the purge comes while the step is being saved (async), else after it (sync).
    """
    for number in range(1, run.keep + MORE + 1):
        step = number * EVERY
        run.begin(step)
        if not in_flight:
            run.finish(step)
        run.purge()
        if number > run.keep:
            yield Moment(run.complete(), run.exported(), run.resumes_from())
        if in_flight:
            run.finish(step)
        for complete in run.complete():
            convert(run, complete)
