"""A state_dir that is full, fails or holds nonsense ends no daemon: it goes on in memory, and back with all it learned."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from daemon.host.logs import Logger
from daemon.ledger.database import NAME, DiskFailure, LedgerError, error_kind
from daemon.ledger.disk_fallback import AGAIN, KeptLedger
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Block, Outcome, State
from tests.unit.daemon.conftest import row


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can grow: as on a full disk, without needing one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Kept:
    """A kept ledger, its clock, and what it said (to this, its log)."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.now = 0.0

        self.ledger = KeptLedger(folder, cast(Logger, self), clock=lambda: self.now)

    def error(self, event: str, **fields: Any) -> None:
        self.said.append(event)

    info = error

    def go_back(self) -> None:
        self.now += AGAIN
        self.ledger.go_back()


@pytest.fixture
def kept(tmp_path: Path) -> Callable[[], Kept]:
    return lambda: Kept(tmp_path)


def test_a_full_disk_is_said_once_and_nothing_is_forgotten(kept: Callable[[], Kept], tmp_path: Path) -> None:
    one = kept()
    one.ledger.put(row(10, state=State.DONE))
    begun = one.ledger.begin_attempt(row(10), 1.0)
    with no_room():
        one.ledger.put(row(10, state=State.DONE, attempts=2))
        one.ledger.put(row(20, state=State.FAILED))
        one.ledger.end_attempt(begun, Outcome(result="succeeded", seconds=3.0), 4.0)
        one.ledger.begin_attempt(row(20), 5.0)
        one.ledger.set_block("/r/a", Block("RoutingDrift", "why", ""))
        one.go_back()
        assert one.ledger.is_away
        assert [(found.step, found.attempts) for found in one.ledger.rows()] == [(10, 2), (20, 0)]
        assert one.ledger.row("/r/a/step-20") == row(20, state=State.FAILED)
    assert one.said == ["state_dir_failed"]

    one.go_back()

    assert one.said == ["state_dir_failed", "state_dir_recovered"]
    assert not one.ledger.is_away
    one.ledger.end_attempt(one.ledger.begin_attempt(row(20), 6.0), Outcome(result="failed"), 7.0)
    one.ledger.close()
    there = Ledger.open(tmp_path)
    assert [(found.step, found.attempts, found.state) for found in there.rows()] == [(10, 2, "done"), (20, 0, "failed")]
    assert there.block("/r/a") == Block("RoutingDrift", "why", "")
    attempts = there.last_attempts()
    assert (attempts["/r/a/step-10"]["number"], attempts["/r/a/step-10"]["result"]) == (1, "succeeded")
    assert (attempts["/r/a/step-20"]["number"], attempts["/r/a/step-20"]["result"]) == (2, "failed")


def test_what_others_wrote_meanwhile_stays(kept: Callable[[], Kept], tmp_path: Path) -> None:
    one = kept()
    one.ledger.put(row(10, state=State.FAILED, attempts=3))
    with no_room():
        one.ledger.put(row(20))
    Ledger.open(tmp_path).put(row(30, state=State.DONE))
    assert Ledger.open(tmp_path).request("/r/a/step-10", accept_copy=False) == 1

    one.go_back()

    assert [found.step for found in one.ledger.rows()] == [10, 20, 30]
    assert one.ledger.changed(), "a retry is not lost"
    assert one.ledger.take_requests(["/r"]) == ["/r/a/step-10"]
    assert one.ledger.row("/r/a/step-10") == row(10)


def test_a_save_of_a_time_without_the_disk_takes_the_place_of_the_one_before_it(
    kept: Callable[[], Kept], tmp_path: Path
) -> None:
    before = Ledger.open(tmp_path)
    before.put(row(10, state=State.DONE))
    before.close()
    with no_room():
        one = kept()
        assert list(one.ledger.rows()) == [], "in memory, without what the disk has"
        newer = msgspec.structs.replace(row(10, state=State.FAILED), save_id="newer")
        one.ledger.put(newer)

    one.go_back()

    assert list(Ledger.open(tmp_path).rows()) == [newer]


