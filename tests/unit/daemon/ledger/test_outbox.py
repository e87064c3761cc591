"""The outbox: each call is kept until it was made or given up, and two processes never have the same one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from daemon.ledger import database
from daemon.ledger.database import MIGRATIONS, NAME
from daemon.ledger.ledger import Ledger
from daemon.ledger.outbox import DAY, FORGOTTEN, KEPT
from daemon.ledger.records import Outcome, State
from tests.unit.daemon.conftest import row


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path)


def test_the_same_thing_is_kept_once(ledger: Ledger) -> None:
    for step in (10, 20):
        ledger.enqueue("key", "on_success", "/r", {"step": step}, 0.0)
    [found] = ledger.due(["/r"], 1.0)
    claimed = ledger.claim(found)

    assert claimed is not None
    assert (claimed.key, claimed.hook, claimed.facts, claimed.tries) == ("key", "on_success", {"step": 10}, 1)


def test_what_was_made_is_not_asked_for_again(ledger: Ledger) -> None:
    ledger.enqueue("key", "on_success", "/r", {}, 0.0)
    [found] = ledger.due(["/r"], 1.0)
    assert ledger.claim(found)
    ledger.end_delivery(found, "delivered", 1.0)
    ledger.enqueue("key", "on_success", "/r", {}, 2.0)

    assert ledger.due(["/r"], 3.0) == []
    assert not ledger.claim(found)


def test_what_a_living_process_has_claimed_is_nobody_elses(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger.open(tmp_path)
    ledger.enqueue("key", "on_success", "/r", {}, 0.0)
    [mine], [theirs] = ledger.due(["/r"], 1.0), other.due(["/r"], 1.0)

    assert ledger.claim(mine)
    assert not other.claim(theirs)
    assert other.due(["/r"], 1.0) == []


def test_a_try_counts_however_its_process_ends(ledger: Ledger, tmp_path: Path) -> None:
    dead = Ledger.open(tmp_path)
    dead.owner = "999999999 1"
    ledger.enqueue("key", "on_success", "/r", {}, 0.0)
    assert dead.claim(dead.due(["/r"], 1.0)[0])
    [found] = ledger.due(["/r"], 1.0)

    assert found.tries == 2


def test_what_a_stop_interrupted_costs_no_try_and_what_failed_waits(ledger: Ledger) -> None:
    ledger.enqueue("key", "on_success", "/r", {}, 0.0)
    [found] = ledger.due(["/r"], 1.0)
    assert ledger.claim(found)
    ledger.put_back(found, now=0.5, not_before=1.0, counts=False)
    [found] = ledger.due(["/r"], 1.0)
    assert found.tries == 1
    assert ledger.claim(found)
    ledger.put_back(found, now=1.0, not_before=9.0)

    assert ledger.due(["/r"], 8.0) == []
    assert ledger.due(["/r"], 9.0)[0].tries == 2


def test_a_call_that_was_put_back_before_the_clock_was_set_back_is_due(ledger: Ledger) -> None:
    ledger.enqueue("key", "on_success", "/r", {}, 5000.0)
    [found] = ledger.due(["/r"], 5000.0)
    assert ledger.claim(found)
    ledger.put_back(found, now=5000.0, not_before=5030.0)

    assert ledger.due(["/r"], 5010.0) == []
    assert [call.key for call in ledger.due(["/r"], 1400.0)] == ["key"]


def test_calls_of_roots_that_are_not_ours_are_left_and_forgotten_in_the_end(ledger: Ledger) -> None:
    ledger.enqueue("key", "on_success", "/other", {}, 0.0)
    assert ledger.due(["/r"], 1.0) == []
    ledger.forget_old(FORGOTTEN - DAY)
    assert ledger.due(["/other"], 1.0)
    ledger.forget_old(FORGOTTEN + DAY)
    assert ledger.due(["/other"], 1.0) == []


def test_what_ended_is_remembered_for_a_week(ledger: Ledger) -> None:
    ledger.enqueue("key", "on_success", "/r", {}, 0.0)
    [found] = ledger.due(["/r"], 0.0)
    ledger.end_delivery(found, "delivered", DAY)
    for now, is_known in ((KEPT, True), (KEPT + 2 * DAY, False)):
        ledger.forget_old(now)
        ledger.enqueue("key", "on_success", "/r", {}, now)
        assert (ledger.due(["/r"], now) == []) is is_known


def test_non_finite_weights_are_news_once_for_each_save(ledger: Ledger) -> None:
    first = row(10, save_id="one")
    assert ledger.note_non_finite(first, tensors=1, nan=1, inf=0, now=1.0)
    assert not ledger.note_non_finite(first, tensors=1, nan=1, inf=0, now=2.0)
    assert ledger.note_non_finite(row(10, save_id="two"), tensors=1, nan=1, inf=0, now=3.0)


def test_the_last_attempt_is_that_of_this_save_before_the_one_that_asks(ledger: Ledger) -> None:
    ledger.put(row(10, state=State.RUNNING))
    ledger.end_attempt(ledger.begin_attempt(row(10), 1.0), Outcome(result="failed"), 2.0)
    ledger.begin_attempt(row(10), 3.0)

    assert ledger.last_attempt("/r/a/step-10", "save-1") == (3.0, "running")
    assert ledger.last_attempt("/r/a/step-10", "save-1", before=3.0) == (1.0, "failed")
    assert ledger.last_attempt("/r/a/step-10", "another") is None


def test_a_ledger_without_an_outbox_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", MIGRATIONS[:1])
        Ledger.open(tmp_path).close()
    with sqlite3.connect(tmp_path / NAME) as db:
        db.execute(
            "INSERT INTO steps (path, save_id, root, run, run_name, step, state, reason, hint, attempts, wish, accept_copy, "
            "first_seen, updated) VALUES ('/r/a/step-10', 'save-1', '/r', '/r/a', 'a', 10, 'done', '', '', 0, '', 0, 0, 0)"
        )
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    newer = Ledger.open(tmp_path)
    newer.enqueue("key", "on_success", "/r", {}, 0.0)

    found = newer.row("/r/a/step-10")
    assert found is not None
    assert found.state == State.DONE
    assert len(newer.due(["/r"], 1.0)) == 1
