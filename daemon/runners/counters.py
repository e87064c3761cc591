"""Owns the counters since the daemon's start: attempts, their outcomes and durations. Plain numbers (see `metrics`)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from daemon.ledger.records import Outcome
from daemon.rules.schedule import NO_FAILURE

OUTCOMES = ("succeeded", "failed", "skipped", "set_aside", "interrupted")
SECONDS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10800.0)
"""Upper bounds of the histograms: a phase of a tiny model to hours of a large one on a slow file system."""
MOST_PHASES = 24
"""Phases that are told apart; the converter has nine."""
OTHER = "other"


class Histogram:
    """How often a value fell between bounds."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Up to each bound and more than the one before; the last one past all."""
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tally:
    """What was counted; nothing is forgotten, and nothing grows with runs but `last_success`."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.durations = {outcome: Histogram() for outcome in OUTCOMES}
        self.phases: dict[str, Histogram] = {}
        self.bytes_read = 0
        self.bytes_written = 0
        self.peak_memory = 0
        """Bytes."""
        self.last_success: dict[str, float] = {}
        """By path of the run, epoch seconds."""
        self.slurm_calls: Counter[tuple[str, ...]] = Counter()
        """By command and how it went: ok or failed."""
        self.is_slurm_up: bool | None = None
        """None: not asked, or not now."""

    def attempt(self, run: str, outcome: Outcome, now: float) -> None:
        """An attempt at a step of `run` ended."""
        name = "set_aside" if outcome.result == "failed" and outcome.retry in NO_FAILURE else outcome.result
        self.outcomes[name] += 1
        self.durations[name].add(outcome.seconds)
        self.peak_memory = max(self.peak_memory, outcome.peak_memory)
        if outcome.error:
            self.errors[outcome.error] += 1
        if name == "succeeded":
            self.last_success[run] = now
            self.bytes_read += int(outcome.event.get("bytes_read", 0))
            self.bytes_written += int(outcome.event.get("bytes_written", 0))
            for phase, seconds in dict(outcome.event.get("phases", {})).items():
                known = phase if phase in self.phases or len(self.phases) < MOST_PHASES else OTHER
                self.phases.setdefault(known, Histogram()).add(float(seconds))
