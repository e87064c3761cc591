"""Owns the ledger's list of steps whose checkpoint or export does not exist any more.

The list is separate from a step's state. A step that comes back has its earlier state.
"""

import os
from collections.abc import Collection
from typing import NamedTuple

from daemon.ledger.database import Connection, transaction
from daemon.ledger.records import State

GONE = "checkpoint_gone AND state != 'running' AND (state != 'done' OR output_gone)"
"""Condition for a step whose checkpoint is gone, and of which no export of ours is left: none was made, or it is gone too."""
STANDS = f"CASE WHEN {GONE} THEN 'vanished' WHEN state = 'done' AND output_gone THEN 'removed' ELSE state END"
"""Where a step stands now."""


class Missing(NamedTuple):
    """What listings did not show of a step that the ledger remembers."""

    checkpoint: bool = False
    output: bool = False


def stands(state: State, missing: Missing) -> State:
    """`STANDS`, of one step."""
    if state != State.RUNNING and missing.checkpoint and (state != State.DONE or missing.output):
        return State.VANISHED
    return State.REMOVED if state == State.DONE and missing.output else state


class Listings:
    """The part of a ledger that knows what is there."""

    _db: Connection

    def take_inventory(self, run: str, steps: Collection[int], exports: Collection[int]) -> None:
        """Remembers which steps and exports of a run a listing showed; writes only what is news."""
        known = self._db.execute(
            "SELECT id, step, checkpoint_gone, output_gone FROM steps WHERE current AND run = ?", (run,)
        ).fetchall()
        news = [
            (*missing, identity)
            for identity, step, *before in known
            if (missing := Missing(step not in steps, step not in exports)) != tuple(map(bool, before))
        ]
        if news:
            with transaction(self._db):
                self._db.executemany("UPDATE steps SET checkpoint_gone = ?, output_gone = ? WHERE id = ?", news)

    def nothing_left(self, root: str, *, but: Collection[str], max_depth: int) -> None:
        """Nothing is there of the runs so far below a root, but for these."""
        runs = self._db.execute("SELECT DISTINCT run FROM steps WHERE current AND root = ?", (root,)).fetchall()
        for (run,) in runs:
            depth = 0 if run == root else os.path.relpath(run, root).count("/") + 1
            if run not in but and depth <= max_depth:
                self.take_inventory(run, (), ())

    def missing(self, runs: Collection[str] | None = None) -> dict[str, Missing]:
        """By path of the step (of these runs, or of all), what is not there; steps that are whole are left out."""
        where = "" if runs is None else f" AND run IN ({', '.join('?' * len(runs))})"
        found = self._db.execute(
            f"SELECT path, checkpoint_gone, output_gone FROM steps WHERE current AND (checkpoint_gone OR output_gone){where}",
            tuple(runs or ()),
        )
        return {path: Missing(bool(checkpoint), bool(output)) for path, checkpoint, output in found}
