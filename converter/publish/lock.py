"""Owns the lock of a published name. It has one owner at a time, across processes and hosts.

Uses only the standard library. Every converter takes the lock. It is a file made with O_EXCL (one winner on NFS v3 and
v4.1, measured) in the folder that contains the published directory. Its owner touches it every HEARTBEAT seconds. It
is stale when its owner is dead on this host, or when it has not changed for STALE seconds by our own monotonic clock.
Clocks of hosts are never compared. An owner whose lock was wrongly taken over is not harmed for long, because every
owner checks its lock again before it publishes.
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

from converter.common import errors, interrupts, names_on_disk
from converter.common.files import REFUSED
from converter.publish.owners import Owner, is_dead, read_owner, started, this_host

HEARTBEAT = 10.0
STALE = 90.0
POLL = 1.0
LONGEST_LOOK = 5.0
"""Seconds between two looks at a lock that count at most: in a longer pause we were stopped, or our reads were blocked."""


class Silence:
    """How long a lock was seen unchanged, look by look.

    A pause between two looks counts as `longest` seconds at most. What stopped us or blocked our reads may have blocked
    the owner's heartbeats as well, so the rest of such a pause says nothing about the owner.
    """

    def __init__(self, longest: float) -> None:
        self.seconds = 0.0
        self._longest = longest
        self._seen: object = None
        self._looked: float | None = None

    def look(self, seen: object, now: float) -> bool:
        """Takes in one look at `now` (monotonic seconds); returns whether `seen` differs from what the last one saw."""
        changed = self._looked is None or seen != self._seen
        self.seconds = 0.0 if changed or self._looked is None else self.seconds + min(now - self._looked, self._longest)
        self._seen, self._looked = seen, now
        return changed


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
        self.path = folder / names_on_disk.lock_name(step)
        self.owner = Owner(names_on_disk.new_token(), this_host(), os.getpid(), started(os.getpid()) or 0)
        self._step, self._on_wait, self._sleep = step, on_wait, sleep
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._heartbeat, name="lock-heartbeat", daemon=True)

    def __enter__(self) -> "Lock":
        try:
            self._wait()
            self._beat.start()
        except BaseException:
            self._release()  # a signal may come right after it was created
            raise
        return self

    def _wait(self) -> None:
        silence, told = Silence(LONGEST_LOOK), float("-inf")
        while not self._create():
            try:
                owner, changed_at = read_owner(self.path), os.lstat(self.path).st_mtime_ns
            except FileNotFoundError:
                continue
            now = time.monotonic()
            if silence.look((owner, changed_at), now) and told + 60 < now:
                self._on_wait(owner)
                told = now
            stale = (owner and is_dead(owner)) or silence.seconds > STALE
            if stale and self._take_over(owner):
                continue
            self._sleep(POLL)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with interrupts.held():
            self._stop.set()
            self._beat.join(timeout=HEARTBEAT)
            self._release()

    def _release(self) -> None:
        """Removes the lock if it is ours."""
        for _ in range(2):  # what failed once may not fail again, and a lock that stays is waited for
            with contextlib.suppress(OSError):
                if self._is_ours():
                    self._remove(self.owner)
                return
        with contextlib.suppress(OSError):  # a file system without room may refuse every rename
            if self._is_ours():
                os.unlink(self.path)

    def check(self) -> None:
        """Raises LockLost unless the lock is still ours: called right before publishing."""
        if not self._is_ours():
            raise errors.LockLost(
                "another process took this step over", path=self.path, hint="nothing was published by this attempt"
            )

    def _is_ours(self) -> bool:
        try:
            return read_owner(self.path) == self.owner
        except FileNotFoundError:
            return False

    def _create(self) -> bool:
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileExistsError:
            # A lost reply turns a success into EEXIST (NFS): look who it is.
            with contextlib.suppress(FileNotFoundError):
                return read_owner(self.path) == self.owner
            return False
        try:
            try:
                said = memoryview(json.dumps(asdict(self.owner)).encode())
                while said:
                    said = said[os.write(fd, said) :]
            finally:
                os.close(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self.path)  # a lock that names nobody would be waited for
            raise
        return True

    def _take_over(self, stale: Owner | None) -> bool:
        """Removes a stale lock, unless another process is at it."""
        with contextlib.suppress(FileNotFoundError), _alone_with(self.path) as alone:
            if not alone or read_owner(self.path) != stale:
                return False
            self._remove(stale)
        return True

    def _remove(self, owner: Owner | None) -> None:
        """Removes the lock that names `owner`: moved aside first, and put back if it names another one by then.

        Between the last look and the call this process may be stopped for long, and another one may own the lock.
        """
        aside = self.path.with_name(f"{self.path.name}.{names_on_disk.new_token()}")
        try:
            os.rename(self.path, aside)
        except OSError:
            if not os.path.lexists(aside):  # else its reply was lost: nobody else has this name
                raise
        is_same = False
        try:
            is_same = read_owner(aside) == owner
        finally:  # also what cannot be read is put back
            if not is_same:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            for _ in range(2):
                with contextlib.suppress(OSError):  # then `sweep` removes it
                    os.unlink(aside)
                    break

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
