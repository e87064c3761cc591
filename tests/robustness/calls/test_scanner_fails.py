"""Every file call of the scanner fails once: nothing is said that is not so, and in the end all that is so."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.robustness.calls import plans
from tests.robustness.calls.pool import ALL_POINTS, Pool

SUITE = "A call of the scanner fails"


@pytest.mark.timeout(3600)
def test_a_scan_of_which_a_call_fails_says_nothing_wrong_and_a_later_one_says_all(scans: Pool) -> None:
    faults = plans.in_turn()
    jobs = [{"fault": asdict(fault)} for fault in faults]
    if not ALL_POINTS:
        calls = scans.ask("count")["kinds"]
        points = [fault.sample(calls, turn) for turn, fault in enumerate(faults)]
        jobs = [job | {"points": at} for job, at in zip(jobs, points, strict=True) if at][::6]
    scans.tried(SUITE, "a root of three runs, one of them nested, with a dead owner's leftovers", "fails", jobs)
