"""Owns a soak as a whole: the place it is played in, its actors at the same time, the wait for the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.robustness.soak.accidents import Accidents
from tests.robustness.soak.history import History
from tests.robustness.soak.model import missing
from tests.robustness.soak.person import Person
from tests.robustness.soak.saves import Template
from tests.robustness.soak.schedule import RUNS, Plan, Run
from tests.robustness.soak.trainer import Trainer
from tests.robustness.soak.watcher import Watcher
from tests.support.checkpoints.cases import BY_NAME

SMALL, A_STEP = 192, 1
"""Size of the small file system in MiB: so much, and so much for each step of the soak (every fifth or so is saved there,
and takes 3 MiB and 1 MiB more as an export). A conversion wants 64 MiB to be free beside its export."""
PATIENCE = 240.0
"""Seconds without a publication after which nothing more is waited for: a lock of another host is stale after 90."""
QUIET = 8.0
"""Seconds for which daemons run on when all is there: what dead ones left is swept at a rescan."""


class Ended(Exception):
    """The soak is broken off: what every actor meets at its next wait."""


def play(plan: Plan, place: Path, checkpoints: Path, history: History) -> None:
    """Plays the plan below `place`, an empty folder, and ends what it started, whatever happens."""
    broken_off = threading.Event()

    def wait(seconds: float) -> None:
        if broken_off.wait(seconds):
            raise Ended

    history.record("begun", seed=plan.seed, steps=plan.steps, place=str(place))
    for root in ("full", "plain", "small"):
        (place / root).mkdir()
    with _small(place / "small", SMALL + A_STEP * plan.steps, history) as has_small:
        accidents = Accidents(place, history, wait)
        trainers = [_trainer(run, place, checkpoints, history, wait) for run in RUNS]
        watcher = Watcher([trainer.checkpoint for trainer in trainers], history, accidents.look_after)
        acts: list[Callable[[], None]] = [partial(accidents.play, plan.accidents)]
        for trainer in trainers:
            name, person = trainer.run.name, Person(trainer.checkpoint, place, history, wait)
            trained = tuple(act for act in plan.trainers[name] if has_small or act.kind != "full_disk")
            acts += [partial(trainer.play, trained), partial(person.play, plan.person[name])]
        watcher.start()
        try:
            accidents.begin()
            _at_once(acts, broken_off)
            _await_the_end(history, accidents)
            accidents.end()
        finally:
            accidents.kill_all()
            watcher.end()
        for trainer in trainers:
            trainer.finish()
    history.record("ended")


def _trainer(run: Run, place: Path, checkpoints: Path, history: History, wait: Callable[[float], None]) -> Trainer:
    case = BY_NAME[run.case]
    config = case.run_config(checkpoints).read_bytes()
    return Trainer(run, place / run.root, Template.of(case, checkpoints), config, history, wait)


def _at_once(acts: list[Callable[[], None]], broken_off: threading.Event) -> None:
    """Each in a thread. An exception of one breaks off the others, and is raised when all have ended."""
    failed: list[BaseException] = []

    def do(act: Callable[[], None]) -> None:
        try:
            act()
        except Ended:
            pass
        except BaseException as error:
            failed.append(error)
            broken_off.set()

    threads = [threading.Thread(target=do, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        broken_off.set()
        for thread in threads:
            thread.join()
        raise
    if failed:
        raise failed[0]


def _await_the_end(history: History, accidents: Accidents) -> None:
    """Until all that is whole is published and nothing is converted, or nothing more comes."""
    waiting, ends = -1, 0.0
    while (left := len(missing(history.records()))) or not accidents.are_idle():
        if left != waiting:
            waiting, ends = left, time.monotonic() + PATIENCE
        if time.monotonic() > ends:
            break
        time.sleep(1.0)
    time.sleep(QUIET)


@contextmanager
def _small(folder: Path, size: int, history: History) -> Iterator[bool]:
    """A file system of `size` MiB at `folder`, where that is possible (in a mount namespace of our own: see `__main__`)."""
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}m", "soak", str(folder)], capture_output=True, text=True
        )
        mounted = done.returncode == 0
    if not mounted:
        history.record("left_out", what="a full disk (needs root and mount)")
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
