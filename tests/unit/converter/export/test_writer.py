"""What was written is read back in few pieces, however many writes it was, and each of them is compared."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from isal.isal_zlib import crc32

from converter.common import errors
from converter.export.hf_shards import HFShard
from converter.export.read_back import read_back
from converter.export.writer import Writer, Writes

SIZE, COUNT = 16, 200_000
"""A checkpoint may store each row of a tensor as a chunk of its own: each is a write."""


def written(payload: bytes) -> Writes:
    return [(at, SIZE, crc32(payload[at : at + SIZE])) for at in range(0, len(payload), SIZE)]


def test_what_is_read_back_comes_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are not on disk yet cannot be dropped, and pages that were not dropped are read from memory."""
    calls: list[str] = []

    def record(name: str, what: Callable[[tuple[Any, ...]], str | None]) -> None:
        real = getattr(os, name)

        def call(*given: Any) -> Any:
            calls.extend(filter(None, [what(given)]))
            return real(*given)

        monkeypatch.setattr(os, name, call)

    record("pwrite", lambda given: "write")
    record("fsync", lambda given: f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{given[0]}'))}")
    record("posix_fadvise", lambda given: "drop" if given[1:] == (0, 0, os.POSIX_FADV_DONTNEED) else None)
    record("preadv", lambda given: "read")
    with Writer(tmp_path, [HFShard("model.safetensors", b"header", {}, 6)]) as writer:
        writer.finish()
    read_back(tmp_path / "model.safetensors", writer.written["model.safetensors"])
    assert calls[:4] == ["write", "fsync model.safetensors", "drop", "read"]


def test_many_small_writes_are_read_back_in_no_time(tmp_path: Path) -> None:
    payload = hashlib.shake_128(b"").digest(SIZE * COUNT)
    (tmp_path / "file").write_bytes(payload)
    writes, moved = written(payload), list[int]()
    began = time.monotonic()
    found = read_back(tmp_path / "file", writes, moved.append)

    assert time.monotonic() - began < 10  # 0.1 s; it was a minute and more while their sum was made for each anew
    assert found == (len(payload), hashlib.sha256(payload).hexdigest())
    assert sum(moved) == len(payload)
    assert len(moved) < 10


@pytest.mark.parametrize("place", [0, SIZE * COUNT // 2, SIZE * COUNT - 1])
def test_one_byte_that_is_another_is_found(place: int, tmp_path: Path) -> None:
    payload = bytearray(SIZE * COUNT)
    writes = written(bytes(payload))
    payload[place] = 1
    (tmp_path / "file").write_bytes(payload)
    with pytest.raises(errors.ExportMismatch, match=f"{place // SIZE * SIZE:,} read back are not those written"):
        read_back(tmp_path / "file", writes)
