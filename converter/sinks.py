"""Owns where exported blocks go: into the files of a staging directory, or against the files of a published one.

numpy and the standard library only. Checksums of what was written are kept, so that reading back proves that every byte
of a file was written once and is there.
"""

import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from isal.isal_zlib import crc32

from converter import errors
from converter.chunks import Bytes
from converter.errors import ABSENT
from converter.exports import HFShard
from converter.files import REFUSED, named, read_into, walk
from converter.manifest import FileEntry
from converter.traffic import Traffic

AHEAD = 32 << 20
"""Bytes of a file asked for before they are read back: the disk works while we hash. Left to the kernel's own read-ahead, reading
back 1.2 GB took 1.7 to 2.9 s instead of 1.2, most of them in the kernel."""
TOGETHER = 2 << 20
"""Bytes of a file that are handed to the thread that hashes at a time."""
Writes = list[tuple[int, int, int]]
"""(position, length, CRC32) of each write to a file."""


def in_one(payload: bytes) -> Writes:
    """Of a file written in one go."""
    return [(0, len(payload), crc32(payload))]


class Writer:
    """Writes HF shards into a staging directory; a context manager that holds them open."""

    def __init__(self, staging: Path, files: list[HFShard], traffic: Traffic | None = None):
        self._staging, self._files = staging, files
        self._traffic = traffic or Traffic()
        self.written: dict[str, Writes] = {shard.name: [] for shard in files}
        self._lock = threading.Lock()
        self._fds: dict[str, int] = {}

    def __enter__(self) -> "Writer":
        for shard in self._files:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fds[shard.name] = os.open(self._staging / shard.name, flags, 0o666)
            os.ftruncate(self._fds[shard.name], shard.size)
            self.put("(header)", shard.name, 0, np.frombuffer(shard.header, np.uint8))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def put(self, tensor: str, name: str, position: int, block: Bytes) -> None:
        """Writes a block at its place."""
        view = memoryview(block.data).cast("B")
        done = 0
        with named(self._staging / name):
            while done < len(view):
                done += os.pwrite(self._fds[name], view[done:], position + done)
        self._traffic(self._fds[name], position, done)
        crc = crc32(view)
        with self._lock:
            self.written[name].append((position, len(view), crc))

    def finish(self) -> None:
        """All bytes are on disk when this returns: of a file with unwritten pages, reading back would find those."""
        for name, fd in self._fds.items():
            with named(self._staging / name):
                os.fsync(fd)


class Comparer:
    """Compares blocks with the HF shards of a published directory; a context manager that holds them open."""

    def __init__(self, published: Path, files: list[HFShard]):
        self._published, self._files = published, files
        self.differs: dict[tuple[str, str], int] = {}
        """(HF shard, tensor) -> first byte of the file that differs."""
        self.bytes_compared = 0
        self._lock = threading.Lock()
        self._fds: dict[str, int] = {}

    def __enter__(self) -> "Comparer":
        for shard in self._files:
            try:
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                self._fds[shard.name] = os.open(self._published / shard.name, flags)
            except OSError as error:
                if error.errno not in ABSENT | REFUSED:  # what is there cannot be said now
                    raise
                self.differs[shard.name, "(missing)"] = 0
                continue
            self.put("(header)", shard.name, 0, np.frombuffer(shard.header, np.uint8))
            size = os.fstat(self._fds[shard.name]).st_size
            if size != shard.size:
                self.differs[shard.name, f"(size {size:,}, not {shard.size:,})"] = min(size, shard.size)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def put(self, tensor: str, name: str, position: int, block: Bytes) -> None:
        """Reads the same place and remembers the first byte that differs."""
        if name not in self._fds:
            return
        there = np.empty(block.size, np.uint8)
        with named(self._published / name):
            there = there[: read_into(self._fds[name], there.data, position)]
        same = there.size == block.size and np.array_equal(there, block)
        with self._lock:
            self.bytes_compared += there.size
            if not same:
                common = min(there.size, block.size)
                unequal = np.flatnonzero(there[:common] != block[:common])
                first = position + (int(unequal[0]) if unequal.size else common)
                self.differs[name, tensor] = min(first, self.differs.get((name, tensor), first))

    def finish(self) -> None:
        """Nothing is left to do."""


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
