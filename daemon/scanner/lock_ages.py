"""Owns how long each of our locks has been unchanged. So the death of an owner on another host is detected.

An owner on another host, or in a container that is gone, cannot be looked up. A live owner touches its lock every
`lock.HEARTBEAT` seconds. So a lock that did not change for `lock.STALE` by this process's clock has no owner any more.
A longer pause between two listings counts as LONGEST_LOOK only, because a server that answered nobody may have blocked
the owner, too. Without all this, the leftovers of a host that never comes back would stay beside the checkpoints for
ever.
"""

import os
from collections.abc import Callable
from pathlib import Path

from converter.publish.lock import STALE, Silence
from converter.publish.owners import Owner, is_dead

LONGEST_LOOK = STALE / 2
"""Seconds between two looks that count at most: rescans are minutes apart, so a dead owner's lock takes four of them."""
MOST = 1000
"""Locks that are kept in mind; past it all are forgotten, and looked at anew."""


class Sightings:
    """What the locks were when they were last looked at."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[Path, Silence] = {}

    def is_stale(self, path: Path, owner: Owner | None) -> bool:
        """Whether the lock at `path`, which names `owner` (None: nobody), is a dead one's. Raises FileNotFoundError."""
        if owner is not None and is_dead(owner):
            return True
        seen = (owner, os.lstat(path).st_mtime_ns)
        if path not in self._seen and len(self._seen) >= MOST:
            self._seen.clear()
        silence = self._seen.setdefault(path, Silence(LONGEST_LOOK))
        silence.look(seen, self._clock())
        return silence.seconds > STALE
