"""Owns the ledger's summaries: the steps of each run in each state, which steps wait, and the last success."""

from typing import NamedTuple

from daemon.ledger.database import Connection
from daemon.ledger.gone_steps import GONE, STANDS


class Group(NamedTuple):
    """Steps of a run that stand alike."""

    run: str
    """Path of the run."""
    state: str
    error: str | None
    steps: int
    updated: float
    """When one of them last changed, epoch seconds."""


class Waiting(NamedTuple):
    """A complete step that is to be converted."""

    path: str
    run: str
    complete_at: float
    """When it was first seen complete, epoch seconds."""


class Overview(NamedTuple):
    """The newest save of every step, in sum."""

    groups: list[Group]
    waiting: list[Waiting]


def of(db: Connection) -> Overview:
    """One pass over the steps, and one for those that wait."""
    groups = db.execute(
        f"SELECT run, {STANDS} AS stands, CASE WHEN {GONE} THEN NULL ELSE error END AS why, count(*), max(updated) "
        "FROM steps WHERE current GROUP BY run, stands, why"
    )
    waiting = db.execute(
        "SELECT path, run, complete_at FROM steps "
        f"WHERE current AND state IN ('pending', 'failed', 'running') AND complete_at IS NOT NULL AND NOT ({GONE})"
    )
    return Overview([Group(*row) for row in groups], [Waiting(*row) for row in waiting])


def last_successes(db: Connection) -> dict[str, float]:
    """By path of the run, when a step of it was last converted (epoch seconds)."""
    found = db.execute(
        "SELECT s.run, max(a.ended) FROM attempts a JOIN steps s ON s.id = a.step_id WHERE a.result = 'succeeded' GROUP BY s.run"
    )
    return {str(run): float(ended) for run, ended in found}
