"""Owns the ledger's queries for pages: newest steps of runs, last errors, and the statistics of a run over its steps.

Every query is limited, whatever the size of the ledger.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from daemon.ledger.database import Connection, Record
from daemon.ledger.gone_steps import GONE
from daemon.ledger.records import COLUMNS, Row, row_of
from daemon.scanner.messages import Answer

_STEP_COLUMNS = ", ".join(f"s.{name}" for name in COLUMNS)


class _Told(msgspec.Struct, omit_defaults=True):
    """Of a converter's last event, what `status` shows."""

    duration_seconds: float | None = None
    bytes_read: int | None = None
    bytes_written: int | None = None


class Figures(NamedTuple):
    """The statistics of one step."""

    step: int
    figures: msgspec.Raw
    """JSON, as the converter said it."""


class NonFinite(NamedTuple):
    """What was found in a save that holds NaN or infinity."""

    step: int
    tensors: int
    nan: int
    inf: int
    elements: int
    """Of the model; 0 where that is not known."""


class Cause(NamedTuple):
    """Steps that are not converted for the same reason."""

    newest: Row
    """The one of them that met it last."""
    steps: int
    runs: int
    at: float
    """When, epoch seconds."""


class Digest:
    """The part of a ledger that pages use."""

    _db: Connection

    # Steps
    def newest(self, runs: Sequence[str], each: int) -> list[tuple[Row, dict[str, Any]]]:
        """Of each of these runs its newest steps, newest first, with the last attempt at each (as `last_attempts`)."""
        marks = ", ".join("?" * len(runs))
        found = self._db.execute(
            f"WITH ranked AS (SELECT id, row_number() OVER (PARTITION BY run ORDER BY step DESC) AS place "
            f"FROM steps WHERE current AND run IN ({marks})) "
            f"SELECT {_STEP_COLUMNS}, a.started, a.seconds, a.event, "
            "(SELECT count(*) FROM attempts b WHERE b.step_id = s.id) AS number "
            "FROM ranked r JOIN steps s ON s.id = r.id "
            "LEFT JOIN attempts a ON a.id = (SELECT max(id) FROM attempts b WHERE b.step_id = s.id) "
            "WHERE r.place <= ? ORDER BY s.run, s.step DESC",
            (*runs, each),
        )
        return [(_step_of(record), _attempt_of(record)) for record in found.fetchall()]

    def causes(self, most: int) -> list[Cause]:
        """Why steps are not converted: by error and reason, the one that was met last first."""
        found = self._db.execute(  # of an aggregate with max(), SQLite takes bare columns from that row
            f"SELECT {_STEP_COLUMNS}, max(s.updated) AS at, count(*) AS steps, count(DISTINCT s.run) AS runs FROM steps s "
            f"WHERE s.current AND s.error IS NOT NULL AND NOT ({GONE}) GROUP BY s.error, s.reason ORDER BY at DESC LIMIT ?",
            (most,),
        )
        return [Cause(_step_of(found), found["steps"], found["runs"], found["at"]) for found in found.fetchall()]

    # Statistics
    def put_statistics(self, row: Row, figures: dict[str, Any]) -> None:
        """Remembers the statistics of a save."""
        self._db.execute(
            "INSERT OR REPLACE INTO statistics (path, save_id, run, figures) VALUES (?, ?, ?, ?)",
            (row.path, row.save_id, row.run, msgspec.json.encode(figures).decode()),
        )

    def statistics(self, run: str, most: int) -> tuple[list[Figures], int]:
        """Those of a run's newest steps, newest first, and how many older ones are left out."""
        joined = (
            "FROM steps s JOIN statistics t ON t.path = s.path AND t.save_id = s.save_id WHERE s.current AND s.run = ?"
        )
        found = self._db.execute(
            f"SELECT s.step, t.figures {joined} ORDER BY s.step DESC LIMIT ?", (run, most)
        ).fetchall()
        count = int(self._db.execute(f"SELECT count(*) {joined}", (run,)).fetchone()[0])
        return [Figures(step, msgspec.Raw(figures.encode())) for step, figures in found], count - len(found)

    def non_finite(self, run: str, most: int) -> list[NonFinite]:
        """The newest steps of a run whose present save holds NaN or infinity, newest first."""
        found = self._db.execute(
            "SELECT s.step, n.tensors, n.nan, n.inf, s.answer FROM steps s "
            "JOIN non_finite n ON n.path = s.path AND n.save_id = s.save_id "
            "WHERE s.current AND s.run = ? ORDER BY s.step DESC LIMIT ?",
            (run, most),
        ).fetchall()
        return [
            NonFinite(step, tensors, nan, inf, msgspec.json.decode(answer, type=Answer).model_elements if answer else 0)
            for step, tensors, nan, inf, answer in found
        ]

    def runs_with_statistics(self) -> list[str]:
        """Paths of the runs of which there are any."""
        return [str(run) for (run,) in self._db.execute("SELECT DISTINCT run FROM statistics")]

    def forget_statistics(self, run: str) -> None:
        """Of a run that is gone."""
        self._db.execute("DELETE FROM statistics WHERE run = ?", (run,))
        self._db.execute("UPDATE runs SET gone = NULL WHERE path = ?", (run,))

    def away(self) -> dict[str, float]:
        """Runs that are not there but remembered, and since when (epoch seconds)."""
        return dict(self._db.execute("SELECT path, gone FROM runs WHERE gone IS NOT NULL").fetchall())

    def note_away(self, run: str, since: float | None) -> None:
        """A run is not there, since then; None: it is back."""
        self._db.execute(
            "INSERT INTO runs (path, gone) VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET gone = excluded.gone",
            (run, since),
        )

    def is_same_run(self, run: str, since: float) -> bool | None:
        """Whether a save that is there was known before `since`; None where no save of the run is known to be there."""
        (known,) = self._db.execute(
            "SELECT max(first_seen < ?) FROM steps WHERE current AND run = ? AND save_id != '' AND NOT checkpoint_gone",
            (since, run),
        ).fetchone()
        return None if known is None else bool(known)


def _step_of(record: Record) -> Row:
    return row_of({name: record[name] for name in COLUMNS})


def _attempt_of(record: Record) -> dict[str, Any]:
    if record["started"] is None:
        return {}
    told = msgspec.json.decode(record["event"] or "{}", type=_Told)
    attempt = {name: record[name] for name in ("started", "seconds", "number")}
    return attempt | {"event": msgspec.to_builtins(told)}
