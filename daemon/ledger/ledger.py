"""Owns the ledger: the history of steps, attempts, runs and running daemons. Steps are keyed by path and save.

The disk is the truth, because a published directory has its manifest. The ledger is history and pacing.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from daemon.host.process import is_alive, owner_of
from daemon.ledger import database, overview
from daemon.ledger.database import Connection, Record, transaction
from daemon.ledger.gone_steps import Listings
from daemon.ledger.outbox import Outbox
from daemon.ledger.page_queries import Digest
from daemon.ledger.records import COLUMNS, AttemptKey, Block, Ended, Outcome, Row, State, row_of
from daemon.ledger.root_states import RootStates
from daemon.ledger.slurm_jobs import JobBook
from daemon.scanner.messages import Answer

_FORGIVEN = (State.FAILED, State.QUARANTINED, State.REMOVED, State.UNSUPPORTED, State.FOREIGN, State.VANISHED)


class Ledger(Outbox, Digest, JobBook, RootStates, Listings):
    """One open ledger."""

    def __init__(self, connection: Connection) -> None:
        self.owner = owner_of(os.getpid())
        self._use(connection)
        self.changed()

    def _use(self, connection: Connection) -> None:
        self._db = connection
        self._db.row_factory = Record
        self._version = -1
        """Of what other processes wrote, as `changed` saw it last."""

    @classmethod
    def open(cls, folder: Path) -> "Ledger":
        """The ledger in `folder`, made or brought up to date if need be. Raises LedgerError."""
        return cls(database.open_for_writing(folder))

    @classmethod
    def read(cls, folder: Path) -> "Ledger | None":
        """The ledger in `folder` for reading only, None if there is none. Raises LedgerError."""
        db = database.open_for_reading(folder)
        return cls(db) if db is not None else None

    @classmethod
    def rehearsal(cls, folder: Path) -> "Ledger":
        """A copy in memory: nothing written to it lasts. Raises LedgerError."""
        return cls(database.open_for_rehearsal(folder))

    folder: Path | None = None
    """Where it lies, of one that is written; samples for statistics lie there too."""
    is_away = False
    """Whether what is remembered now is in memory only (`disk_fallback`)."""

    def go_back(self) -> None:
        """Goes back to the disk where it was left (`disk_fallback`)."""

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    # Steps
    def row(self, path: str, save_id: str | None = None) -> Row | None:
        """The newest save of the step at `path`, or the one with this id."""
        which, values = ("current", (path,)) if save_id is None else ("save_id = ?", (path, save_id))
        found = self._db.execute(
            f"SELECT {', '.join(COLUMNS)} FROM steps WHERE path = ? AND {which}", values
        ).fetchone()
        return row_of(dict(found)) if found else None

    def put(self, row: Row, *, of_attempt: bool = False) -> bool:
        """Remembers a row. Another save than the one before begins a history of its own.

        `of_attempt`: nothing is written, and False returned, where another daemon with this ledger has published this
        save meanwhile: what a slower one met is no reason to convert it again.
        """
        values = {
            **msgspec.structs.asdict(row),
            "state": str(row.state),
            "answer": msgspec.json.encode(row.answer).decode() if row.answer else None,
            "held": msgspec.json.encode(row.held).decode() if row.held else None,
            "now": time.time(),
        }
        with transaction(self._db):
            settled = "SELECT 1 FROM steps WHERE path = :path AND save_id = :save_id AND current AND state IN ('done', 'removed')"
            if of_attempt and self._db.execute(settled, values).fetchone():
                return False
            # A step that was incomplete gets its identity now; it is still the same step.
            self._db.execute(
                "UPDATE OR IGNORE steps SET save_id = :save_id WHERE path = :path AND save_id = '' AND :save_id != ''",
                values,
            )
            self._db.execute(
                "UPDATE steps SET current = 0 WHERE path = :path AND current AND save_id != :save_id", values
            )
            names = ", ".join(COLUMNS)
            update = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS)
            self._db.execute(
                f"INSERT INTO steps ({names}, current, first_seen, updated) "
                f"VALUES ({', '.join(f':{name}' for name in COLUMNS)}, 1, :now, :now) "
                "ON CONFLICT (path, save_id) DO UPDATE SET current = 1, updated = excluded.updated, "
                f"output_gone = CASE excluded.state WHEN 'done' THEN 0 ELSE output_gone END, {update}",
                values,
            )
        return True

    def rows(self, under: str | None = None) -> Iterator[Row]:
        """The newest save of every step, or of those at or below a path; by run and step."""
        query = f"SELECT {', '.join(COLUMNS)} FROM steps WHERE current"
        where, values = _under(under)
        found = self._db.execute(f"{query}{where} ORDER BY root, run, step", values).fetchall()
        return (row_of(dict(record)) for record in found)

    def answers(self, root: str) -> Iterator[tuple[str, Answer]]:
        """What is known of the steps below a root, so that a scanner need not look into them again."""
        found = self._db.execute(
            "SELECT path, answer FROM steps WHERE current AND root = ? AND answer IS NOT NULL", (root,)
        ).fetchall()
        return ((path, msgspec.json.decode(answer, type=Answer)) for path, answer in found)

    # Attempts
    def begin_attempt(self, row: Row, now: float) -> AttemptKey:
        """Remembers that an attempt began; `status` shows it while this process lives."""
        self._db.execute(
            "INSERT INTO attempts (step_id, started, owner) SELECT id, ?, ? FROM steps WHERE path = ? AND save_id = ?",
            (now, self.owner, row.path, row.save_id),
        )
        return AttemptKey(row.path, row.save_id, now)

    def end_attempt(self, attempt: AttemptKey, outcome: Outcome, now: float) -> None:
        """Remembers how it ended."""
        self._db.execute(
            "UPDATE attempts SET ended = ?, result = ?, error = ?, message = ?, path = ?, hint = ?, seconds = ?, event = ? "
            "WHERE owner = ? AND started = ? AND step_id = (SELECT id FROM steps WHERE path = ? AND save_id = ?)",
            (
                now, outcome.result, outcome.error, outcome.message, outcome.path, outcome.hint, outcome.seconds,
                msgspec.json.encode(outcome.event).decode(), self.owner, attempt.started, attempt.path, attempt.save_id,
            ),
        )  # fmt: skip

    def last_attempt(self, path: str, save_id: str, *, before: float | None = None) -> Ended | None:
        """The last attempt at this save (of those that began before `before`), whoever made it."""
        found = self._db.execute(
            "SELECT a.started, a.result, a.owner FROM attempts a JOIN steps s ON s.id = a.step_id "
            "WHERE s.path = ? AND s.save_id = ? AND a.started < ? ORDER BY a.id DESC LIMIT 1",
            (path, save_id, float("inf") if before is None else before),
        ).fetchone()
        if found is None:
            return None
        return Ended(found["started"], found["result"] or ("running" if is_alive(found["owner"]) else "interrupted"))

    def last_attempts(self) -> dict[str, dict[str, Any]]:
        """By path of the step, the last attempt at its newest save."""
        found = self._db.execute(
            "SELECT s.path AS step_path, a.*, (SELECT count(*) FROM attempts b WHERE b.step_id = s.id) AS number FROM attempts a "
            "JOIN steps s ON s.id = a.step_id AND s.current WHERE a.id = (SELECT max(id) FROM attempts b WHERE b.step_id = s.id)"
        )
        return {
            row["step_path"]: {**row, "event": msgspec.json.decode(row["event"] or "{}")} for row in map(dict, found)
        }

    # In sum
    def overview(self) -> overview.Overview:
        """Where all steps stand."""
        return overview.of(self._db)

    def last_successes(self) -> dict[str, float]:
        """By path of the run, when a step of it was last converted."""
        return overview.last_successes(self._db)

    def revision(self) -> tuple[int, int, bool]:
        """Another one than before if anything may have changed, by whomever."""
        return self._db.total_changes, self._db.execute("PRAGMA data_version").fetchone()[0], self.is_away

    # Runs
    def block(self, run: str) -> Block | None:
        """Why nothing of a run can be converted, if it was found so."""
        found = self._db.execute("SELECT block FROM runs WHERE path = ? AND block IS NOT NULL", (run,)).fetchone()
        return msgspec.json.decode(found[0], type=Block) if found else None

    def set_block(self, run: str, block: Block | None) -> None:
        """Remembers that nothing of a run can be converted, or forgets it."""
        said = msgspec.json.encode(block).decode() if block else None
        self._db.execute(
            "INSERT INTO runs (path, block) VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET block = excluded.block",
            (run, said),
        )

    def forgive(self, run: str, errors: Iterable[str]) -> int:
        """What a run's steps failed with, of these errors, has passed: their failures are forgotten; returns how many."""
        marks = ", ".join(f"'{error}'" for error in errors)
        failed = f"run = ? AND state IN ('failed', 'quarantined') AND error IN ({marks})"
        # Of steps that are away, incomplete or suspect: a `Held` is stored as a list.
        held = f"run = ? AND json_extract(held, '$[0]') = 'quarantined' AND json_extract(held, '$[2]') IN ({marks})"
        with transaction(self._db):
            (count,) = self._db.execute(
                f"SELECT count(DISTINCT path) FROM steps WHERE ({failed}) OR ({held})", (run, run)
            ).fetchone()
            self._db.execute(
                "UPDATE steps SET state = 'pending', reason = '', error = NULL, hint = '', attempts = 0, next_attempt = NULL "
                f"WHERE {failed}",
                (run,),
            )
            self._db.execute(f"UPDATE steps SET held = NULL, attempts = 0 WHERE {held}", (run,))
        return int(count)

    def forget_block(self, run: str) -> None:
        """Another run may lie there now: it is judged anew, and told of anew."""
        self._db.execute(
            "UPDATE runs SET block = NULL, said = json_remove(said, '$.run_unsupported') WHERE path = ?", (run,)
        )

    def say_once(self, run: str, event: str, what: str) -> bool:
        """Whether `event` is to be said of a run: the first time, and when `what` it says changed."""
        with transaction(self._db):
            self._db.execute("INSERT OR IGNORE INTO runs (path) VALUES (?)", (run,))
            said = msgspec.json.decode(self._db.execute("SELECT said FROM runs WHERE path = ?", (run,)).fetchone()[0])
            if said.get(event) == what:
                return False
            said[event] = what
            self._db.execute("UPDATE runs SET said = ? WHERE path = ?", (msgspec.json.encode(said).decode(), run))
        return True

    def note_retention(self, run: str, keep_latest_k: int) -> None:
        """Remembers the `keep_latest_k` against which a run's exports count; 0: they do not count."""
        known = self._db.execute("SELECT keep_latest_k FROM runs WHERE path = ?", (run,)).fetchone()
        if (known[0] if known else 0) != keep_latest_k:
            self._db.execute(
                "INSERT INTO runs (path, keep_latest_k) VALUES (?, ?) "
                "ON CONFLICT (path) DO UPDATE SET keep_latest_k = excluded.keep_latest_k",
                (run, keep_latest_k),
            )

    def retention(self) -> dict[str, int]:
        """By path of the run, the `keep_latest_k` against which its exports count, where they do."""
        found = self._db.execute("SELECT path, keep_latest_k FROM runs WHERE keep_latest_k > 0")
        return {str(run): int(keep) for run, keep in found}

    # Requests of `retry`
    def request(self, path: str, *, accept_copy: bool) -> int:
        """Forgets the failures of a step, or of a run's steps, and tells a running daemon; returns how many steps."""
        with transaction(self._db):
            count = self._forgive(path, accept_copy)
            if count:
                self._db.execute(
                    "INSERT INTO requests (path, accept_copy, asked) VALUES (?, ?, ?)", (path, accept_copy, time.time())
                )
        return count

    def take_requests(self, roots: Sequence[str]) -> list[str]:
        """Paths below `roots` that `retry` was asked for, forgiven once more: a daemon may have written meanwhile."""
        with transaction(self._db):
            asked = self._db.execute("SELECT id, path, accept_copy FROM requests").fetchall()
            found = [
                request
                for request in asked
                if any(f"{request['path']}/".startswith(f"{root.rstrip('/')}/") for root in roots)
            ]
            for identity, path, accept_copy in found:
                self._forgive(path, bool(accept_copy))
                self._db.execute("DELETE FROM requests WHERE id = ?", (identity,))
        return [path for _, path, _ in found]

    def _forgive(self, path: str, accept_copy: bool) -> int:
        where, values = _under(path)
        matched = int(self._db.execute(f"SELECT count(*) FROM steps WHERE current{where}", values).fetchone()[0])
        marks = ", ".join(f"'{state}'" for state in _FORGIVEN)
        self._db.execute(
            f"UPDATE steps SET state = 'pending', reason = '', error = NULL, hint = '', attempts = 0, next_attempt = NULL "
            f"WHERE state IN ({marks}){where}",
            values,
        )
        self._db.execute(f"UPDATE steps SET held = NULL WHERE held IS NOT NULL{where}", values)
        self._db.execute(
            f"UPDATE runs SET block = NULL WHERE path IN (SELECT run FROM steps WHERE current{where})",
            values,
        )
        if accept_copy:
            self._db.execute(f"UPDATE steps SET accept_copy = 1 WHERE current{where}", values)
            self._db.execute(f"UPDATE steps SET state = 'pending' WHERE current AND state = 'suspect'{where}", values)
        return matched

    def changed(self) -> bool:
        """Whether another process wrote since the last call: cheap enough to ask every second."""
        before, self._version = self._version, int(self._db.execute("PRAGMA data_version").fetchone()[0])
        return before != self._version

    # Daemons
    def register(self, what: str) -> None:
        """Notes that this process runs, closes what dead ones left open."""
        for (owner,) in self._db.execute(
            "SELECT owner FROM daemons UNION SELECT owner FROM attempts WHERE ended IS NULL"
        ).fetchall():
            if not is_alive(owner):
                with transaction(self._db):
                    self._db.execute("DELETE FROM daemons WHERE owner = ?", (owner,))
                    self._db.execute(
                        "UPDATE attempts SET ended = started, result = 'interrupted' WHERE owner = ? AND ended IS NULL",
                        (owner,),
                    )
        self._db.execute(
            "INSERT OR REPLACE INTO daemons (owner, since, what) VALUES (?, ?, ?)", (self.owner, time.time(), what)
        )

    def unregister(self) -> None:
        """This process ends."""
        self._db.execute("DELETE FROM daemons WHERE owner = ?", (self.owner,))

    def note_config(self, error: str) -> None:
        """Remembers why this daemon refused the last configuration; empty: it uses it."""
        self._db.execute("UPDATE daemons SET config_error = ? WHERE owner = ?", (error, self.owner))

    def daemons(self) -> list[dict[str, Any]]:
        """Processes that have the ledger in use now."""
        return [
            {"pid": int(owner.partition(" ")[0]), "since": since, "what": what, "config_error": config_error or None}
            for owner, since, what, config_error in self._db.execute(
                "SELECT owner, since, what, config_error FROM daemons ORDER BY since"
            )
            if is_alive(owner)
        ]


def _under(path: str | None) -> tuple[str, tuple[str, ...]]:
    """A condition for a step, a run, or a folder of runs, whatever characters are in its name."""
    if path is None:
        return "", ()
    below = path.rstrip("/") + "/"
    return " AND (path = ? OR substr(path, 1, length(?)) = ?)", (path, below, below)
