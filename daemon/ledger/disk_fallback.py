"""Owns the ledger in memory, which is used while its disk is full or fails, and is written back later.

The disk with the checkpoints is the truth. If the daemon dies in the meantime, only history and pacing are lost,
because published directories are recognised by their manifests.
"""

import contextlib
import functools
import inspect
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from daemon.host.logs import Logger
from daemon.ledger import database
from daemon.ledger.database import DiskFailure, LedgerDamaged, LedgerError, transaction
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Row

AGAIN = 30.0
"""Seconds between two attempts to go back to the disk."""


class KeptLedger(Ledger):
    """A ledger whose public methods never fail for its disk; what happens is said, once."""

    def __init__(self, folder: Path, log: Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Opens the ledger in `folder`. Raises LedgerError where that is no matter of a full or failing disk."""
        self.folder: Path = folder
        self._log, self._clock = log, clock
        self._next_try = 0.0
        """When to try the disk again."""
        try:
            super().__init__(self._open())
        except DiskFailure as problem:
            super().__init__(database.in_memory())
            self._is_away(str(problem))

    def go_back(self) -> None:
        """Goes back to the disk, with all that was remembered meanwhile, if it is time to try and the disk lets it."""
        if not self.is_away or self._clock() < self._next_try:
            return
        self._next_try = self._clock() + AGAIN
        try:
            db = self._open()
            try:
                _merge(self._db, self.folder / database.NAME)
            except BaseException:
                db.close()
                raise
        except (LedgerError, database.Failure) as problem:
            if isinstance(problem, database.Failure) and issubclass(database.error_kind(problem), LedgerDamaged):
                with contextlib.suppress(LedgerError):
                    self._replace(problem).close()  # for the next try
            return
        self._db.close()
        self._use(db)
        self.is_away = False
        self._log.info("state_dir_recovered", path=str(self.folder))

    def _open(self) -> database.Connection:
        try:
            return database.open_for_writing(self.folder)
        except LedgerDamaged as problem:
            return self._replace(problem)

    def _replace(self, problem: Exception) -> database.Connection:
        """A new ledger in place of a damaged one. Raises LedgerError."""
        try:
            aside = _set_aside(self.folder)
        except OSError as error:
            raise DiskFailure(str(error)) from None
        hint = "a new one is begun: conversions are recognised by their manifests"
        self._log.error("ledger_damaged", path=str(aside), message=str(problem), hint=hint)
        return database.open_for_writing(self.folder)

    def _leave(self, problem: Exception) -> None:
        """Goes on elsewhere: with a new ledger in place of a damaged one, else in memory with what can still be read."""
        memory = database.in_memory()
        try:
            if issubclass(database.error_kind(problem), LedgerDamaged):
                self._db.close()
                self._use(self._replace(problem))
                return
            self._db.backup(memory)
        except (LedgerError, database.Failure):
            memory = database.in_memory()
        self._db.close()
        self._use(memory)
        self._is_away(str(problem))

    def _is_away(self, message: str) -> None:
        self.is_away, self._next_try = True, self._clock() + AGAIN
        hint = "make room on the disk of state_dir, or look at it; conversions go on, attempts are counted in memory"
        self._log.error("state_dir_failed", path=str(self.folder), error="NoStateDir", message=message, hint=hint)


def _survives(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: KeptLedger, *args: Any, **options: Any) -> Any:
        try:
            return method(self, *args, **options)
        except database.Failure as problem:
            if self.is_away or not issubclass(database.error_kind(problem), DiskFailure | LedgerDamaged):
                raise
            self._leave(problem)
            return method(self, *args, **options)

    return run


# Every public method: none can be forgotten.
for _name, _method in inspect.getmembers(Ledger, inspect.isfunction):
    if _name not in vars(KeptLedger) and not _name.startswith("_"):
        setattr(KeptLedger, _name, _survives(_method))


def _set_aside(folder: Path) -> Path:
    """Moves a damaged ledger out of the way; returns where it is now. Raises OSError."""
    aside = folder / f"{database.NAME}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder / f"{database.NAME}{suffix}", f"{aside}{suffix}")
    return aside


def _merge(memory: database.Connection, path: Path) -> None:
    """Writes what `memory` holds into the ledger at `path`. Raises Failure, and then nothing of it was written."""
    steps = ", ".join(
        [
            *(field.name for field in msgspec.structs.fields(Row)),
            "current",
            "first_seen",
            "updated",
            "checkpoint_gone",
            "output_gone",
        ]
    )
    update = ", ".join(f"{name} = excluded.{name}" for name in steps.split(", "))
    attempts = "started, ended, owner, result, error, message, path, hint, seconds, event"
    taken = ", ".join(f"a.{name}" for name in attempts.split(", "))
    memory.execute("ATTACH DATABASE ? AS disk", (str(path),))
    try:
        with transaction(memory):
            memory.execute(
                "UPDATE disk.steps SET current = 0 WHERE path IN (SELECT path FROM main.steps WHERE current)"
            )
            memory.execute(
                f"INSERT INTO disk.steps ({steps}) SELECT {steps} FROM main.steps WHERE true "
                f"ON CONFLICT (path, save_id) DO UPDATE SET {update}"
            )
            memory.execute(
                "DELETE FROM disk.attempts WHERE (owner, started) IN (SELECT owner, started FROM main.attempts)"
            )
            memory.execute(
                f"INSERT INTO disk.attempts (step_id, {attempts}) SELECT d.id, {taken} FROM main.attempts a "
                "JOIN main.steps m ON m.id = a.step_id JOIN disk.steps d ON d.path = m.path AND d.save_id = m.save_id"
            )
            for table in ("runs", "roots", "daemons", "outbox", "non_finite", "statistics", "jobs"):
                memory.execute(f"INSERT OR REPLACE INTO disk.{table} SELECT * FROM main.{table}")
    finally:
        memory.execute("DETACH DATABASE disk")
