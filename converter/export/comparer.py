"""Owns comparing the blocks of an export with the HF shards of a published directory (`verify`). numpy only."""

import os
import threading
from pathlib import Path
from types import TracebackType

import numpy as np

from converter.checkpoint.tensor_reader import Bytes
from converter.common.errors import ABSENT
from converter.common.files import REFUSED, named, read_into
from converter.export.hf_shards import HFShard


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
