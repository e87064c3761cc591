"""Owns the ledger's hook calls until they are made or given up, and the saves that contained NaN or infinity."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from daemon.host.process import is_alive
from daemon.ledger.database import Connection, transaction
from daemon.ledger.records import Row

DAY = 86_400.0
KEPT = 7 * DAY
"""Seconds for which what has ended is remembered: a delivery that is asked for again meanwhile was made already."""
FORGOTTEN = 30 * DAY
"""Seconds after which what waits for a root that nobody watches any more goes."""


class Delivery(NamedTuple):
    """One call of a hook."""

    key: str
    """The same whenever the same thing is told again, to whomever."""
    hook: str
    """on_success or on_failure."""
    root: str
    tries: int
    """This one counted in."""
    facts: dict[str, Any]
    """Empty until it is claimed: thousands may wait."""


class Outbox:
    """The part of a ledger that hooks use."""

    _db: Connection
    owner: str

    def enqueue(self, key: str, hook: str, root: str, facts: dict[str, Any], now: float) -> None:
        """Remembers that a hook is to be told something; nothing new if it is known under this key."""
        self._db.execute(
            "INSERT OR IGNORE INTO outbox (key, hook, root, facts, created) VALUES (?, ?, ?, ?, ?)",
            (key, hook, root, msgspec.json.encode(facts).decode(), now),
        )

    def due(self, roots: Sequence[str], now: float) -> list[Delivery]:
        """What waits for a try now below `roots`, oldest first, and no living process has claimed.

        What was put back after `now` is due: the clock was set back.
        """
        found = self._db.execute(
            "SELECT key, hook, root, tries + 1 AS tries, owner FROM outbox "
            "WHERE ended IS NULL AND (not_before <= ? OR since > ?) ORDER BY created",
            (now, now),
        ).fetchall()
        return [
            Delivery(row["key"], row["hook"], row["root"], row["tries"], {})
            for row in found
            if row["root"] in roots and not (row["owner"] and is_alive(row["owner"]))
        ]

    def claim(self, delivery: Delivery) -> Delivery | None:
        """It with its facts, if this process may try it now; the try counts from here on, however this process ends."""
        with transaction(self._db):
            found = self._db.execute("SELECT owner, ended, facts FROM outbox WHERE key = ?", (delivery.key,)).fetchone()
            if found is None or found["ended"] is not None or (found["owner"] and is_alive(found["owner"])):
                return None
            self._db.execute(
                "UPDATE outbox SET owner = ?, tries = ? WHERE key = ?", (self.owner, delivery.tries, delivery.key)
            )
        return delivery._replace(facts=msgspec.json.decode(found["facts"]))

    def put_back(self, delivery: Delivery, *, now: float, not_before: float, counts: bool = True) -> None:
        """It is tried again at `not_before` (epoch seconds); `counts` is false where a stop interrupted it."""
        tries = delivery.tries if counts else delivery.tries - 1
        self._db.execute(
            "UPDATE outbox SET owner = '', tries = ?, since = ?, not_before = ? WHERE key = ?",
            (tries, now, not_before, delivery.key),
        )

    def end_delivery(self, delivery: Delivery, result: str, now: float) -> None:
        """It was `delivered`, `given_up` (tried too often) or `dropped` (nobody is to be told any more)."""
        self._db.execute(
            "UPDATE outbox SET owner = '', ended = ?, result = ? WHERE key = ?", (now, result, delivery.key)
        )

    def forget_old(self, now: float) -> None:
        """What ended long ago, and what nobody has taken for much longer."""
        self._db.execute("DELETE FROM outbox WHERE ended < ? OR created < ?", (now - KEPT, now - FORGOTTEN))

    def note_non_finite(self, row: Row, *, tensors: int, nan: int, inf: int, now: float) -> bool:
        """Remembers that a save holds NaN or infinity, in how many tensors and elements; whether that is news."""
        added = self._db.execute(
            "INSERT OR IGNORE INTO non_finite (path, save_id, root, run_name, step, found, tensors, nan, inf) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (row.path, row.save_id, row.root, row.run_name, row.step, now, tensors, nan, inf),
        )
        return added.rowcount > 0
