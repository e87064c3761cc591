"""Owns reading back what was written: every byte of a file was written once, and is there. numpy is not needed here."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from isal.isal_zlib import crc32

from converter.common import errors
from converter.common.files import named, read_into, walk
from converter.common.io_pacing import Traffic
from converter.export.writer import Writes, in_one
from converter.publish.manifest import FileEntry

AHEAD = 32 << 20
"""Bytes of a file asked for before they are read back: the disk works while we hash. Left to the kernel's own read-ahead, reading
back 1.2 GB took 1.7 to 2.9 s instead of 1.2, most of them in the kernel."""


TOGETHER = 2 << 20
"""Bytes of a file that are handed to the thread that hashes at a time."""


def read_back(
    path: Path, written: Writes, progress: Callable[[int], None] = lambda n: None, traffic: Traffic | None = None
) -> tuple[int, str]:
    """(size, sha256) of a file just written, read past the page cache where the system allows it.

    Raises ExportMismatch unless the writes tile the file and each block's CRC32 is what was written.
    """
    traffic = traffic or Traffic()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    pool = ThreadPoolExecutor(1, "hash")  # hashing takes as long as reading and comparing
    try:
        size = os.fstat(fd).st_size
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        digest, hashing = hashlib.sha256(), None
        at = asked = 0
        longest = max((length for _, length, _ in written), default=0)
        buffers = itertools.cycle((bytearray(TOGETHER + longest), bytearray(TOGETHER + longest)))
        for writes in _together(written):
            for position, length, _ in writes:
                twice = f"bytes {min(at, position):,} to {max(at, position):,} were written twice or not at all"
                check_same(path, position == at, twice)
                at += length
            first = writes[0][0]
            if at + AHEAD - asked >= AHEAD // 8:
                os.posix_fadvise(fd, asked, at + AHEAD - asked, os.POSIX_FADV_WILLNEED)
                asked = at + AHEAD
            view = memoryview(next(buffers))[: at - first]
            with named(path):
                there = read_into(fd, view, first)
            for position, length, crc in writes:
                ends = position - first + length
                same = ends <= there and crc32(view[ends - length : ends]) == crc
                check_same(path, same, f"the {length:,} bytes at {position:,} read back are not those written")
            if hashing is not None:
                hashing.result()  # of what came before: its memory is read into next
            hashing = pool.submit(digest.update, view)
            traffic(fd, first, len(view))
            progress(len(view))
        check_same(path, at == size, f"the file has {size:,} bytes, {at:,} were written")
        if hashing is not None:
            hashing.result()
        return size, digest.hexdigest()
    finally:
        pool.shutdown()
        os.close(fd)


def _together(written: Writes) -> Iterator[Writes]:
    """The writes in the order of the file, some at a time."""
    some: Writes = []
    size = 0
    for write in sorted(written):
        some.append(write)
        size += write[1]
        if size >= TOGETHER:
            yield some
            some, size = [], 0
    if some:
        yield some


def check_same(path: Path, same: bool, otherwise: str) -> None:
    """What was read back is what was written, or ExportMismatch says what it is."""
    if not same:
        raise errors.ExportMismatch(
            otherwise, path=path, hint="look at this file system's disks, and report this; nothing was published"
        )


def read_all(
    staging: Path,
    written: Mapping[str, Writes],
    small: Mapping[str, bytes],
    progress: Callable[[int], None],
    traffic: Traffic | None = None,
) -> dict[str, FileEntry]:
    """Reads back every file of the staging directory: HF shards as `written`, the others as their bytes in `small`.

    Raises ExportMismatch, also where a file is missing or nobody's.
    """
    wanted = dict(written) | {name: in_one(payload) for name, payload in small.items()}
    found = {
        os.path.relpath(os.path.join(folder, name), staging) for folder, _, names in walk(staging) for name in names
    }
    for name in sorted(found ^ wanted.keys()):
        check_same(staging / name, False, "the file was not written" if name in wanted else "the file is not ours")
    return {
        name: FileEntry(*read_back(staging / name, wanted[name], progress, traffic))
        for name in sorted(found & wanted.keys())
    }
