"""Owns writing the blocks of an export into the HF shards of a staging directory.

numpy and the standard library only. Checksums of what was written are kept, so that reading back proves that every byte
of a file was written once and is there.
"""

import os
import threading
from pathlib import Path
from types import TracebackType

import numpy as np
from isal.isal_zlib import crc32

from converter.checkpoint.tensor_reader import Bytes
from converter.common.files import named
from converter.common.io_pacing import Traffic
from converter.export.hf_shards import HFShard

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
