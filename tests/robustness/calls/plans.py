"""Owns what each kind of call can give: its errnos, whether its reply can be lost, whether it may move less than asked."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from tests.robustness.calls.seam import ALL, Kind, Mode

_REMOTE = (errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO)
FULL = (errno.ENOSPC, errno.EDQUOT)
_LOOKING = (errno.EIO, errno.EACCES, errno.ENOENT, *_REMOTE)

GIVES: dict[Kind, tuple[int, ...]] = {
    Kind.OPEN: (*_LOOKING, errno.EMFILE, errno.EINTR),
    Kind.CREATE: (*FULL, errno.EIO, errno.EACCES, errno.EROFS, errno.EINTR, *_REMOTE),
    Kind.READ: (errno.EIO, errno.EINTR, *_REMOTE),
    Kind.WRITE: (*FULL, errno.EIO, errno.EINTR, *_REMOTE),
    Kind.FSYNC: (errno.EIO, *FULL, errno.EINVAL, errno.EINTR, *_REMOTE),
    Kind.RENAME: (errno.EIO, errno.EACCES, errno.ENOENT, *FULL, *_REMOTE),
    Kind.EXCHANGE: (errno.EIO, errno.EACCES, errno.ENOENT, errno.EINVAL, errno.ENOSYS, *FULL, *_REMOTE),
    Kind.MKDIR: (*FULL, errno.EIO, errno.EACCES, errno.EROFS, *_REMOTE),
    Kind.UNLINK: (errno.EIO, errno.EACCES, errno.ENOENT, errno.EROFS, *_REMOTE),
    Kind.RMDIR: (errno.EIO, errno.EACCES, errno.ENOENT, errno.ENOTEMPTY, *_REMOTE),
    Kind.OPENDIR: _LOOKING,
    Kind.READDIR: (errno.EIO, *_REMOTE),
    Kind.STAT: _LOOKING,
    Kind.TRUNCATE: (*FULL, errno.EIO, *_REMOTE),
    Kind.LINK: (errno.EIO, *FULL, errno.EEXIST, *_REMOTE),
    Kind.UTIME: (errno.EIO, errno.EACCES, *_REMOTE),
    Kind.STATVFS: (errno.EIO, errno.EACCES, *_REMOTE),
    Kind.CLOSE: (errno.EIO, *FULL),
    Kind.LOCK: (errno.ENOLCK, errno.EIO),
    Kind.MAP: (errno.ENOMEM, errno.EIO),
}
LOST_REPLIES: dict[Kind, tuple[int, ...]] = {
    Kind.CREATE: (errno.EEXIST,),
    Kind.RENAME: (errno.ENOENT, errno.EIO, errno.ETIMEDOUT),
    Kind.EXCHANGE: (errno.EIO, errno.ETIMEDOUT),
    Kind.MKDIR: (errno.EEXIST, errno.EIO),
    Kind.UNLINK: (errno.ENOENT, errno.EIO),
    Kind.RMDIR: (errno.ENOENT, errno.EIO),
    Kind.LINK: (errno.EEXIST, errno.EIO),
}
"""What a call that took effect may report: the first try's reply was lost, and the second found it done."""

WRITING = (Kind.CREATE, Kind.WRITE, Kind.FSYNC, Kind.RENAME, Kind.EXCHANGE, Kind.MKDIR, Kind.TRUNCATE, Kind.LINK)
"""What a full disk refuses; removing still works."""
IN_PLACE = (Kind.CREATE, Kind.WRITE, Kind.TRUNCATE, Kind.MKDIR, Kind.UNLINK, Kind.RMDIR)
EFFECTS = (*IN_PLACE, Kind.RENAME, Kind.EXCHANGE, Kind.LINK)
"""Calls that change what others see; between two of them nothing does."""
MANY = (Kind.READ, Kind.STAT, Kind.READDIR, Kind.OPEN, Kind.CLOSE)
"""Up to hundreds of calls each."""


@dataclass(frozen=True)
class Fault:
    """What is to become of the calls of some kinds, of one after the other: of every `stride`-th from `first` on."""

    kinds: tuple[Kind, ...]
    error: int
    mode: Mode
    first: int = 1
    stride: int = 1

    def __str__(self) -> str:
        what = self.kinds[0].name if len(self.kinds) == 1 else f"{len(self.kinds)} kinds"
        return f"{what} {errno.errorcode.get(self.error, '')} {self.mode.name}"

    @staticmethod
    def of(said: dict[str, Any]) -> Fault:
        """From JSON, as asdict makes it."""
        return Fault(**said | {"kinds": tuple(map(Kind, said["kinds"])), "mode": Mode(said["mode"])})

    def points(self) -> Iterator[int]:
        """Which calls, without end."""
        return count(self.first, self.stride)

    def sample(self, calls: dict[str, int], turn: int) -> list[int]:
        """One of so many calls by kind, another one each turn; none if there is no such call."""
        there = sum(calls.get(str(int(kind)), 0) for kind in self.kinds)
        sure = there if there < 20 else there * 9 // 10  # threads take turns: another time there are a few less
        return [1 + turn * 7919 % sure] if sure else []


def once() -> list[Fault]:
    """Each kind with each errno that it can give, lost replies and short moves too."""
    found = []
    for kind, errors in GIVES.items():
        found += [Fault((kind,), error, Mode.ONCE) for error in errors]
        found += [Fault((kind,), error, Mode.LATE) for error in LOST_REPLIES.get(kind, ())]
    return found + [Fault((kind,), 0, Mode.SHORT) for kind in (Kind.READ, Kind.WRITE)]


def from_then_on() -> list[Fault]:
    """ENOSPC and EDQUOT for all that writes, EIO and ESTALE for everything."""
    found = [Fault(WRITING, error, Mode.ALWAYS) for error in FULL]
    return found + [Fault(ALL, error, Mode.ALWAYS) for error in (errno.EIO, errno.ESTALE)]


def every() -> list[Fault]:
    """All of them, at every call; what takes longest first."""
    return [*from_then_on(), *once()]


def in_turn(kinds: tuple[Kind, ...] = MANY, *, each: int = 1) -> list[Fault]:
    """All of them; but of these kinds every `each`-th call meets one errno, and the one after it the next.

    Of what lasts from a call on, every tenth call is the first one.
    """
    found = []
    for fault in every():
        if fault.kinds == ALL:
            found.append(replace(fault, stride=10))
        elif fault.mode in (Mode.ONCE, Mode.SHORT) and fault.kinds[0] in kinds:
            errors = [other.error for other in once() if (other.kinds, other.mode) == (fault.kinds, fault.mode)]
            turn = errors.index(fault.error)
            found.append(replace(fault, first=1 + turn * each, stride=len(errors) * each))
        else:
            found.append(fault)
    return found
