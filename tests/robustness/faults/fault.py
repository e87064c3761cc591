"""Owns what a fault is: what is damaged, where, and which check alone must catch it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from converter.common import errors
from tests.robustness.faults.checks import CHECKS, READING
from tests.robustness.faults.made import MADE
from tests.robustness.faults.scene import Scene
from tests.support.checkpoints.cases import BY_NAME, Case
from tests.support.checkpoints.naming import older


@dataclass(frozen=True)
class Fault:
    """One fault in one place."""

    kind: str
    check: str
    """The check that catches it alone."""
    error: type[errors.ConversionError] | None
    """None: nothing is refused, the right thing is published all the same."""
    case: Case
    place: str
    damage: Callable[[Scene], None]

    def __str__(self) -> str:
        return f"{self.kind} [{self.check}] in {self.case.name}: {self.place}"


def faults(
    kind: str,
    check: str,
    error: type[errors.ConversionError] | None,
    damage: Callable[..., None],
    places: Iterable[tuple[str, dict[str, Any]]],
) -> list[Fault]:
    """One kind of fault in several places: (name of a case, what `damage(scene, …)` is given)."""
    assert check in CHECKS or check == READING
    made = []
    for name, given in places:
        case = MADE.get(name) or BY_NAME[name]

        def apply(scene: Scene, given: dict[str, Any] = given) -> None:
            damage(scene, **given)

        made.append(Fault(kind, check, error, case, _text(given), apply))
    return made


_UNTOLD = frozenset({"old", "new", "at", "form", "add", "record", "size", "block_bytes"})
"""What is written instead of what: not of interest in the table."""


def _text(given: dict[str, Any]) -> str:
    told = {key: value for key, value in given.items() if key not in _UNTOLD}
    return ", ".join(str(value) if key in ("fqn", "name") else f"{key} {value}" for key, value in told.items())


def stored_name(scene: Scene, fqn: str) -> str:
    """What the case calls torchtitan 0.3.0's `fqn`."""
    return older(fqn, scene.case.naming, moe=scene.case.moe)
