"""Owns the folders of each run's samples below `state_dir` (`convert --statistics`). They are removed with the run."""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outcome, Row

FOLDER = "statistics"
FIELD = "statistics"
"""Of the converter's last event: into a table of its own, not into lines and hooks."""
KEPT_AWAY = 7 * 86_400.0
"""Seconds for which they are kept of a run that is not there: its mount may be back."""


class Samples:
    """The samples and statistics of all runs of a ledger."""

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._clock = ledger, clock

    def folder(self, run: str, settings: Settings) -> str:
        """Where a conversion keeps samples of the run at `run`; empty: it keeps none.

        Jobs keep none: `state_dir` is of this host alone.
        """
        where = self._ledger.folder
        if not settings.statistics or where is None or self._ledger.is_away or settings.runner == "slurm":
            return ""
        return str(where / FOLDER / name(run))

    def remember(self, row: Row, outcome: Outcome) -> None:
        """Moves what an attempt said of its step from its last event into the ledger."""
        figures: Any = outcome.event.pop(FIELD, None)
        if outcome.result == "succeeded" and isinstance(figures, dict):
            self._ledger.put_statistics(row, figures)

    def begin(self) -> None:
        """Removes folders of runs that nobody knows: a daemon died, or the ledger was moved away."""
        if (where := self._folder()) is None:
            return
        known = {name(run) for run in self._ledger.runs_with_statistics()}
        try:
            folders = list(where.iterdir())
        except OSError:  # there is none yet, or its disk fails: the next start looks again
            return
        for folder in folders:
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def keep(self, root: str, there: set[str] | None) -> None:
        """Forgets the runs below `root` that are not among those that are `there`, once they were away for long.

        Of a run that is back, if another one took its path. None: not known yet.
        """
        if there is None:
            return
        below, away = f"{root.rstrip('/')}/", self._ledger.away()
        for run in self._ledger.runs_with_statistics():
            if not f"{run}/".startswith(below) or (run in there and run not in away):
                continue
            since = away.get(run)
            if run in there:
                is_same = self._ledger.is_same_run(run, since or 0.0)
                if is_same is None:  # none of its steps is known yet
                    continue
                self._ledger.note_away(run, None)
            elif since is None:
                self._ledger.note_away(run, self._clock())
                continue
            else:
                is_same = self._clock() - since < KEPT_AWAY
            if not is_same:
                self._forget(run)

    def _forget(self, run: str) -> None:
        self._ledger.forget_statistics(run)
        if (where := self._folder()) is not None:
            shutil.rmtree(where / name(run), ignore_errors=True)

    def _folder(self) -> Path | None:
        return None if self._ledger.folder is None else self._ledger.folder / FOLDER


def name(run: str) -> str:
    """A folder's name for a run, whatever characters are in its path."""
    return hashlib.sha256(run.encode(errors="surrogateescape")).hexdigest()[:24]
