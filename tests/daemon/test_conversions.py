"""However an attempt ends, its step is not left `running`."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from converter.errors import Retry
from daemon.conversions import Conversions
from daemon.records import Outcome
from tests.daemon.conftest import facts

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
