"""Owns the owners of locks: how an owner is written to the lock file, read from it, and found to be dead.

Uses only the standard library. Nothing is known of a process on another host or in another PID namespace.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from converter.common.files import REFUSED, parse_json, read_regular


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. `host` tells processes apart that can be looked up from here: boot and PID namespace."""

    token: str
    host: str
    pid: int
    started: int
    """Start time of the process in clock ticks since boot: a PID alone may be another process by now."""


def started(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat, or None if there is no such process (a zombie counts as none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def this_host() -> str:
    """Name, boot and PID namespace of this process."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{os.uname().nodename}/{boot}/{os.readlink('/proc/self/ns/pid')}"


def read_owner(path: Path) -> Owner | None:
    """The owner a lock names, or None while it is being written, or is none of ours (a pipe, a link …).

    Raises FileNotFoundError, OSError.
    """
    try:
        owner = Owner(**parse_json(read_regular(path, limit=4096)))
    except (ValueError, TypeError):
        return None
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return None
    right = (type(owner.token), type(owner.host), type(owner.pid), type(owner.started)) == (str, str, int, int)
    return owner if right else None


def is_dead(owner: Owner) -> bool:
    """Whether this owner ran where we can look, and runs no more."""
    return owner.host == this_host() and started(owner.pid) != owner.started
