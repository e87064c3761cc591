"""Owns the output of a job so far: its event lines as they come, its result, and since when it is silent."""

import asyncio
from typing import Any

from daemon.ledger.records import Outcome
from daemon.runners import converter_output
from daemon.runners.base import Order
from daemon.runners.slurm import job_outcomes


class Following:
    """What a job has said of itself so far, and since when it has said nothing."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._last: dict[str, Any] = {}
        self._others = 0
        self._clock = asyncio.get_running_loop().time
        self._progress = self._clock()
        self.said: Outcome | None = None
        """Once it has ended by itself."""
        self.place: int | None = None
        """Where the event begins that may be its last one: read again by whoever comes next."""
        self.was_stuck = False

    def read(self, lines: list[tuple[int, str]]) -> None:
        """Takes in lines, each with where it begins."""
        for place, text in lines:
            event = converter_output.event_of(text.encode(errors="replace"))
            if event is None:
                self._say(text.rstrip())
                continue
            if event["event"] != "waiting_for_lock":  # of somebody who may hang, or who only pretends
                self._progress = self._clock()
            if event["event"] in converter_output.ENDS:
                self._last, self.place = event, place
            self._order.on_event(event)

    def has_ended(self, code: int, tail: str) -> None:
        """Its result is there."""
        if self.said is None:
            self.said = converter_output.outcome_of(self._last, code) or job_outcomes.of_code(code, tail)

    def runs(self, is_seen: bool) -> None:
        """Whether it runs and what it says could be read: only then may it be too silent."""
        if not is_seen:
            self._progress = self._clock()

    def silence(self) -> float:
        """Seconds without progress."""
        return self._clock() - self._progress

    def _say(self, text: str) -> None:
        self._others += bool(text)
        if text and self._others <= converter_output.MOST_OUTPUT:
            self._order.on_output(text)
