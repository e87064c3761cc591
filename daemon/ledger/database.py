"""Owns the ledger's file: its schema, and how it is opened to write, to read or to rehearse. It alone imports sqlite3.

The ledger is one file on a local disk, in WAL mode. Several daemons and `status` may have it open at the same time.
"""

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NAME = "ledger.sqlite"
PATIENCE = 10.0
"""Seconds that a write of another process is waited for."""
MIGRATIONS = (
    """
    CREATE TABLE steps (
        id INTEGER PRIMARY KEY, path TEXT NOT NULL, save_id TEXT NOT NULL, current INTEGER NOT NULL DEFAULT 1,
        root TEXT NOT NULL, run TEXT NOT NULL, run_name TEXT NOT NULL, step INTEGER NOT NULL,
        state TEXT NOT NULL, reason TEXT NOT NULL, error TEXT, hint TEXT NOT NULL,
        attempts INTEGER NOT NULL, next_attempt REAL, wish TEXT NOT NULL, output TEXT,
        accept_copy INTEGER NOT NULL, complete_at REAL, answer TEXT, first_seen REAL NOT NULL, updated REAL NOT NULL,
        UNIQUE (path, save_id)
    );
    CREATE INDEX steps_current ON steps (root, path) WHERE current;
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY, step_id INTEGER NOT NULL REFERENCES steps (id), started REAL NOT NULL, ended REAL,
        owner TEXT NOT NULL, result TEXT, error TEXT, message TEXT, path TEXT, hint TEXT, seconds REAL, event TEXT
    );
    CREATE INDEX attempts_step ON attempts (step_id);
    CREATE INDEX attempts_open ON attempts (owner) WHERE ended IS NULL;
    CREATE TABLE runs (path TEXT PRIMARY KEY, block TEXT, said TEXT NOT NULL DEFAULT '{}');
    CREATE TABLE requests (id INTEGER PRIMARY KEY, path TEXT NOT NULL, accept_copy INTEGER NOT NULL, asked REAL NOT NULL);
    CREATE TABLE daemons (owner TEXT PRIMARY KEY, since REAL NOT NULL, what TEXT NOT NULL);
    """,
    """
    CREATE TABLE outbox (
        key TEXT PRIMARY KEY, hook TEXT NOT NULL, root TEXT NOT NULL, facts TEXT NOT NULL, created REAL NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0, owner TEXT NOT NULL DEFAULT '',
        ended REAL, result TEXT
    );
    CREATE INDEX outbox_waiting ON outbox (created) WHERE ended IS NULL;
    CREATE TABLE non_finite (
        path TEXT NOT NULL, save_id TEXT NOT NULL, root TEXT NOT NULL, run_name TEXT NOT NULL, step INTEGER NOT NULL,
        found REAL NOT NULL, tensors INTEGER NOT NULL, nan INTEGER NOT NULL, inf INTEGER NOT NULL,
        PRIMARY KEY (path, save_id)
    );
    """,
    """
    CREATE TABLE statistics (
        path TEXT NOT NULL, save_id TEXT NOT NULL, run TEXT NOT NULL, figures TEXT NOT NULL, PRIMARY KEY (path, save_id)
    );
    CREATE INDEX statistics_run ON statistics (run);
    CREATE INDEX steps_run ON steps (run, step) WHERE current;
    """,
    """
    CREATE TABLE jobs (
        name TEXT PRIMARY KEY, path TEXT NOT NULL, save_id TEXT NOT NULL, root TEXT NOT NULL, folder TEXT NOT NULL,
        asked REAL NOT NULL, owner TEXT NOT NULL, memory INTEGER NOT NULL, seconds REAL NOT NULL, id TEXT NOT NULL,
        state TEXT NOT NULL, reason TEXT NOT NULL, place INTEGER NOT NULL, ended REAL, ending TEXT NOT NULL
    );
    CREATE INDEX jobs_save ON jobs (path, save_id);
    CREATE INDEX jobs_open ON jobs (asked) WHERE ended IS NULL;
    """,
    """
    CREATE TABLE roots (
        root TEXT PRIMARY KEY, state TEXT NOT NULL, since REAL NOT NULL, message TEXT NOT NULL, owner TEXT NOT NULL
    );
    ALTER TABLE daemons ADD COLUMN config_error TEXT NOT NULL DEFAULT '';
    ALTER TABLE runs ADD COLUMN keep_latest_k INTEGER NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE steps ADD COLUMN checkpoint_gone INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE steps ADD COLUMN output_gone INTEGER NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE steps ADD COLUMN converted TEXT NOT NULL DEFAULT '';
    ALTER TABLE steps ADD COLUMN refused TEXT NOT NULL DEFAULT '';
    ALTER TABLE steps ADD COLUMN held TEXT;
    ALTER TABLE steps ADD COLUMN listed TEXT NOT NULL DEFAULT '';
    ALTER TABLE runs ADD COLUMN gone REAL;
    ALTER TABLE outbox ADD COLUMN since REAL NOT NULL DEFAULT 0;
    """,
)
"""What brings the schema from one version to the next; released ones are never changed."""

