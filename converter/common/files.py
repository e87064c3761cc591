"""Owns how other people's files are opened, and how our files are made durable.

Uses only the standard library. In files that training wrote, links are not followed, pipes are not waited for, and
reading stops at a limit. Our files are on disk before a rename gives them their name.
"""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from converter.common.errors import ABSENT

CONFIG_LIMIT = 16 << 20
"""Bytes of a run config or a HF config; the largest seen (0.3.0, 94 layers) has 700 kB."""
REFUSED = frozenset({errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.ENXIO})
"""What `read_regular` says of something that is no file or too large: trying again gives the same."""


class Refused(PermissionError):
    """A file that we may read and do not, by `refuse` of `read_regular`: no errno of the system's."""


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError of a descriptor names no file: it gets the path of the one that was read or written."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def kind(path: Path, *, follow: bool = True) -> int | None:
    """S_IFMT of what is at `path`, by default of what a link there leads to; None where there is nothing.

    Raises OSError where the file system failed: pathlib's `exists`, `is_dir` and `is_file` call some of that absence, and
    from Python 3.14 on all of it.
    """
    try:
        return stat.S_IFMT(os.stat(path, follow_symlinks=follow).st_mode)
    except ValueError:  # a NUL in the name
        return None
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise


def exists(path: Path) -> bool:
    """Whether something is there. Raises OSError where that cannot be said now."""
    return kind(path) is not None


def is_folder(path: Path) -> bool:
    """Whether a folder is there. Raises OSError where that cannot be said now."""
    return kind(path) == stat.S_IFDIR


def open_regular(path: Path, *, follow: bool = False) -> tuple[int, os.stat_result]:
    """(descriptor, what it is) of a regular file; never waits for a pipe. Raises OSError as `read_regular`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    facts = os.fstat(fd)
    if stat.S_ISREG(facts.st_mode):
        return fd, facts
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(
    path: Path, *, limit: int, follow: bool = False, refuse: Callable[[Path, os.stat_result], str | None] | None = None
) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    `follow` allows the last part of the path to be a link (assets in hub caches are). `refuse` says of the file that was
    opened, by its real path, why it must not be read. Raises OSError; ELOOP for a link that is not followed, EFBIG past
    the limit, EINVAL (ENXIO for a socket) for what is no regular file, Refused for what is refused.
    """
    fd, facts = open_regular(path, follow=follow)
    try:
        if refuse and (why := refuse(Path(os.readlink(f"/proc/self/fd/{fd}")), facts)):
            raise Refused(errno.EPERM, why, str(path))
        if facts.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
        with named(path), os.fdopen(os.dup(fd), "rb") as file:
            payload = file.read(facts.st_size + 1)  # not limit + 1: a buffer as large as is asked for is made
            if len(payload) > facts.st_size:
                payload += file.read(limit + 1 - len(payload))
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


def read_into(fd: int, buffer: memoryview, position: int) -> int:
    """Reads into `buffer` from `position` of a file; the bytes read, fewer only where it ends: one read may stop early."""
    view, done = buffer.cast("B"), 0
    while done < len(view) and (got := os.preadv(fd, [view[done:]], position + done)):
        done += got
    return done


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, which leaves out what it cannot list. Raises OSError instead."""

    def refuse(error: OSError) -> NoReturn:
        raise error

    return os.walk(folder, onerror=refuse)


def fsync_directory(path: Path) -> None:
    """Makes the names in `path` durable. Network file systems that cannot say EINVAL: their rename is synchronous."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            error.filename = str(path)
            raise
    finally:
        os.close(fd)


def write_durably(path: Path, payload: bytes, *, exclusive: bool = True) -> None:
    """A new file with these bytes, on disk when this returns; its mode follows the umask."""
    fd = os.open(
        path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if exclusive else os.O_TRUNC) | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
    )
    try:
        with named(path):
            view = memoryview(payload)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
    finally:
        os.close(fd)


def rename(old: Path, new: Path) -> None:
    """`os.rename`, and after an error a look at what is there: on NFS a lost reply turns a success into ENOENT."""
    identity = os.lstat(old).st_ino
    try:
        os.rename(old, new)
    except OSError:
        try:
            done = os.lstat(new).st_ino == identity and not os.path.lexists(old)
        except FileNotFoundError:
            done = False
        if not done:
            raise
