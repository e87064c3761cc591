"""Owns the lock of a published name: one owner at a time, across processes and hosts, taken by whoever converts.

Standard library only. The lock is a file made with O_EXCL (one winner on NFS v3 and v4.1, measured) in the folder that
holds the published directory. Its owner touches it every HEARTBEAT seconds. It is stale when its owner is dead on this
host, or when nothing changed in it for STALE seconds by our own monotonic clock: clocks of hosts are never compared. A
loser's takeover cannot hurt a live owner for long: every owner looks again before it publishes.
"""

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from converter import errors, layout
from converter.files import REFUSED
from converter.owners import Owner, is_dead, read, started, this_host

HEARTBEAT = 10.0
STALE = 90.0
POLL = 1.0


class Lock:
    """A context manager that holds the lock of one published name and keeps its heartbeat.

    Raises MachineFailure if the folder cannot be written, LockLost from `check` once another owner took over.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        *,
        on_wait: Callable[[Owner | None], None] = lambda owner: None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.path = folder / layout.lock_name(step)
        self.owner = Owner(layout.new_token(), this_host(), os.getpid(), started(os.getpid()) or 0)
        self._step, self._on_wait, self._sleep = step, on_wait, sleep
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._heartbeat, name="lock-heartbeat", daemon=True)

    def __enter__(self) -> "Lock":
        seen: tuple[Owner | None, int] | None = None
        since = told = time.monotonic()
        while not self._create():
            try:
                now = (read(self.path), os.lstat(self.path).st_mtime_ns)
            except FileNotFoundError:
                continue
            if now != seen:
                if seen is None or told + 60 < time.monotonic():
                    self._on_wait(now[0])
                    told = time.monotonic()
                seen, since = now, time.monotonic()
            stale = (now[0] and is_dead(now[0])) or time.monotonic() - since > STALE
            if stale and self._take_over(now[0]):
                continue
            self._sleep(POLL)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._beat.join(timeout=HEARTBEAT)
        for _ in range(2):  # what failed once may not fail again, and a lock that stays is waited for
            with contextlib.suppress(OSError):
                if self._is_ours():
                    os.unlink(self.path)
                break

    def check(self) -> None:
        """Raises LockLost unless the lock is still ours: called right before publishing."""
        if not self._is_ours():
            raise errors.LockLost(
                "another process took this step over", path=self.path, hint="nothing was published by this attempt"
            )

    def _is_ours(self) -> bool:
        try:
            return read(self.path) == self.owner
        except FileNotFoundError:
            return False

    def _create(self) -> bool:
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileExistsError:
            # A lost reply turns a success into EEXIST (NFS): look who it is.
            with contextlib.suppress(FileNotFoundError):
                return read(self.path) == self.owner
            return False
        try:
            try:
                said = memoryview(json.dumps(asdict(self.owner)).encode())
                while said:
                    said = said[os.write(fd, said) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self.path)  # a lock that names nobody would be waited for
            raise
        return True

    def _take_over(self, stale: Owner | None) -> bool:
        """Moves a stale lock aside, unless another is at it; puts it back if what was moved is another's by now."""
        aside = self.path.with_name(f"{self.path.name}.{self.owner.token}")
        with contextlib.suppress(FileNotFoundError), _alone_with(self.path) as alone:
            if not alone or read(self.path) != stale:
                return False
            try:
                os.rename(self.path, aside)
            except OSError:
                if not os.path.lexists(aside):  # else its reply was lost: nobody else has this name
                    raise
            is_stale = False
            try:
                is_stale = read(aside) == stale
            finally:  # also what cannot be read is put back
                if not is_stale:
                    with contextlib.suppress(FileExistsError):
                        os.link(aside, self.path)
                with contextlib.suppress(OSError):  # then `sweep` removes it
                    os.unlink(aside)
        return True

    def _heartbeat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                if self._is_ours():
                    os.utime(self.path)


@contextlib.contextmanager
def _alone_with(path: Path) -> Iterator[bool]:
    """Whether no other takeover is at the lock file of this name, nor has been since it was opened.

    By flock on the file itself. Where the file system has none (NFS mounted nolock), always: then a second takeover may
    catch the first one's new lock, and puts it back. So too where a stranger left something that is no file.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            fd = os.open(path, os.O_RDWR | flags)
        except PermissionError:
            fd = os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        if error.errno not in (*REFUSED, errno.EISDIR):
            raise
        yield True
        return
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        yield os.fstat(fd).st_ino == os.stat(path).st_ino
    finally:
        os.close(fd)


def sweep(
    folder: Path,
    *,
    is_stale: Callable[[Path, Owner | None], bool] = lambda _, owner: owner is not None and is_dead(owner),
) -> list[str]:
    """Clears `folder` of what dead owners left: staging directories, set-aside ones (recovered), locks; returns their names.

    Holds the lock of each step while it does. What a live owner has (its lock is not stale) is left alone.
    """
    from converter.publish import clear

    left: dict[int, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if parsed := layout.parse_ours(name):
            left.setdefault(parsed[0], []).append(name)
    cleared = []
    for step, names in left.items():
        held = Lock(folder, step)
        with contextlib.suppress(FileNotFoundError):
            owner = read(held.path)
            if not is_stale(held.path, owner) or not held._take_over(owner):
                continue
        with held:
            clear(folder, step)
            for name in names:  # of a takeover that died half way
                with contextlib.suppress(FileNotFoundError):
                    aside = name.startswith(layout.lock_name(step) + ".")
                    if aside and ((owner := read(folder / name)) is None or is_stale(folder / name, owner)):
                        with contextlib.suppress(IsADirectoryError, PermissionError):  # a stranger's
                            os.unlink(folder / name)
        cleared += names
    return cleared
