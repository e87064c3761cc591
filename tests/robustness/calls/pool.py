"""Owns how many families work at the same time, which part of the points a run tries, and what became of all of them."""

from __future__ import annotations

import os
import queue
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.robustness.calls.family import Family

ALL_POINTS = bool(os.environ.get("ALL_POINTS"))
"""Whether every point is tried, or a part of them in which every kind and errno has its place."""


@dataclass
class Row:
    """What became of one situation."""

    suite: str
    situation: str
    points: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def add(self, answer: dict[str, Any]) -> None:
        self.points += answer["points"]
        self.outcomes.update(answer["outcomes"])
        self.broken += answer["broken"]


ROWS: list[Row] = []
"""Of this run."""


class Pool:
    """Families of one kind; a context manager. Two where all points are tried."""

    def __init__(self, library: Path, work: Path, module: str, checkpoints: Path) -> None:
        self._module = module
        self._free: queue.SimpleQueue[Family] = queue.SimpleQueue()
        self._families = []
        for number in range(2 if ALL_POINTS else 1):
            folder = work / str(number)
            folder.mkdir()
            self._families.append(Family(library, folder))
        self._threads = ThreadPoolExecutor(len(self._families))
        list(self._threads.map(lambda f: f.ask(f"{module}:begin", checkpoints=str(checkpoints)), self._families))
        for family in self._families:
            self._free.put(family)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        for family in self._families:
            family.__exit__()

    def ask(self, function: str, **arguments: Any) -> Any:
        """Of whichever family is free."""
        family = self._free.get()
        try:
            return family.ask(f"{self._module}:{function}", **arguments)
        finally:
            self._free.put(family)

    def tried(self, suite: str, situation: str, function: str, jobs: Iterable[dict[str, Any]]) -> Row:
        """All jobs of one situation. Fails unless there was a fault to meet, and every promise held."""
        row = Row(suite, situation)
        for answer in self._threads.map(lambda job: self.ask(function, **job), list(jobs)):
            row.add(answer)
            for line in answer["broken"]:
                print(line, flush=True)
        ROWS.append(row)
        assert not row.broken, f"{len(row.broken)} of {row.points} points:\n" + "\n".join(row.broken[:40])
        assert row.points
        return row
