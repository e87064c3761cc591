"""Every call below state_dir fails once, or is the daemon's last: each complete step is converted all the same, once."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.robustness.calls import plans
from tests.robustness.calls.pool import ALL_POINTS, Pool
from tests.robustness.calls.seam import ALL, Mode

KILLS = 100 if ALL_POINTS else 4
"""Points spread evenly over the daemon's calls below state_dir."""
SAMPLE = 12
"""Every so many of the faults, where not all are tried."""


@pytest.mark.timeout(3600)
def test_a_state_dir_of_which_a_call_fails_ends_no_daemon(daemons_once: Pool) -> None:
    faults = plans.in_turn(ALL)
    jobs = [{"fault": asdict(fault)} for fault in faults]
    if not ALL_POINTS:
        calls = daemons_once.ask("count")["kinds"]
        points = [fault.sample(calls, turn) for turn, fault in enumerate(faults)]
        jobs = [job | {"points": at} for job, at in zip(jobs, points, strict=True) if at][::SAMPLE]
    suite = "A call of the daemon below state_dir fails"
    daemons_once.tried(suite, "`run --once` over a run with two complete steps", "fails", jobs)


@pytest.mark.timeout(3600)
def test_a_daemon_killed_at_any_call_below_state_dir_loses_no_step_and_does_none_twice(daemons_once: Pool) -> None:
    whole = daemons_once.ask("count")["whole"] * 9 // 10
    points = [1 + whole * i // KILLS for i in range(KILLS)]
    parts = [(mode, points[start::8]) for start, mode in enumerate([Mode.KILL_BEFORE, Mode.KILL_AFTER] * 4)]
    jobs = [{"points": part, "mode": int(mode)} for mode, part in parts if part]
    situation = f"`run --once`, at {len(points)} calls spread evenly over all"
    daemons_once.tried("The daemon is killed", situation, "killed", jobs)
