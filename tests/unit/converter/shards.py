"""Owns DCP shards made by hand: items by `torch.save`, at offsets of their own, for tests of what reads them."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from converter.checkpoint.tensors import Chunk, TensorItems

Place = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes of a chunk."""


def item(value: object) -> bytes:
    """As DCP's writer saves a tensor."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def dtype_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def one_item(step: Path, blob: bytes, dtype: str, shape: tuple[int, ...]) -> TensorItems:
    """A tensor of one chunk, whose item `blob` lies between other bytes in `__0_0.distcp`."""
    (step / "__0_0.distcp").write_bytes(b"\xa5" * 77 + blob + b"\x5a" * 33)
    return TensorItems("t.weight", dtype, shape, (Chunk((0,) * len(shape), shape, "__0_0.distcp", 77, len(blob)),))


def store(step: Path, tensor: torch.Tensor, places: list[Place]) -> TensorItems:
    """`tensor` cut into chunks, spread over three DCP shards."""
    files = {f"__{rank}_0.distcp": bytearray() for rank in range(3)}
    chunks = []
    for index, (offsets, sizes) in enumerate(places):
        part = tensor[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))]
        name = f"__{index % 3}_0.distcp"
        blob = item(part.clone())
        chunks.append(Chunk(offsets, sizes, name, len(files[name]), len(blob)))
        files[name] += blob
    for name, content in files.items():
        (step / name).write_bytes(content)
    return TensorItems("t.weight", dtype_of(tensor), tuple(tensor.shape), tuple(chunks))


def tilings(shape: tuple[int, ...], seed: int) -> Iterator[Place]:
    """A random tiling of `shape`: cut along a random dimension, and each part again."""
    choose = random.Random(seed)

    def cut(offsets: tuple[int, ...], sizes: tuple[int, ...], depth: int) -> Iterator[Place]:
        able = [dim for dim, size in enumerate(sizes) if size > 1]
        if not able or depth == 0 or choose.random() < 0.1:
            yield offsets, sizes
            return
        dim = choose.choice(able)
        at = choose.randrange(1, sizes[dim])
        yield from cut(offsets, (*sizes[:dim], at, *sizes[dim + 1 :]), depth - 1)
        moved = (*offsets[:dim], offsets[dim] + at, *offsets[dim + 1 :])
        yield from cut(moved, (*sizes[:dim], sizes[dim] - at, *sizes[dim + 1 :]), depth - 1)

    found = list(cut((0,) * len(shape), shape, 4))
    choose.shuffle(found)
    yield from found


def records(blob: bytes) -> dict[str, bytes]:
    """The records of an item's zip."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezipped(blob: bytes, *, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> bytes:
    """The item written anew by Python's zipfile; `changes` replace records (`data_pkl`, `byteorder`)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in records(blob).items():
            archive.writestr(name, changes.get(name.partition("/")[2].replace(".", "_"), content))
    return buffer.getvalue()


def zip64(blob: bytes) -> bytes:
    """The item as a writer of items past 4 GiB leaves it: sizes and places in zip64 fields (APPNOTE 4.3.14, 4.5.3)."""
    body, directory = bytearray(), bytearray()
    most = 0xFFFFFFFF
    found = records(blob)
    for name, content in found.items():
        encoded, crc, at = name.encode(), zlib.crc32(content), len(body)
        local = struct.pack("<HHQQ", 1, 16, len(content), len(content))
        body += struct.pack("<IHHHHHIIIHH", 0x04034B50, 45, 0, 0, 0, 0, crc, most, most, len(encoded), len(local))
        body += encoded + local + content
        extra = struct.pack("<HH2x", 9, 2) + struct.pack("<HHQQQ", 1, 24, len(content), len(content), at)
        head = (0x02014B50, 45, 45, 0, 0, 0, 0, crc, most, most, len(encoded), len(extra), 0, 0, 0, 0, most)
        directory += struct.pack("<IHHHHHHIIIHHHHHII", *head) + encoded + extra
    end = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, len(found), len(found), len(directory), len(body))
    locator = struct.pack("<IIQI", 0x07064B50, 0, len(body) + len(directory), 1)
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, most, most, 0)
    return bytes(body + directory + end + locator + tail)
