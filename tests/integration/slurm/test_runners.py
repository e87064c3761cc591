"""Which runner a root's conversions go to, how many at a time, and that one which nobody asks for takes no memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from daemon.config.settings import Settings
from daemon.config.slurm_settings import Slurm
from daemon.host import logs
from daemon.ledger.ledger import Ledger
from daemon.runners.counters import Tally
from daemon.runners.select import Runners, Slots
from tests.unit.daemon.ledger.test_ledger import a_job
from tests.unit.daemon.running import REPOSITORY

JOBS = Settings(runner="slurm", workers=1, slurm=Slurm(shared="/s", max_queued=2))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path)


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def runners(ledger: Ledger, tally: Tally) -> Runners:
    return Runners(ledger, logs.logger(), tally, clock=lambda: 0.0)


def test_a_daemon_without_jobs_imports_nothing_of_slurm() -> None:
    code = "import sys, daemon.service; sys.exit(any(name.startswith('daemon.runners.slurm.') for name in sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_each_runner_has_its_own_slots(runners: Runners) -> None:
    local, slurm = runners.of(Settings()), runners.of(JOBS)
    slots = Slots(runners, JOBS, [local, slurm])

    assert (slots.has_one(local), slots.has_one(slurm), slots.are_gone) == (False, True, False)
    slots.take(slurm, 1)
    assert (slots.has_one(slurm), slots.are_gone) == (False, True)


def test_with_one_runner_its_slots_are_all_there_are(runners: Runners) -> None:
    local = runners.of(Settings())
    slots = Slots(runners, Settings(workers=2), [local])

    assert slots.has_one(local)
    slots.take(local, 1)
    assert not slots.has_one(local)
    assert slots.are_gone


def test_nothing_is_submitted_while_the_controller_is_away(runners: Runners, tally: Tally) -> None:
    slurm = runners.of(JOBS)

    tally.is_slurm_up = False
    assert not slurm.has_slot(0, JOBS)
    tally.is_slurm_up = True
    assert slurm.has_slot(1, JOBS)


def test_a_job_that_an_earlier_life_left_is_held_whatever_slots_there_are(ledger: Ledger, runners: Runners) -> None:
    ledger.add_job(a_job("left", owner="1 1"))
    slurm = runners.of(JOBS)
    slots = Slots(runners, JOBS, [slurm] * 9)

    assert slurm.holds("/r/a/step-10", "save-1")
    assert not slurm.holds("/r/a/step-10", "save-2")
    slots.has_one(slurm)
    slots.has_one(runners.of(Settings()))
    assert not slots.are_gone, "the one that is left needs none"


def test_jobs_left_are_looked_for_though_no_root_asks_for_jobs_any_more(ledger: Ledger, runners: Runners) -> None:
    ledger.add_job(a_job("left", owner="1 1"))
    asked: list[tuple[str, str, str]] = []

    def is_wanted(root: str, path: str, save_id: str) -> None:
        asked.append((root, path, save_id))

    runners.let_go(is_wanted)
    assert asked == [("/r", "/r/a/step-10", "save-1")]
    assert len(runners) == 2


def test_without_jobs_left_there_is_one_runner(runners: Runners) -> None:
    runners.let_go(lambda *_: None)

    assert (len(runners), runners.are_left) == (1, False)
