"""Owns the Python side of the seam: building `seam.c`, starting processes under it, and its control in such a process.

Why libc: whatever opens, lists, reads, writes or renames a file goes through it: Python's own file objects, `shutil`,
SQLite, the extensions in Rust, `renameat2` through ctypes. A parameter or a patch in Python sees what it was meant to see.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("seam.c")


class Kind(IntEnum):
    """The kinds of calls, as `seam.c` numbers them. CREATE is an open with O_CREAT, MAP an mmap, LOCK fcntl's and flock."""

    OPEN = 0
    CREATE = 1
    READ = 2
    WRITE = 3
    FSYNC = 4
    RENAME = 5
    MKDIR = 6
    UNLINK = 7
    RMDIR = 8
    OPENDIR = 9
    READDIR = 10
    STAT = 11
    TRUNCATE = 12
    LINK = 13
    UTIME = 14
    STATVFS = 15
    CLOSE = 16
    LOCK = 17
    MAP = 18
    EXCHANGE = 19


class Mode(IntEnum):
    """What becomes of the n-th call."""

    ONCE = 0
    """It fails; the next one does not."""
    ALWAYS = 1
    """It fails, and every one after it."""
    LATE = 2
    """It takes effect and reports an error all the same: the server's reply was lost."""
    SHORT = 3
    """It moves half of the bytes, as read and write may."""
    KILL_BEFORE = 4
    """SIGKILL instead of it."""
    KILL_AFTER = 5
    """SIGKILL once it took effect."""
    STOP_BEFORE = 6
    """SIGSTOP instead of it; it is made when the process goes on."""
    STOP_AFTER = 7
    """SIGSTOP once it took effect."""


@dataclass(frozen=True)
class Plan:
    """The `nth` call, counted from 1, of these kinds meets `error` in this mode."""

    kinds: tuple[Kind, ...]
    nth: int
    error: int = 0
    mode: Mode = Mode.ONCE

    @property
    def mask(self) -> int:
        return sum(1 << kind for kind in self.kinds)


ALL = tuple(Kind)


def build(folder: Path) -> Path | None:
    """The library, made of seam.c in `folder`; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "seam.so"
    subprocess.run([compiler, "-O1", "-fPIC", "-shared", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def environment(
    library: Path,
    under: Path | None = None,
    plan: Plan | None = None,
    said: Path | None = None,
    *,
    exchanges: bool = True,
) -> dict[str, str]:
    """Variables for a process that is to run under the seam. `said` is a file that names the call that met the plan.

    Without `exchanges`, exchanging two names is answered with EINVAL, as NFS does.
    """
    found = {"LD_PRELOAD": str(library)}
    if under:
        found["SEAM_UNDER"] = str(under)
    if plan:
        found["SEAM_PLAN"] = f"{plan.mask},{plan.nth},{plan.error},{int(plan.mode)}"
    if said:
        found["SEAM_SAID"] = str(said)
    if not exchanges:
        found["SEAM_NO_EXCHANGE"] = "1"
    return found


class Seam:
    """The seam of this process, which must have been started under it."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None)
        for name in ("seam_fired", "seam_counted", "seam_traced"):
            getattr(self._c, name).restype = ctypes.c_long
        self._c.seam_trace_text.restype = ctypes.c_void_p
        self._c.seam_first_name.restype = ctypes.c_char_p
        self._c.seam_arm.argtypes = (ctypes.c_uint, ctypes.c_long, ctypes.c_int, ctypes.c_int)

    def watch(self, prefix: Path) -> None:
        """Calls below `prefix` count from now on."""
        self._c.seam_watch(os.fsencode(prefix))

    def arm(self, plan: Plan) -> None:
        """Counts from the next call on."""
        self._c.seam_arm(plan.mask, plan.nth, plan.error, int(plan.mode))

    def disarm(self) -> None:
        self._c.seam_disarm()

    def without_exchange(self, yes: bool) -> None:
        """Whether exchanging two names is answered with EINVAL, as NFS does."""
        self._c.seam_without_exchange(int(yes))

    @property
    def fired(self) -> str | None:
        """The first call that met the plan, as "KIND name"; None: none did."""
        if not self._c.seam_fired():
            return None
        return f"{Kind(self._c.seam_first_kind()).name} {os.fsdecode(self._c.seam_first_name())}"

    @property
    def counted(self) -> int:
        """Calls of the plan's kinds since it was armed."""
        return int(self._c.seam_counted())

    def trace(self) -> None:
        """Remembers every call from now on."""
        self._c.seam_trace()

    def traced(self) -> list[tuple[Kind, str]]:
        """The calls since `trace`: kind and name below the prefix; "one -> other" of those that have two names."""
        length = self._c.seam_traced()
        assert length >= 0, "the trace is full"
        lines = os.fsdecode(ctypes.string_at(self._c.seam_trace_text(), length)).splitlines()
        return [(Kind(int(kind)), name) for kind, _, name in (line.partition(" ") for line in lines)]
