"""Owns the measures of a history: how memory and descriptors of the longest-lived daemon went, and what was counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

from tests.robustness.soak.history import Record

WARM_UP = 0.25
"""Share of its life after which a daemon's memory is measured."""
FEWEST = 12
"""Samples below which nothing is said."""


class Growth(NamedTuple):
    """What became of one process."""

    seconds: float
    """For which it was measured."""
    kilobytes: float
    """By which a line through its resident memory rose in that time."""
    descriptors: int
    """By how many more are open in the quieter moments of the last third than in those of the first: a tenth of each third is
    quieter still, since a daemon whose scanner was just killed has three fewer."""
    largest: int
    """Resident memory, kB."""
    conversions: int
    """That it saw through in that time."""


def growth_of(history: list[Record]) -> Growth | None:
    """Of the daemon with the most samples; None if there are too few."""
    lives: dict[int, list[Record]] = defaultdict(list)
    for record in history:
        if record["kind"] == "sample":
            lives[record["pid"]].append(record)
    life = max(lives.values(), key=len, default=[])
    life = life[int(len(life) * WARM_UP) :]
    if len(life) < FEWEST:
        return None
    begins, ends = life[0]["t"], life[-1]["t"]
    third = len(life) // 3
    quiet = [sorted(sample["fds"] for sample in part)[third // 10] for part in (life[:third], life[-third:])]
    done = [
        record
        for record in history
        if record["kind"] == "said"
        and record["daemon"] == life[0]["daemon"]
        and record["line"]["event"] == "conversion_succeeded"
        and begins <= record["t"] <= ends
    ]
    return Growth(
        ends - begins,
        _slope([sample["t"] for sample in life], [sample["rss"] for sample in life]) * (ends - begins),
        quiet[1] - quiet[0],
        max(sample["rss"] for sample in life),
        len(done),
    )


def _slope(x: list[float], y: list[float]) -> float:
    """Of the least squares line."""
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - middle_x) ** 2 for a in x)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0


def counts(history: list[Record]) -> dict[str, int]:
    """How often each thing was done or seen, by a name that a reader understands."""
    found: Counter[str] = Counter()
    shown: set[tuple[str, int, int]] = set()
    for record in history:
        match record["kind"]:
            case "saved":
                found[f"saved, {record['damage']}" if record["damage"] else "saved"] += 1
            case "save_died" | "purged" | "rotted" | "removed" | "retried" | "full" | "hangup" | "stopped":
                found[record["kind"]] += 1
            case "killed":
                found[f"killed, {record['role']}"] += 1
            case "started":
                found["started, on another host" if record["another_host"] else f"started, {record['daemon']}"] += 1
            case "seen" if not record["fault"]:
                shown.add((record["at"], record["inode"], record["made"]))
            case "said" if record["line"]["event"] in ("conversion_succeeded", "conversion_failed", "step_vanished"):
                found[record["line"]["event"]] += 1
            case "left_out":
                found[f"left out: {record['what']}"] += 1
    return {**dict(sorted(found.items())), "published": len(shown)}
