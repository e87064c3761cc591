"""Owns how files of other people are opened and how ours are made durable.

Standard library only. Nothing that training wrote is followed through a link, waited for as a pipe, or read beyond
a limit; what we write is on disk before a rename names it.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

CONFIG_LIMIT = 16 << 20
"""Bytes of a run config or a HF config; the largest seen (0.3.0, 94 layers) has 700 kB."""


def read_regular(path: Path, *, limit: int, follow: bool = False) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    `follow` allows the last part of the path to be a link (assets in hub caches are). Raises OSError; ELOOP for a
    link that is not followed, EFBIG past the limit, EINVAL for what is no regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if facts.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
        with os.fdopen(os.dup(fd), "rb") as file:
            payload = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(payload) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
    return payload


def parse_json(payload: bytes) -> Any:
    """JSON as Python; ValueError for anything else, too deep a nesting and lone bytes included."""
    try:
        return json.loads(payload)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def fsync_directory(path: Path) -> None:
    """Makes the names in `path` durable. Network file systems that cannot say EINVAL: their rename is synchronous."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def write_durably(path: Path, payload: bytes, *, exclusive: bool = True) -> None:
    """A new file with these bytes, on disk when this returns; its mode follows the umask."""
    fd = os.open(
        path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if exclusive else os.O_TRUNC) | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
    )
    try:
        view = memoryview(payload)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
