"""However an attempt ends, its step is not left `running`; what keeps one from beginning is remembered of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from converter.common.errors import Retry
from daemon.ledger.records import Outcome, Row, State
from daemon.queue.conversions import Conversions
from daemon.queue.steps import Tracked, Tracker
from daemon.rules.judge_step import Judgement
from tests.unit.daemon.conftest import facts, row

STEP = "/r/a/step-10"


def test_what_nobody_foresaw_in_the_daemon_is_a_failure_of_the_attempt_and_the_next_is_started() -> None:
    ended: list[tuple[Any, Outcome]] = []
    woken: list[bool] = []

    async def run() -> Outcome:
        raise OverflowError("int too large to convert")

    made = Conversions.__new__(Conversions)
    started: Any = SimpleNamespace(
        attempt=SimpleNamespace(run=run), job=SimpleNamespace(path=STEP), row=None, facts=facts(), key="its key"
    )
    in_ledger: list[tuple[Any, Outcome, float]] = []
    made.__dict__.update(
        _running={STEP: started},
        _wake=lambda: woken.append(True),
        _endings=SimpleNamespace(failed=lambda what, outcome, latest: ended.append((what, outcome))),
        _ledger=SimpleNamespace(end_attempt=lambda *said: in_ledger.append(said)),
        _clock=lambda: 7.0,
    )
    asyncio.run(made._see_through(started))

    assert [(what, o.error, o.retry) for what, o in ended] == [(started, "MachineFailure", Retry.BACKOFF)]
    assert "OverflowError: int too large to convert" in ended[0][1].message
    assert in_ledger == [("its key", ended[0][1], 7.0)]
    assert (made._running, woken) == ({}, [True])


def test_what_fails_in_the_daemon_after_an_attempt_ended_does_not_change_how_it_ended() -> None:
    in_ledger: list[str] = []

    async def run() -> Outcome:
        return Outcome(result="succeeded")

    def fails(*said: Any) -> None:
        raise OverflowError

    made = Conversions.__new__(Conversions)
    started: Any = SimpleNamespace(
        attempt=SimpleNamespace(run=run), job=SimpleNamespace(path=STEP, root="/r", run="/r/a", step=10), row=row(10),
        facts=facts(), key=SimpleNamespace(started=1.0), request=SimpleNamespace(folder="/r/a"),
    )  # fmt: skip
    nothing = SimpleNamespace(remember=lambda *said: None, succeeded=lambda *said, **fields: None, attempt=fails)
    made.__dict__.update(
        _running={STEP: started}, _wake=lambda: None, _clock=lambda: 7.0, _samples=nothing, _hooks=nothing, _tally=nothing,
        _watchers={}, _tracker=SimpleNamespace(waiting={STEP: SimpleNamespace(facts=facts())}, gone=set()),
        _endings=SimpleNamespace(failed=lambda what, outcome, latest: None),
        _ledger=SimpleNamespace(end_attempt=lambda key, outcome, at: in_ledger.append(outcome.result)),
    )  # fmt: skip
    asyncio.run(made._see_through(started))

    assert in_ledger == ["succeeded"]


def test_a_pending_step_that_lacks_room_says_so_once_and_one_that_failed_goes_on_saying_why() -> None:
    lack = {"error": "NoSpace", "message": "1 GB free", "hint": "free space"}
    put: list[Row] = []
    tracker = Tracker.__new__(Tracker)
    tracker.runs = {}
    for before, count in ((Judgement(State.PENDING), 1), (Judgement(State.FAILED, "boom", "MachineFailure"), 0)):
        put.clear()
        tracker._ledger = SimpleNamespace(row=lambda path: None, put=lambda row, **how: put.append(row))  # type: ignore[assignment]
        tracker.waiting = {STEP: Tracked("/r", facts(), before)}
        tracker.waits(STEP, lack)
        tracker.waits(STEP, lack)
        assert [(r.reason, r.error, r.hint) for r in put] == [("1 GB free", "NoSpace", "free space")] * count


def test_a_wait_ends_at_once_only_where_the_clock_was_set_back() -> None:
    waits = Tracked("/r", facts(), Judgement(State.PENDING, not_before=103.0), since=100.001)

    assert waits.not_before(100.0) == 103.0, "judged within a turn that began a moment before"
    assert waits.not_before(40.0) == 0.0
