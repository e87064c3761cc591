"""Owns changes to the bytes of stored items, made by what Python's own zipfile says of them: nothing of ours."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.unit.converter.editing import edit_metadata


@dataclass(frozen=True)
class Item:
    """One item of a step: where it is, and what zipfile says of it."""

    path: Path
    offset: int
    length: int

    @property
    def blob(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.length)

    def write(self, at: int, content: bytes) -> None:
        """Overwrites bytes of the item; the shard's times stay."""
        write(self.path, self.offset + at, content)

    def info(self, record: str) -> zipfile.ZipInfo:
        return zipfile.ZipFile(io.BytesIO(self.blob)).getinfo(f"archive/{record}")

    def start(self, record: str) -> int:
        """Byte of the item at which a record's content begins."""
        info = self.info(record)
        name, extra = struct.unpack_from("<HH", self.blob, info.header_offset + 26)
        return int(info.header_offset + 30 + name + extra)

    def entry(self, record: str) -> int:
        """Byte of the item at which a record's entry in the central directory begins."""
        name = f"archive/{record}".encode()
        at = self.blob.rindex(name) - 46
        assert self.blob[at : at + 4] == b"PK\x01\x02"
        return at

    def content(self, record: str = "data/0") -> bytes:
        at = self.start(record)
        return self.blob[at : at + self.info(record).file_size]

    def set_content(self, content: bytes, record: str = "data/0") -> None:
        """Other bytes of the same length, with their checksum wherever the zip has it."""
        assert len(content) == len(self.content(record))
        crc = struct.pack("<I", zlib.crc32(content) if self.info(record).CRC else 0)
        at, entry = self.start(record), self.entry(record)
        self.write(at, content)
        assert self.blob[at + len(content) :][:4] == b"PK\x07\x08"
        self.write(at + len(content) + 4, crc)
        self.write(entry + 16, crc)

    def flip(self, at: int, bit: int = 0) -> None:
        self.write(at, bytes([self.blob[at] ^ 1 << bit]))


def write(path: Path, at: int, content: bytes) -> None:
    """Overwrites bytes of a file; its times stay."""
    facts = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def load_metadata(step: Path) -> Any:
    return pickle.loads((step / ".metadata").read_bytes())  # noqa: S301 - written by our own builders


def entries(metadata: Any, fqn: str) -> list[Any]:
    """Indexes of a tensor's chunks that hold something, in the order of their offsets."""
    sizes = {tuple(chunk.offsets): chunk.sizes for chunk in metadata.state_dict_metadata[fqn].chunks}
    found = [i for i in metadata.storage_data if i.fqn == fqn and 0 not in sizes[tuple(i.offset)]]
    return sorted(found, key=lambda index: tuple(index.offset))


def item(step: Path, fqn: str, chunk: int = 0) -> Item:
    """The item of a tensor's n-th chunk (negative: from the end)."""
    metadata = load_metadata(step)
    info = metadata.storage_data[entries(metadata, fqn)[chunk]]
    return Item(step / info.relative_path, info.offset, info.length)


def put_elsewhere(step: Path, fqn: str, blob: bytes, chunk: int = 0) -> None:
    """Appends another item to a chunk's shard, and has storage metadata point there."""
    held = item(step, fqn, chunk)
    at = held.path.stat().st_size
    facts = held.path.stat()
    with open(held.path, "ab") as file:
        file.write(blob)
    os.utime(held.path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    def point(metadata: Any) -> None:
        info = metadata.storage_data[entries(metadata, fqn)[chunk]]
        info.offset, info.length = at, len(blob)

    edit_metadata(step, point)


def rezip(blob: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """The item written anew by zipfile, each record's content changed (no padding, no descriptors)."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as source, zipfile.ZipFile(out, "w", method) as target:
        for info in source.infolist():
            target.writestr(info.filename, change(info.filename.partition("/")[2], source.read(info)))
    return out.getvalue()