def test_a_full_disk_at_the_start_is_no_reason_not_to_start(kept: Callable[[], Kept], tmp_path: Path) -> None:
    with no_room():
        one = kept()
        one.ledger.register("watch")
        one.ledger.put(row(10))
    assert one.said == ["state_dir_failed"]

    one.go_back()

    assert [found.step for found in Ledger.open(tmp_path).rows()] == [10]
    assert len(Ledger.open(tmp_path).daemons()) == 1


@pytest.mark.parametrize("payload", [b"no ledger at all " * 1000, b""], ids=["nonsense", "empty"])
def test_a_damaged_ledger_is_set_aside_and_a_new_one_begun(
    payload: bytes, kept: Callable[[], Kept], tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(payload)

    one = kept()
    one.ledger.put(row(10))

    assert one.said == (["ledger_damaged"] if payload else [])
    assert [path.read_bytes() for path in tmp_path.glob("*.damaged-*")] == ([payload] if payload else [])
    assert [found.step for found in Ledger.open(tmp_path).rows()] == [10]


def test_a_ledger_that_breaks_in_use_is_left_and_replaced(kept: Callable[[], Kept], tmp_path: Path) -> None:
    one = kept()
    for step in range(500):
        one.ledger.put(row(step))
    one.ledger.close()
    one = kept()
    with open(tmp_path / NAME, "r+b") as file:  # all but the header's page
        file.seek(4096)
        file.write(os.urandom((tmp_path / NAME).stat().st_size - 4096))

    one.ledger.put(row(1000))

    assert one.said == ["ledger_damaged"]
    assert 1000 in [found.step for found in Ledger.open(tmp_path).rows()]


def test_a_state_dir_that_is_wrong_is_no_failing_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(LedgerError, match="set state_dir to a folder"):
        Kept(tmp_path / "file")


def test_statistics_survive_a_state_dir_that_fails(kept: Callable[[], Kept], tmp_path: Path) -> None:
    one = kept()
    for step in (10, 20):
        one.ledger.put(row(step))
    one.ledger.put_statistics(row(10), {"rms": [1.0]})
    with no_room():
        one.ledger.put_statistics(row(20), {"rms": [2.0]})
        assert one.ledger.is_away
        assert [found.step for found in one.ledger.statistics("/r/a", 9)[0]] == [20, 10]
    one.go_back()

    assert [found.step for found in Ledger.open(tmp_path).statistics("/r/a", 9)[0]] == [20, 10]


def test_calls_of_hooks_survive_a_state_dir_that_fails_and_are_not_made_twice(
    kept: Callable[[], Kept], tmp_path: Path
) -> None:
    one = kept()
    one.ledger.enqueue("before", "on_success", "/r", {"step": 10}, 0.0)
    with no_room():
        one.ledger.enqueue("meanwhile", "on_failure", "/r", {"step": 20}, 1.0)
        assert one.ledger.is_away
        before, meanwhile = one.ledger.due(["/r"], 2.0)
        assert one.ledger.claim(before)
        one.ledger.end_delivery(before, "delivered", 2.0)
        assert one.ledger.note_non_finite(row(10), tensors=1, nan=2, inf=0, now=2.0)
    one.go_back()
    assert not one.ledger.is_away

    on_disk = Ledger.open(tmp_path)
    assert on_disk.due(["/r"], 2.0) == [meanwhile]
    assert not on_disk.note_non_finite(row(10), tensors=1, nan=2, inf=0, now=3.0)


def test_a_lock_of_the_ledger_that_cannot_be_had_and_a_stale_handle_are_failures_of_its_disk() -> None:
    lock = sqlite3.OperationalError("locking protocol")  # what SQLite says where fcntl fails on the index of a WAL
    lock.sqlite_errorcode = sqlite3.SQLITE_PROTOCOL

    assert error_kind(lock) is DiskFailure
    assert error_kind(OSError(errno.ESTALE, "Stale file handle")) is DiskFailure
