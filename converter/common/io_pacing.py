"""Owns the limits on a conversion's I/O: the rate of reads and writes, and the page cache.

Uses only the standard library.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

KEPT_IN_CACHE = 4 << 30
"""Bytes of a model that may stay in the page cache until both of its readers (export and forward check) are done.

A larger one would push out what training has there: each reader drops what it read, and the other reads it from disk.
"""
_PAGE = os.sysconf("SC_PAGESIZE")


class Traffic:
    """Called after each read or write in bulk; safe for threads."""

    def __init__(
        self,
        limit: float = 0.0,
        *,
        drop_behind: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """`limit`: bytes a second, 0 for none. `drop_behind`: what was read leaves the page cache at once."""
        self.limit, self.drop_behind = limit, drop_behind
        self._clock, self._sleep = clock, sleep
        self._free_at = 0.0
        """When all that passed has had its time."""
        self._lock = threading.Lock()

    def __call__(self, fd: int, position: int, length: int) -> None:
        """`length` bytes at `position` of `fd` were read or written: waits until their time is over."""
        if self.drop_behind:
            # Whole pages only: the last one, which is read on in, goes with the next block.
            first, last = position // _PAGE * _PAGE, (position + length) // _PAGE * _PAGE
            os.posix_fadvise(fd, first, max(last - first, _PAGE), os.POSIX_FADV_DONTNEED)
        if self.limit:
            with self._lock:
                now = self._clock()
                self._free_at = max(self._free_at, now) + length / self.limit
                wait = self._free_at - now
            self._sleep(wait)


def drop_from_cache(files: Iterable[Path]) -> None:
    """Takes clean pages of these files out of the page cache; what cannot be opened has none that matter."""
    for path in files:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
