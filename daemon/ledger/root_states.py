"""Owns the ledger's states of roots: whether each is watched, empty or away, since when, and why.

The daemon writes them. `status` reads them, also while no daemon runs.
"""

from collections.abc import Collection
from typing import NamedTuple

from daemon.host.process import is_alive
from daemon.ledger.database import Connection

STATES = ("starting", "watched", "empty", "away", "left")
"""`starting`: not scanned yet. `empty`: it holds no run. `left`: the configuration no longer names it."""


class RootState(NamedTuple):
    """A root as its daemon saw it last."""

    root: str
    state: str
    """One of STATES; `unwatched` where the daemon that noted it has ended."""
    since: float
    """Epoch seconds."""
    message: str
    """Why it is away; else empty."""


class RootStates:
    """The part of a ledger that knows roots."""

    _db: Connection
    owner: str

    def note_root(self, root: str, state: str, now: float, message: str = "") -> None:
        """Remembers that a root is in this state, unless another living daemon says how it stands; `since` stays as long as the
        state does."""
        known = self._db.execute("SELECT owner, state, message FROM roots WHERE root = ?", (root,)).fetchone()
        if known is not None and known[0] != self.owner and is_alive(known[0]):
            return
        if known is not None and tuple(known) == (self.owner, state, message):
            return  # each write wakes the other daemons with this ledger
        self._db.execute(
            "INSERT INTO roots (root, state, since, message, owner) VALUES (?, ?, ?, ?, ?) ON CONFLICT (root) DO UPDATE SET "
            "since = CASE WHEN roots.state = excluded.state THEN roots.since ELSE excluded.since END, "
            "state = excluded.state, message = excluded.message, owner = excluded.owner",
            (root, state, now, message, self.owner),
        )

    def leave_roots(self, kept: Collection[str], now: float) -> None:
        """Marks every root but `kept` as left, unless another living daemon watches it."""
        for root, state, owner in self._db.execute("SELECT root, state, owner FROM roots").fetchall():
            if root not in kept and state != "left" and (owner == self.owner or not is_alive(owner)):
                self.note_root(root, "left", now)

    def root_states(self) -> list[RootState]:
        """All of them, by path."""
        found = self._db.execute("SELECT root, state, since, message, owner FROM roots ORDER BY root").fetchall()
        return [
            RootState(root, state if state == "left" or is_alive(owner) else "unwatched", since, message)
            for root, state, since, message, owner in found
        ]
