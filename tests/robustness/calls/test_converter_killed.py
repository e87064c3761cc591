"""SIGKILL at every call of the publish window, and at many more of the whole conversion: never half, never lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.robustness.calls.plans import EFFECTS
from tests.robustness.calls.pool import ALL_POINTS, Pool
from tests.robustness.calls.scenarios import SCENARIOS
from tests.robustness.calls.seam import ALL, Kind, Mode

SUITE = "The converter is killed"
SPREAD = 300 if ALL_POINTS else 6
"""Points spread evenly over all calls of a first export; a third as many over those of each other scenario."""
NAMES = ("fresh", "exchanged", "renamed", "crashed")


def _jobs(
    name: str, kinds: Sequence[Kind], points: Sequence[int], modes: Sequence[Mode], *, late: bool
) -> list[dict[str, object]]:
    """In parts, that two families share."""
    about = {"scenario": name, "kinds": list(kinds), "late": late}
    parts = [(mode, points[start::10]) for mode in modes for start in range(10)]
    return [about | {"points": list(part), "mode": int(mode)} for mode, part in parts if part]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES[:3])
def test_killed_while_it_publishes(conversions: Pool, name: str) -> None:
    """From the manifest to the end; where not all points are tried, once in each state that others can see."""
    calls = conversions.ask("count", scenario=name)
    if ALL_POINTS:
        modes = (Mode.KILL_BEFORE, Mode.KILL_AFTER)
        jobs = _jobs(name, ALL, range(1, calls["window"] + 1), modes, late=True)
    else:
        jobs = _jobs(name, EFFECTS, range(1, calls["effects"] + 1), (Mode.KILL_AFTER,), late=True)
    what = f"{SCENARIOS[name].what}; before and after each of {calls['window']} calls from the manifest to the end"
    conversions.tried(SUITE, what, "killed", jobs)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_killed_anywhere(conversions: Pool, name: str) -> None:
    calls = conversions.ask("count", scenario=name)["whole"] * 49 // 50
    count = SPREAD if name == "fresh" else SPREAD // 3
    points = [1 + calls * i // count for i in range(count)]
    jobs = _jobs(name, ALL, points[::2], (Mode.KILL_BEFORE,), late=False)
    jobs += _jobs(name, ALL, points[1::2], (Mode.KILL_AFTER,), late=False)
    conversions.tried(SUITE, f"{SCENARIOS[name].what}; at {count} calls spread evenly over all", "killed", jobs)
