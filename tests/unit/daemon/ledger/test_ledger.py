"""What is remembered of steps lasts, migrates forward, refuses what is newer, and can be read by anybody at any time."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon.host.process import owner_of
from daemon.ledger.database import MIGRATIONS, NAME, LedgerError
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Block, Held, Outcome, State
from daemon.ledger.slurm_jobs import SlurmJob
from daemon.scanner.messages import Answer
from tests.unit.daemon.conftest import row


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path)


def test_a_row_comes_back_as_it_was(ledger: Ledger) -> None:
    put = row(
        state=State.FAILED,
        reason="why",
        error="MachineFailure",
        attempts=2,
        next_attempt=5.5,
        answer=Answer(state="complete", save_id="save-1"),
    )
    ledger.put(put)

    assert ledger.row("/r/a/step-10") == put
    assert ledger.row("/r/a/step-1") is None


def test_a_step_keeps_its_history_when_it_becomes_complete(ledger: Ledger) -> None:
    ledger.put(row(save_id="", state=State.INCOMPLETE))
    ledger.put(row(save_id="save-1", state=State.PENDING))

    assert [found.save_id for found in ledger.rows()] == ["save-1"]


def test_a_step_saved_again_begins_a_history_of_its_own_and_the_old_one_stays(ledger: Ledger) -> None:
    ledger.put(row(save_id="save-1", state=State.DONE, attempts=3))
    ledger.put(row(save_id="save-2", state=State.PENDING))

    assert [(found.save_id, found.attempts) for found in ledger.rows()] == [("save-2", 0)]

    ledger.put(row(save_id="save-1", state=State.DONE, attempts=3))
    assert [(found.save_id, found.attempts) for found in ledger.rows()] == [("save-1", 3)]


def test_answers_of_a_root_are_given_to_its_next_scanner(ledger: Ledger) -> None:
    answer = Answer(state="complete", fingerprint="f", save_id="save-1", model_bytes=7)
    ledger.put(row(10, answer=answer))
    ledger.put(row(20))

    assert list(ledger.answers("/r")) == [("/r/a/step-10", answer)]
    assert list(ledger.answers("/other")) == []


def test_an_attempt_is_remembered_with_all_its_converter_said(ledger: Ledger) -> None:
    ledger.put(row())
    identity = ledger.begin_attempt(row(), 100.0)
    ledger.end_attempt(identity, Outcome(result="succeeded", seconds=3.0, event={"bytes_written": 7}), 103.0)

    last = ledger.last_attempts()["/r/a/step-10"]
    assert (last["result"], last["seconds"], last["event"], last["number"]) == (
        "succeeded",
        3.0,
        {"bytes_written": 7},
        1,
    )


@pytest.mark.parametrize("settled", [State.DONE, State.REMOVED])
def test_an_attempt_leaves_what_another_daemon_settled_meanwhile(
    ledger: Ledger, tmp_path: Path, settled: State
) -> None:
    assert ledger.put(row(state=State.RUNNING), of_attempt=True)
    Ledger.open(tmp_path).put(row(state=settled))

    assert not ledger.put(row(state=State.FAILED, attempts=1), of_attempt=True)
    assert ledger.row("/r/a/step-10") == row(state=settled)
    assert ledger.put(row(state=State.RUNNING, save_id="saved again"), of_attempt=True), "another save"
    assert ledger.put(row(state=State.PENDING)), "not of an attempt"


def test_what_a_dead_daemon_left_open_is_closed_by_the_next(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put(row(state=State.RUNNING))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    other = Ledger.open(tmp_path)
    other.owner = f"{dead.pid} 1"
    other.begin_attempt(row(), 100.0)
    other.register("watch")
    ledger.register("watch")

    assert [daemon["pid"] for daemon in ledger.daemons()] == [os.getpid()]
    assert ledger.last_attempts()["/r/a/step-10"]["result"] == "interrupted"


def test_something_is_said_of_a_run_once_and_again_only_when_it_changed(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.say_once("/r/a", "retention_hazard", "4")
    assert not ledger.say_once("/r/a", "retention_hazard", "4")
    assert not Ledger.open(tmp_path).say_once("/r/a", "retention_hazard", "4"), "nor after a restart"
    assert ledger.say_once("/r/a", "retention_hazard", "2")
    assert ledger.say_once("/r/b", "retention_hazard", "2")


@pytest.mark.parametrize("state", [State.FAILED, State.QUARANTINED, State.REMOVED, State.UNSUPPORTED, State.FOREIGN])
def test_retry_forgets_failures_of_a_step_or_a_run(ledger: Ledger, state: State) -> None:
    ledger.put(row(10, state=state, attempts=5, error="X"))
    ledger.put(row(100, state=state, attempts=5, error="X"))
    ledger.set_block("/r/a", Block("RoutingDrift", "bias", ""))

    assert ledger.request("/r/a/step-10", accept_copy=False) == 1
    assert [(found.step, found.state, found.attempts) for found in ledger.rows()] == [
        (10, State.PENDING, 0),
        (100, state, 5),
    ]
    assert ledger.block("/r/a") is None
    assert ledger.request("/r/a", accept_copy=False) == 2
    assert {found.state for found in ledger.rows()} == {State.PENDING}


def test_what_passed_is_forgiven_of_steps_that_are_away_or_saved_anew_meanwhile_too(ledger: Ledger) -> None:
    held = Held(State.QUARANTINED, "why", "AssetsInvalid", "", None)
    ledger.put(row(10, state=State.VANISHED, attempts=1, held=held))
    ledger.put(row(20, state=State.SUSPECT, attempts=1, held=held._replace(error="PayloadCorrupt")))
    ledger.put(row(30, state=State.QUARANTINED, attempts=1, error="AssetsInvalid"))
    ledger.put(row(30, state=State.INCOMPLETE, save_id=""))
    ledger.put(row(40, state=State.SUSPECT, held=held._replace(state=State.FOREIGN)))

    assert ledger.forgive("/r/a", ["AssetsInvalid"]) == 2
    found = {step: ledger.row(f"/r/a/step-{step}", "save-1") for step in (10, 20, 30, 40)}
    assert {step: (one.state, one.attempts) for step, one in found.items() if one and one.held is None} == {
        10: (State.VANISHED, 0),
        30: (State.PENDING, 0),
    }


def test_retry_does_not_touch_what_is_done_nor_other_runs_of_a_similar_name(ledger: Ledger) -> None:
    ledger.put(row(10, state=State.DONE))
    ledger.put(row(10, path="/r/a_/step-10", run="/r/a_", state=State.FAILED))

    assert ledger.request("/r/a", accept_copy=False) == 1
    assert [found.state for found in ledger.rows()] == [State.DONE, State.FAILED]
    assert ledger.request("/r/unknown", accept_copy=False) == 0


def test_accepting_a_copy_is_remembered_with_the_save(ledger: Ledger) -> None:
    ledger.put(row(10, state=State.SUSPECT))
    ledger.request("/r/a", accept_copy=True)

    found = ledger.row("/r/a/step-10")
    assert found is not None
    assert (found.state, found.accept_copy) == (State.PENDING, True)


def test_a_running_daemon_learns_of_a_retry_for_its_own_roots_only(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put(row(10, state=State.FAILED))
    other = Ledger.open(tmp_path)
    assert not ledger.changed()

    other.request("/r/a/step-10", accept_copy=False)

    assert ledger.changed()
    assert ledger.take_requests(["/elsewhere"]) == []
    assert ledger.take_requests(["/r"]) == ["/r/a/step-10"]
    assert ledger.take_requests(["/r"]) == []


def test_a_ledger_of_a_newer_version_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    Ledger.open(tmp_path).close()
    db = sqlite3.connect(tmp_path / NAME)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()

    with pytest.raises(LedgerError, match="newer dcp2hf"):
        Ledger.open(tmp_path)
    with pytest.raises(LedgerError, match="newer dcp2hf"):
        Ledger.read(tmp_path)


def test_status_reads_without_a_daemon_and_creates_nothing(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put(row())
    ledger.close()
    before = sorted(os.listdir(tmp_path))

    found = Ledger.read(tmp_path)

    assert found is not None
    assert len(list(found.rows())) == 1
    assert sorted(os.listdir(tmp_path)) == before == [NAME]
    assert Ledger.read(tmp_path / "nothing") is None


def test_status_reads_while_a_daemon_writes(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put(row(10))
    found = Ledger.read(tmp_path)
    assert found is not None
    ledger.put(row(20))

    assert [step.step for step in found.rows()] == [10, 20]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_can_read_what_a_killed_daemon_left(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put(row())
    left = tmp_path / "left"
    shutil.copytree(tmp_path, left, ignore=shutil.ignore_patterns("left"))
    (left / f"{NAME}-shm").unlink()
    for folder in [left, *left.parents]:
        if os.stat(folder).st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = (
        "import os, sys; from pathlib import Path; from daemon.ledger.ledger import Ledger; os.setuid(65534); "
        "print(len(list(Ledger.read(Path(sys.argv[1])).rows())))"
    )

    said = subprocess.run(
        [sys.executable, "-c", code, str(left)],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (said.stdout, said.stderr) == ("1\n", "")
    assert f"{NAME}-shm" not in os.listdir(left)


def test_a_rehearsal_writes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put(row(10))
    rehearsal = Ledger.rehearsal(tmp_path)
    rehearsal.put(row(20))

    assert len(list(rehearsal.rows())) == 2
    assert len(list(ledger.rows())) == 1
    Ledger.rehearsal(tmp_path / "none").put(row())
    assert not (tmp_path / "none").exists()


def test_many_processes_may_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from daemon.ledger.ledger import Ledger; Ledger.open(Path(sys.argv[1])).register('watch')"
    opening = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[4], stderr=subprocess.PIPE
        )
        for _ in range(8)
    ]

    assert [(process.wait(), process.stderr and process.stderr.read()) for process in opening] == [(0, b"")] * 8


def a_job(name: str, **fields: Any) -> SlurmJob:
    """A job of a step of the run /r/a, noted by this process."""
    return SlurmJob(
        **{"name": name, "path": "/r/a/step-10", "save_id": "save-1", "root": "/r", "folder": "/s", "asked": 100.0, "owner": owner_of(os.getpid()),
           "memory": 7, "seconds": 60.0} | fields
    )  # fmt: skip


def test_a_job_is_found_again_by_whoever_comes_after_the_process_that_noted_it(ledger: Ledger) -> None:
    ledger.add_job(a_job("theirs", owner="1 1"))
    ledger.add_job(a_job("of a living one", owner=owner_of(os.getppid())))
    ledger.add_job(a_job("over", owner="1 1", ended=101.0, ending="said"))
    ledger.note_job(a_job("theirs", owner="1 1", id="7", state="RUNNING", place=42))

    assert ledger.jobs_left() == [a_job("theirs", owner="1 1", id="7", state="RUNNING", place=42)]


def test_endings_are_counted_for_each_save_by_itself(ledger: Ledger) -> None:
    for number, (save_id, ending) in enumerate(
        (("save-1", "memory"), ("save-1", "memory"), ("save-1", "time"), ("save-2", "memory"))
    ):
        ledger.add_job(a_job(f"job-{number}", save_id=save_id, ending=ending, ended=101.0))

    assert ledger.job_endings("/r/a/step-10", "save-1") == {"memory": 2, "time": 1}


def test_jobs_that_ended_long_ago_are_forgotten_and_those_that_go_on_never(ledger: Ledger) -> None:
    ledger.add_job(a_job("old", ended=100.0, ending="said"))
    ledger.add_job(a_job("goes on"))
    ledger.add_job(a_job("new", asked=100.0 + 31 * 86_400))

    assert [job.name for job in ledger.jobs_left()] == ["goes on", "new"]
    assert ledger.job_endings("/r/a/step-10", "save-1") == {"": 2}


def test_status_has_the_last_job_of_a_steps_newest_save_and_a_ledger_without_jobs_has_none(
    ledger: Ledger, tmp_path: Path
) -> None:
    ledger.put(row())
    ledger.add_job(a_job("first", asked=1.0))
    ledger.add_job(a_job("second", asked=2.0))
    ledger.add_job(a_job("of another save", save_id="save-0", asked=3.0))
    assert ledger.last_jobs()["/r/a/step-10"].name == "second"

    ledger.close()
    db = sqlite3.connect(tmp_path / NAME)
    db.execute("DROP TABLE jobs")
    db.commit()
    db.close()
    older = Ledger.read(tmp_path)
    assert older is not None
    assert older.last_jobs() == {}
