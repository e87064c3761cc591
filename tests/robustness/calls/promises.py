"""Owns what is promised of a conversion that meets a fault: of its outcome, of what is published, of what is left behind."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import Any

from converter.common import names_on_disk
from converter.common.errors import Retry
from tests.robustness.calls.plans import FULL, IN_PLACE, Fault
from tests.robustness.calls.scenarios import Place, Scenario, digest
from tests.robustness.calls.seam import Kind, Mode

OLD: dict[str, str] = {}
NEW: dict[str, str] = {}
"""Digests of what is published, before and after, by scenario."""


def original(place: Place, scenario: Scenario) -> Place:
    """What the place is a copy of."""
    return Place(place.out.parent / scenario.name)


def broken(place: Place, scenario: Scenario, fault: Fault, said: dict[str, Any]) -> Iterator[str]:
    """Promises that do not hold once the conversion has ended."""
    if "raised" in said or "unexpected" in said:
        yield said.get("raised") or said["unexpected"]
        return
    yield from harmed(place, scenario)
    now = digest(place.published(scenario))
    if "error" not in said and now != NEW[scenario.name]:
        yield "success, and what is published is not what it should be"
    if "error" in said and said["retry"] not in _retries(fault, said):
        yield f"{said['error']} ({said['retry']}): {said['message']}"
    if scenario.exchanges and fault.error not in (errno.EINVAL, errno.ENOSYS):
        yield from (f"the older one was moved away: {call}" for call in said["touched"] if call.startswith("RENAME"))
    yield from (f"changed in place: {call}" for call in said["touched"] if not call.startswith("RENAME"))
    there, before = set(place.ours()), set(original(place, scenario).ours())
    left = there - before
    renamed = {name for name in left if name.endswith(".discarded")}
    if "error" in said and len(renamed) <= len(before - there):
        left -= renamed  # a dead attempt's, which was renamed and could not be removed: the next attempt removes it
    if fault.mode == Mode.ALWAYS and fault.error in FULL and not scenario.exchanges:
        left = {name for name in left if not name.endswith(".replaced")}  # all names fail: the only sure copy is kept
    if left and not _may_leave(fault, said, published=now == NEW[scenario.name]):
        yield f"left behind: {left} after {said.get('error', 'success')}"


def harmed(place: Place, scenario: Scenario) -> Iterator[str]:
    """What must hold at every moment."""
    if place.trainings() != original(place, scenario).trainings():
        yield "files of training changed"
    now = digest(place.published(scenario))
    if now not in (OLD[scenario.name] if scenario.has_old else "", NEW[scenario.name], ""):
        yield "what is published is neither the old one nor the new one"
    if now == "" and scenario.has_old and scenario.exchanges and not scenario.crashed:
        yield "neither the old one nor the new one is published"
    if now == "" and scenario.has_old:
        aside = [p for p in place.folder(scenario).iterdir() if p.name.endswith(".replaced")]
        if [digest(path) for path in aside] != [OLD[scenario.name]]:
            yield "the old one cannot be recovered"


def is_done(place: Place, scenario: Scenario) -> Iterator[str]:
    if digest(place.published(scenario)) != NEW[scenario.name]:
        yield "the next conversion published something else"
    if left := place.ours():
        yield f"the next conversion left {left}"
    yield from harmed(place, scenario)


def touched(trace: Iterable[tuple[Kind, str]]) -> Iterator[str]:
    """Calls that changed something inside a published directory, or moved one away."""
    for kind, name in trace:
        one = name.partition(" -> ")[0].split("/")
        inside = any(part.endswith("-hf") for part in one[:-1])
        if (kind in IN_PLACE and (inside or one[-1].endswith("-hf"))) or (
            kind == Kind.RENAME and one[-1].endswith("-hf")
        ):
            yield f"{kind.name} {name}"


def _retries(fault: Fault, said: dict[str, Any]) -> set[str]:
    """What a failed conversion may tell its caller to expect."""
    if fault.mode == Mode.SHORT or fault.error == errno.EINTR:
        return set()
    allowed = {Retry.SPACE if fault.error in FULL else Retry.BACKOFF}
    if (
        "config.json" in said["fired"] and names_on_disk.PREFIX not in said["fired"]
    ):  # the run's; its CLOSE may report ENOSPC
        allowed.add(Retry.CONFIG)
    if fault.error == errno.ENOENT:
        allowed |= {Retry.VANISHED, Retry.INCOMPLETE}
    # Assets that are not there or must not be read are a person's to mend.
    if (said["error"], fault.error) in (("AssetsMissing", errno.ENOENT), ("AssetsInvalid", errno.EACCES)):
        allowed.add(Retry.NEVER)
    return set(allowed)


def _may_leave(fault: Fault, said: dict[str, Any], *, published: bool) -> bool:
    """Whether cleaning itself was what failed, or what was replaced is kept: nobody knows if its successor's name lasts."""
    if fault.mode == Mode.ALWAYS:
        return fault.error not in FULL
    name = said["fired"].partition(" ")[2]
    return published and (
        names_on_disk.PREFIX in name or said["fired"].startswith("RMDIR") or name.endswith("/checkpoint")
    )
