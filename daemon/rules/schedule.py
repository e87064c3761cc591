"""Owns the rules of the queue: the next job, the time of a retry, when to give up, and when there is no room. Pure."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from converter.common.errors import Retry
from daemon.config.settings import Settings
from daemon.ledger.records import OF_ASSETS, Outcome, State

NO_FAILURE = frozenset({Retry.VANISHED, Retry.INCOMPLETE, Retry.SUSPECT, Retry.UNSUPPORTED, Retry.FOREIGN})
"""Outcomes that `--once` lists and does not count."""

_AGAIN_FIRST, _AGAIN_MOST = 1.0, 86400.0
"""Seconds, at least and at most, between two looks at a step that is quarantined for what lies outside of it."""


class Job(NamedTuple):
    """A conversion that may be started."""

    path: str
    root: str
    run: str
    step: int
    not_before: float
    """Epoch seconds."""
    export_bytes: int


class Next(NamedTuple):
    """What follows an attempt for its step."""

    state: State
    attempts: int
    next_attempt: float | None = None
    pauses_root: bool = False

    @property
    def is_failure(self) -> bool:
        """Whether it is said, and told to hooks, as a failure."""
        return self.state in (State.FAILED, State.QUARANTINED, State.PENDING)


def next_jobs(
    jobs: Iterable[Job], *, slots: int, now: float, newest_first: Iterable[str] = (), last_started: Mapping[str, float]
) -> list[Job]:
    """The jobs to start on `slots` free workers.

    Within a run by step (oldest first, but newest first in the roots of `newest_first`); among runs the one that
    waited longest since its last start, so that one run's backlog does not hold up the others.
    """
    newest = set(newest_first)
    by_run: dict[str, list[Job]] = {}
    for job in jobs:
        if job.not_before <= now:
            by_run.setdefault(job.run, []).append(job)
    for waiting in by_run.values():
        waiting.sort(key=lambda job: job.step, reverse=waiting[0].root not in newest)
    started = dict(last_started)
    chosen: list[Job] = []
    while by_run and len(chosen) < slots:
        run = min(by_run, key=lambda name: (started.get(name, 0.0), name))
        chosen.append(by_run[run].pop())
        started[run] = now + len(chosen)
        if not by_run[run]:
            del by_run[run]
    return chosen


def backoff(attempts: int, settings: Settings, jitter: float) -> float:
    """Seconds to wait after the `attempts`-th failure: doubling, capped, and up to a fifth less by `jitter` in [0, 1)."""
    return min(settings.backoff_max, settings.backoff_initial * 2.0 ** max(0, attempts - 1)) * (1 - 0.2 * jitter)


def recheck(failures: int, first: float, jitter: float) -> float:
    """Seconds until a quarantined step is looked at again, for the `failures`-th time: from `first` on, doubling to a day."""
    first = max(_AGAIN_FIRST, first)
    return min(max(_AGAIN_MOST, first), first * 2.0 ** min(max(0, failures - 1), 30)) * (1 - 0.2 * jitter)


def longest_pause(state: State, attempts: int, settings: Settings) -> float:
    """Seconds that a step in this state waits at most, after so many failures."""
    match state:
        case State.FAILED:
            return backoff(attempts, settings, 0.0)
        case State.QUARANTINED:
            return recheck(attempts, settings.backoff_max, 0.0)
    return max(settings.backoff_max, settings.config_grace)


def has_room(job: Job, *, free_bytes: int, reserved: int, settings: Settings) -> bool:
    """Whether the export fits beside what is being written, and leaves `min_free_space`."""
    return free_bytes - reserved - job.export_bytes >= settings.min_free_space


def after_failure(
    outcome: Outcome,
    attempts: int,
    *,
    now: float,
    grace_ends: float,
    pauses: int = 1,
    settings: Settings,
    jitter: float,
) -> Next:
    """What follows a failed attempt.

    `attempts` counts the failures before it, `grace_ends` is when `config_grace` ends (epoch seconds), `pauses` how
    often in a row the file system was full. What is quarantined for a reason that lies outside of the step (a machine,
    assets, a run config) is looked at again now and then: the reason may be gone.
    """
    again, more = now + backoff(attempts + 1, settings, jitter), attempts + 1
    match outcome.retry:
        case Retry.NEVER:
            later = now + recheck(more, settings.backoff_max, jitter) if outcome.error in OF_ASSETS else None
            return Next(State.QUARANTINED, more, later)
        case Retry.BACKOFF:
            if more >= settings.max_attempts:
                later = now + recheck(more - settings.max_attempts + 1, settings.backoff_max, jitter)
                return Next(State.QUARANTINED, more, later)
            return Next(State.FAILED, more, again)
        case Retry.SPACE:
            return Next(State.PENDING, attempts, now + backoff(pauses, settings, jitter), pauses_root=True)
        case Retry.CONFIG:
            if now >= grace_ends:
                return Next(State.QUARANTINED, more, now + recheck(more, settings.backoff_initial, jitter))
            return Next(State.FAILED, attempts, min(again, max(grace_ends, now)))
        case Retry.VANISHED:
            return Next(State.VANISHED, attempts, again)
        case Retry.INCOMPLETE:
            return Next(State.INCOMPLETE, attempts, again)
        case Retry.SUSPECT:
            return Next(State.SUSPECT, attempts, again)
        case Retry.UNSUPPORTED:
            return Next(State.UNSUPPORTED, attempts)
        case Retry.FOREIGN:
            return Next(State.FOREIGN, attempts)
