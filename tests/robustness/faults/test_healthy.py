"""Sixty healthy variants pass every check, and the checks that the manifest names are those of `checks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest

from tests.robustness.faults.checks import CHECKS
from tests.robustness.faults.made import MADE
from tests.robustness.faults.scene import Scene
from tests.robustness.faults.test_faults import verdicts
from tests.support.checkpoints.cases import BY_NAME, CASES, Case


def _variants() -> list[tuple[Case, dict[str, Any]]]:
    """Every case of the matrix as it is, and once more in another dtype, shard size or number of threads; others' too."""
    others = cycle(
        ({"dtype": "bfloat16", "threads": 1}, {"max_shard_size": 150_000}, {"dtype": "float32", "threads": 4},
         {"max_shard_size": 40_000, "threads": 3}, {"dtype": "float16"})
    )  # fmt: skip
    plain: list[tuple[Case, dict[str, Any]]] = [(case, {}) for case in (*CASES, *MADE.values())]
    plain += [
        (BY_NAME[name], {})
        for name in (
            "two_steps",
            "model_only_last",
            "one_rank",
            "crc_off",
            "last_in_hf",
            "last_in_hf_one_file",
            "last_in_hf_moe",
        )
    ]
    changed = [(case, next(others)) for case, _ in plain]
    return plain + changed[::2]


VARIANTS = _variants()


@pytest.mark.parametrize(("case", "options"), VARIANTS, ids=lambda value: getattr(value, "name", str(value)))
def test_a_healthy_variant_passes_every_check(
    case: Case, options: dict[str, Any], scene: Callable[[Case], Scene]
) -> None:
    place = scene(case)
    place.options |= options
    found = verdicts(place.convert(forward=True))
    assert set(found.values()) <= {"passed", "not run"}
    assert found["forward"] == found["read_back"] == found["plan"] == "passed"
    _seen.update(found)


_seen: dict[str, str] = {}


def test_there_are_sixty() -> None:
    assert len(VARIANTS) >= 60


def test_the_checks_are_those_that_the_manifests_name() -> None:
    """`independence` is no check: it says which of them borrowed from the base assets."""
    if len(_seen) < len(CHECKS):
        pytest.skip("not every variant was tried in this run")
    assert set(_seen) - {"independence"} == set(CHECKS)


@pytest.mark.parametrize("name", ["two_steps", "model_only_last"])
def test_the_other_step_of_a_run_passes(name: str, scene: Callable[[Case], Scene]) -> None:
    case = BY_NAME[name]
    place = scene(replace(case, steps=(2,)))
    assert verdicts(place.convert(forward=True))["forward"] == "passed"
