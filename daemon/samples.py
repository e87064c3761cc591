"""Owns where the samples of each run lie below `state_dir` (`convert --statistics`), and that they go with their run."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from daemon.ledger import Ledger
from daemon.records import Outcome, Row
from daemon.settings import Settings

FOLDER = "statistics"
FIELD = "statistics"
"""Of the converter's last event: into a table of its own, not into lines and hooks."""


class Samples:
    """The samples and statistics of all runs of a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

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
        """Forgets the runs below `root` that are not among those that are `there`; None: not known yet."""
        below = f"{root.rstrip('/')}/"
        for run in self._ledger.runs_with_statistics() if there is not None else ():
            if there is not None and f"{run}/".startswith(below) and run not in there:
                self._ledger.forget_statistics(run)
                if (where := self._folder()) is not None:
                    shutil.rmtree(where / name(run), ignore_errors=True)

    def _folder(self) -> Path | None:
        return None if self._ledger.folder is None else self._ledger.folder / FOLDER


def name(run: str) -> str:
    """A folder's name for a run, whatever characters are in its path."""
    return hashlib.sha256(run.encode(errors="surrogateescape")).hexdigest()[:24]