Connection = sqlite3.Connection
Record = sqlite3.Row
Failure = sqlite3.Error
"""What a statement raises where the ledger's disk is full or fails."""
_DISK = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PROTOCOL,  # the lock of its WAL cannot be had
}  # fmt: skip
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class LedgerError(Exception):
    """The ledger cannot be used; the message says which and what to do."""


class LedgerNewer(LedgerError):
    """A later version wrote the ledger: starting again changes nothing."""


class DiskFailure(LedgerError):
    """The disk that holds the ledger is full or fails, or another process keeps it: later may go better."""


class LedgerDamaged(LedgerError):
    """What lies there is no ledger, or a broken one."""


def open_for_writing(folder: Path) -> Connection:
    """The ledger in `folder`, made or brought up to date if need be. Raises LedgerError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        db = sqlite3.connect(folder / NAME, isolation_level=None, timeout=PATIENCE)
        try:
            _use_wal(db)
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA cache_size = -256")  # KiB: the system caches the file, too
            _migrate(db, folder / NAME)
        except BaseException:
            db.close()
            raise
    except (OSError, sqlite3.Error) as error:
        path = folder / NAME
        is_allowed = os.access(folder, os.W_OK | os.X_OK) and (not path.exists() or os.access(path, os.W_OK))
        kind = error_kind(error) if is_allowed else LedgerError
        raise kind(
            f"the ledger cannot be opened: {folder / NAME}: {error}; set state_dir to a folder that this user can write"
        ) from None
    return db


def error_kind(error: Exception) -> type[LedgerError]:
    """Which LedgerError an error of SQLite's, or of the system's, amounts to."""
    if isinstance(error, OSError):
        return DiskFailure if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE) else LedgerError
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return DiskFailure if code in _DISK else LedgerDamaged if code in _DAMAGE else LedgerError


def in_memory() -> Connection:
    """An empty ledger that no disk holds."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    _migrate(db, Path(":memory:"))
    return db


def open_for_reading(folder: Path) -> Connection | None:
    """The ledger in `folder` for reading only, whether or not a daemon has it open; None if there is none.

    One of an older release is read as a copy in memory that is brought up to date: its daemon has not been restarted yet.
    Never creates a file beside it: as root that would shut out the service's own user. Raises LedgerError.
    """
    path = folder / NAME
    if not path.exists():
        return None
    quoted = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    # Without a -wal nobody has it open: SQLite may take it as it lies and needs no files beside it.
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    try:
        try:
            db = sqlite3.connect(f"file:{quoted}?{mode}", uri=True, isolation_level=None, timeout=PATIENCE)
            version = _check_version(db, path)
        except sqlite3.OperationalError:
            db = _copy(path)
            version = _check_version(db, path)
        if version < len(MIGRATIONS):
            db = _in_memory(db)
            _migrate(db, path)
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"the ledger cannot be read: {path}: {error}") from None
    return db


def written(folder: Path) -> tuple[tuple[int, int], ...]:
    """Size and mtime (ns) of the ledger's files in `folder`: others than before if anything was written."""
    found = []
    for suffix in ("", "-wal"):
        with contextlib.suppress(OSError):
            facts = os.stat(folder / f"{NAME}{suffix}")
            found.append((facts.st_size, facts.st_mtime_ns))
    return tuple(found)


def open_for_rehearsal(folder: Path) -> Connection:
    """A copy in memory of the ledger in `folder` (empty if there is none): nothing written to it lasts."""
    found = open_for_reading(folder)
    return in_memory() if found is None else _in_memory(found)


@contextlib.contextmanager
def transaction(db: Connection) -> Iterator[None]:
    """All of it, or nothing; no other process writes meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
            db.execute("ROLLBACK")
        raise


def _check_version(db: sqlite3.Connection, path: Path) -> int:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise LedgerNewer(
            f"the ledger is from a newer dcp2hf (schema {version}, this one knows {len(MIGRATIONS)}): {path}; "
            "use that version, or move the ledger away (conversions are recognised by their manifests)"
        )
    return version


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    if _check_version(db, path) == len(MIGRATIONS):
        return
    with transaction(db):  # two daemons may start at once
        for version in range(_check_version(db, path), len(MIGRATIONS)):
            for statement in filter(str.strip, MIGRATIONS[version].split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {version + 1}")


def _in_memory(found: sqlite3.Connection) -> sqlite3.Connection:
    """A copy in memory; the connection it is made from is closed."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    found.backup(db)
    found.close()
    return db


def _use_wal(db: sqlite3.Connection) -> None:
    """Changes to WAL mode; SQLite does not wait for another process that is doing the same, so this does."""
    ends = time.monotonic() + PATIENCE
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > ends:
                raise
            time.sleep(0.05)


def _copy(path: Path) -> sqlite3.Connection:
    """A ledger in memory with what lies at `path`, for a reader that may not touch the folder (a daemon was killed)."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    with tempfile.TemporaryDirectory(prefix="dcp2hf-") as folder:
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", f"{folder}/{NAME}{suffix}")
        source = sqlite3.connect(f"{folder}/{NAME}")
        source.backup(db)
        source.close()
    return db
