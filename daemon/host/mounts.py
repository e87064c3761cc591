"""Owns the lookup of a path in the mount table: its file system, whether it reports all changes, whether it is remote.

Only names are compared with `/proc/self/mountinfo`. The path itself is never touched, because it may hang.
"""

import re
from pathlib import Path
from typing import NamedTuple

EVENTS_ARE_REAL = frozenset(
    (
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "zfs",
        "f2fs",
        "bcachefs",
        "jfs",
        "reiserfs",
        "tmpfs",
        "ramfs",
        "overlay",
        "aufs",
    )
)
"""File systems on which every change is made by this kernel. All others are polled: when in doubt, poll."""
NETWORK = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "lustre",
        "gpfs",
        "wekafs",
        "beegfs",
        "beegfs_nodev",
        "9p",
        "afs",
        "glusterfs",
    }
    | {
        "pvfs2",
        "orangefs",
        "ocfs2",
        "gfs2",
        "fuse.ceph",
        "fuse.ceph-fuse",
        "fuse.glusterfs",
        "fuse.sshfs",
        "fuse.juicefs",
    }
    | {"fuse.s3fs", "fuse.gcsfuse", "fuse.goofys", "fuse.rclone"}
)
"""File systems that other hosts see: no place for SQLite's WAL."""


class Mount(NamedTuple):
    """Where a file system is mounted, and its type as the kernel names it."""

    point: str
    type: str

    @property
    def has_events(self) -> bool:
        """Whether inotify sees every change made below it."""
        return self.type in EVENTS_ARE_REAL

    @property
    def is_network(self) -> bool:
        """Whether other hosts may see it."""
        return self.type in NETWORK


def all_mounts(table: str | None = None) -> list[Mount]:
    """Every mount, in order of mounting; `table` is the text of a mountinfo (proc(5))."""
    found = []
    for line in (
        Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape") if table is None else table
    ).splitlines():
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split(" ")[4])
        found.append(Mount(point, right.split(" ")[0]))
    return found


def of(path: str, *, table: str | None = None) -> Mount:
    """The mount that holds `path` (absolute): the longest mount point that is a prefix, the last of equals."""
    best = Mount("/", "unknown")
    for mount in all_mounts(table):
        if _holds(mount.point, path) and len(mount.point) >= len(best.point):
            best = mount
    return best


def has_events(root: str, *, table: str | None = None) -> bool:
    """Whether inotify sees every change below `root`: its own mount's type, and of all mounted below it."""
    below = [mount for mount in all_mounts(table) if mount.point != root and _holds(root, mount.point)]
    return of(root, table=table).has_events and all(mount.has_events for mount in below)


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
