"""Every file call of a conversion fails once: it succeeds all the same or is refused, and nothing is ever half."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict

import pytest

from tests.robustness.calls import plans
from tests.robustness.calls.pool import ALL_POINTS, Pool
from tests.robustness.calls.scenarios import SCENARIOS
from tests.robustness.calls.seam import ALL, Kind

SUITE = "A call of the converter fails"


@pytest.fixture(scope="module")
def calls_of(conversions: Pool) -> Callable[[], dict[str, dict[str, int]]]:
    """By situation, how many calls of each kind its conversion makes; counted once."""
    return functools.cache(
        lambda: {name: conversions.ask("count", scenario=name)["kinds"] for name in SCENARIOS}  # one conversion each
    )


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_conversion_of_which_a_call_fails_publishes_the_same_bytes_or_nothing(
    conversions: Pool, calls_of: Callable[[], dict[str, dict[str, int]]], name: str
) -> None:
    scenario = SCENARIOS[name]
    faults = plans.in_turn() if scenario.is_whole else plans.in_turn(ALL, each=3)
    jobs = [{"scenario": name, "fault": asdict(fault)} for fault in faults]
    if not ALL_POINTS:
        calls = calls_of()
        jobs = []
        for turn, fault in enumerate(faults):
            able = [other for other in SCENARIOS if fault.sample(calls[other], turn)]
            if turn % 2 and able and able[turn // 2 % len(able)] == name:
                jobs.append({"scenario": name, "fault": asdict(fault), "points": fault.sample(calls[name], turn)})
    conversions.tried(SUITE, scenario.what, "fails", jobs)


def _of_one_process() -> list[plans.Fault]:
    reading = (Kind.OPEN, Kind.READ, Kind.STAT, Kind.OPENDIR, Kind.READDIR)
    return [fault for fault in plans.once() if fault.kinds[0] in reading]


@pytest.mark.timeout(3600)
def test_a_call_of_the_process_that_reads_storage_metadata_fails(conversions: Pool) -> None:
    faults = _of_one_process()
    jobs = [{"scenario": "exchanged", "fault": asdict(fault)} for fault in faults]
    if not ALL_POINTS:
        jobs = [job | {"points": [1]} for job in jobs][::4]
    conversions.tried(SUITE, "the small process that reads `.metadata`", "fails_apart", jobs)
