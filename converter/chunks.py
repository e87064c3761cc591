"""Owns the bytes of a DCP: finds the payload of each item, checks what it says of itself, reads ranges of rows.

numpy and the standard library only. An item is one complete `torch.save` zip (torch 2.13.0): `data.pkl` says dtype,
shape and stride, the record `data/0` is the raw little-endian payload, stored as it is, with a CRC32 that nobody
else checks. Read with pread; a mapped file on a network file system raises SIGBUS.
"""

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter import errors
from converter.storage import ITEM_BYTES, Chunk, TensorItems
from converter.unpickle import parse_item

Bytes = NDArray[np.uint8]
_HEAD = 4096
"""Bytes read at both ends of an item: `data.pkl`, the small records and the directory take about 1,700."""
_RESAVE = "save this step again, or convert another; then look at the disks of the training hosts"


class Shards:
    """The open DCP shards of one step; safe for threads. Counts the bytes it reads."""

    def __init__(self, step: Path):
        self.step = step
        self.bytes_read = 0
        self._fds: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _fd(self, name: str) -> int:
        with self._lock:
            if name not in self._fds:
                self._fds[name] = os.open(self.step / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            return self._fds[name]

    def pread_into(self, name: str, buffer: Any, position: int) -> None:
        """Fills `buffer` from `position` of the DCP shard `name`; raises StepVanished where the file is shorter."""
        view = memoryview(buffer).cast("B")
        try:
            fd = self._fd(name)
            done = 0
            while done < len(view):
                got = os.preadv(fd, [view[done:]], position + done)
                if got == 0:
                    raise errors.StepVanished(
                        f"the DCP shard ends at {position + done:,}",
                        path=self.step / name,
                        hint="the step is being purged or saved again",
                    )
                done += got
        except FileNotFoundError:
            raise errors.StepVanished(
                "the DCP shard is gone", path=self.step / name, hint="the step was purged"
            ) from None
        with self._lock:
            self.bytes_read += len(view)

    def drop(self, name: str, position: int, length: int) -> None:
        """Tells the kernel that these bytes are not needed again: its cache is training's."""
        os.posix_fadvise(self._fd(name), position, length, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class Payload:
    """Where a chunk's raw elements lie: `crc` is 0 where the writer computed none."""

    file: str
    position: int
    length: int
    crc: int


def locate(shards: Shards, tensor: TensorItems, chunk: Chunk) -> Payload:
    """Finds the payload of one item and checks that the item describes the chunk that storage metadata speaks of.

    Raises PayloadCorrupt (what the item says of itself does not hold), StepDamaged (a form that is not read).
    """
    path = shards.step / chunk.file

    def corrupt(what: str) -> errors.PayloadCorrupt:
        return errors.PayloadCorrupt(f"{tensor.fqn}, item at byte {chunk.offset:,}: {what}", path=path, hint=_RESAVE)

    head = bytearray(min(_HEAD, chunk.length))
    shards.pread_into(chunk.file, head, chunk.offset)
    tail_at = max(0, chunk.length - _HEAD)
    tail = bytearray(chunk.length - tail_at)
    shards.pread_into(chunk.file, tail, chunk.offset + tail_at)
    try:
        records = _directory(tail, tail_at, chunk.length)
        described = records["data.pkl"]
        payload = records["data/0"]
        pickled = _record(head, described)
        if described.crc and zlib.crc32(pickled) != described.crc:
            raise corrupt("its description does not match its own checksum")
        if "byteorder" in records and (order := _record(head, records["byteorder"])) != b"little":
            raise errors.StepDamaged(
                f"{tensor.fqn} is stored with byte order {order[:10]!r}",
                path=path,
                hint="only little-endian items are read",
            )
        start = _payload_start(head, payload)
    except (KeyError, struct.error, IndexError, ValueError) as error:
        raise corrupt(f"not the zip that torch.save writes ({error})") from None
    if payload.method or described.method:
        raise errors.StepDamaged(f"{tensor.fqn} is stored compressed", path=path, hint="save without compression")
    view = parse_item(bytes(pickled), path, tensor.fqn)
    want = prod(chunk.sizes) * ITEM_BYTES.get(tensor.dtype, 0)
    if tensor.dtype not in ITEM_BYTES:
        raise errors.StepDamaged(
            f"{tensor.fqn} has dtype {tensor.dtype}, which is not read", path=path, hint="save in another dtype"
        )
    if view.dtype != tensor.dtype or view.shape != chunk.sizes:
        raise corrupt(
            f"it holds {view.dtype}{list(view.shape)}, storage metadata says {tensor.dtype}{list(chunk.sizes)}"
        )
    if view.storage_offset or view.storage_key != "0" or not _is_contiguous(view.shape, view.stride):
        raise errors.StepDamaged(
            f"{tensor.fqn} is stored as a view (offset {view.storage_offset}, stride {list(view.stride)})",
            path=path,
            hint="save contiguous tensors",
        )
    if payload.length != want or view.storage_elements * ITEM_BYTES[tensor.dtype] != want:
        raise corrupt(f"its payload has {payload.length:,} of {want:,} bytes")
    if start + want > tail_at + len(tail):
        raise corrupt("its payload leaves the item")
    return Payload(chunk.file, chunk.offset + start, want, payload.crc)


@dataclass(frozen=True, slots=True)
class _Record:
    method: int
    crc: int
    length: int
    header: int


def _directory(tail: bytearray, tail_at: int, length: int) -> dict[str, _Record]:
    """The zip's central directory: name without the archive's folder -> record. PKWARE APPNOTE 4.3.12 to 4.3.16."""
    end = len(tail) - 22
    signature, *_, entries, size, at, comment = struct.unpack_from("<IHHHHIIH", tail, end)
    if signature != 0x06054B50 or comment:
        raise ValueError("no end record")
    if at == 0xFFFFFFFF or entries == 0xFFFF or size == 0xFFFFFFFF:
        if tail[end - 20 : end - 16] != b"PK\x06\x07":
            raise ValueError("no zip64 end record")
        where = struct.unpack_from("<Q", tail, end - 12)[0] - tail_at
        if where < 0 or tail[where : where + 4] != b"PK\x06\x06":
            raise ValueError("no zip64 end record")
        entries, size, at = struct.unpack_from("<QQQ", tail, where + 32)
    cursor = at - tail_at
    if cursor < 0 or entries > 64 or at + size > length:
        raise ValueError("directory out of place")
    records: dict[str, _Record] = {}
    for _ in range(entries):
        fields = struct.unpack_from("<IHHHHHHIIIHHHHHII", tail, cursor)
        if fields[0] != 0x02014B50:
            raise ValueError("no directory entry")
        method, crc, packed, unpacked, name_len, extra_len, comment_len, header = (
            fields[4],
            *fields[7:10],
            *fields[10:13],
            fields[16],
        )
        name = bytes(tail[cursor + 46 : cursor + 46 + name_len]).decode("utf-8")
        extra = bytes(tail[cursor + 46 + name_len : cursor + 46 + name_len + extra_len])
        unpacked, packed, header = _zip64(extra, unpacked, packed, header)
        if packed != unpacked and not method:
            raise ValueError("sizes differ")
        short = name.partition("/")[2]
        if short in records:
            raise ValueError("a record twice")
        records[short] = _Record(method, crc, unpacked, header)
        cursor += 46 + name_len + extra_len + comment_len
    return records


def _zip64(extra: bytes, *sizes: int) -> list[int]:
    """Replaces sizes that are 0xFFFFFFFF by those of the zip64 extra field (APPNOTE 4.5.3)."""
    if 0xFFFFFFFF not in sizes:
        return list(sizes)
    cursor = 0
    while cursor + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, cursor)
        if tag == 1:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, cursor + 4))
            return [next(values) if size == 0xFFFFFFFF else size for size in sizes]
        cursor += 4 + length
    raise ValueError("no zip64 sizes")


def _payload_start(head: bytearray, record: _Record) -> int:
    """Byte of the item at which a record's data begins: its local header may be padded (APPNOTE 4.3.7)."""
    signature, *_, name_len, extra_len = struct.unpack_from("<IHHHHHIIIHH", head, record.header)
    if signature != 0x04034B50:
        raise ValueError("no local header")
    return int(record.header + 30 + name_len + extra_len)


def _record(head: bytearray, record: _Record) -> bytearray:
    start = _payload_start(head, record)
    if record.length > len(head) - start:
        raise ValueError("a small record out of place")
    return head[start : start + record.length]


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    if len(shape) != len(stride):
        return False
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def as_3d(sizes: tuple[int, ...], missing: int = 1) -> tuple[int, int, int]:
    """(matrices, rows, columns) of a shape: a matrix is one of 1, a vector rows of one element."""
    if len(sizes) > 3:
        raise ValueError(f"{len(sizes)} dimensions")
    return {0: (missing, missing, missing), 1: (missing, *sizes, missing), 2: (missing, *sizes)}.get(len(sizes), sizes)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Box:
    """A chunk's place in its tensor as three half-open ranges (matrices, rows, columns), and its payload."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    payload: Payload


class Band:
    """A range of a tensor (along matrices, or rows of a single one) that whole chunks tile: read by one thread.

    `read` yields the elements in order; when it ends, every chunk of the band was read and its CRC compared.
    `fill` reads any rows, checking nothing.
    """

    def __init__(self, shards: Shards, tensor: TensorItems, boxes: list[Box]):
        self.shards, self.tensor, self.boxes = shards, tensor, boxes
        _, self.rows, self.columns = as_3d(tensor.shape)
        self.item_bytes = ITEM_BYTES[tensor.dtype]
        self.matrices = (min(b.start[0] for b in boxes), max(b.stop[0] for b in boxes))
        self.row_range = (min(b.start[1] for b in boxes), max(b.stop[1] for b in boxes))
        self.unchecked = any(b.payload.crc == 0 for b in boxes)

    @property
    def first(self) -> tuple[str, int]:
        """File and byte at which reading begins: bands are read in this order."""
        return min((b.payload.file, b.payload.position) for b in self.boxes)

    def fill(self, matrix: int, row: int, out: Bytes, crcs: list[int] | None = None) -> None:
        """Whole rows of one matrix, from `row` on, into `out`; with `crcs`, each chunk's running CRC32 goes on."""
        row_bytes = self.columns * self.item_bytes
        rows = out.size // row_bytes
        for index, box in enumerate(self.boxes):
            (m0, r0, c0), (m1, r1, c1) = box.start, box.stop
            low, high = max(row, r0), min(row + rows, r1)
            if not m0 <= matrix < m1 or low >= high:
                continue
            width = (c1 - c0) * self.item_bytes
            at = box.payload.position + ((matrix - m0) * (r1 - r0) + low - r0) * width
            into = out[(low - row) * row_bytes : (high - row) * row_bytes]
            whole = width == row_bytes
            part = into if whole else np.empty((high - low) * width, np.uint8)
            self.shards.pread_into(box.payload.file, part, at)
            if crcs is not None and box.payload.crc:
                crcs[index] = zlib.crc32(part.data, crcs[index])
            if not whole:
                left = c0 * self.item_bytes
                into.reshape(-1, row_bytes)[:, left : left + width] = part.reshape(-1, width)

    def read(self, block: int) -> Iterator[tuple[int, Bytes]]:
        """(index of the first element in the tensor, its elements' bytes), at most `block` bytes or one row at a time.

        The array is reused by the next block. Raises PayloadCorrupt where a chunk's CRC32 differs.
        """
        crcs = [0] * len(self.boxes)
        row_bytes = self.columns * self.item_bytes
        step = max(1, block // row_bytes)
        first, last = self.row_range
        buffer = np.empty(min(step, last - first) * row_bytes, np.uint8)
        for matrix in range(*self.matrices):
            for row in range(first, last, step):
                out = buffer[: min(step, last - row) * row_bytes]
                self.fill(matrix, row, out, crcs)
                yield (matrix * self.rows + row) * self.columns, out
        for box, crc in zip(self.boxes, crcs, strict=True):
            if box.payload.crc and crc != box.payload.crc:
                raise errors.PayloadCorrupt(
                    f"{self.tensor.fqn}: the {box.payload.length:,} bytes at {box.payload.position:,} do not match their checksum "
                    f"({crc:08x}, stored {box.payload.crc:08x})",
                    path=self.shards.step / box.payload.file, hint=_RESAVE,
                )  # fmt: skip


def boxes(shards: Shards, tensor: TensorItems) -> list[Box]:
    """The located chunks of a tensor. Raises StepDamaged where they do not cover it exactly once."""
    if len(tensor.shape) > 3 or tensor.dtype not in ITEM_BYTES:
        raise errors.StepDamaged(
            f"{tensor.fqn} is {tensor.dtype}{list(tensor.shape)}, which is not read", path=shards.step, hint=_RESAVE
        )
    if tensor.elements == 0 or sum(prod(c.sizes) for c in tensor.chunks) != tensor.elements:
        raise _untiled(shards, tensor)
    located = []
    for chunk in tensor.chunks:
        start, sizes = as_3d(chunk.offsets, 0), as_3d(chunk.sizes)
        stop = (start[0] + sizes[0], start[1] + sizes[1], start[2] + sizes[2])
        located.append(Box(start, stop, locate(shards, tensor, chunk)))
    return located


def bands(shards: Shards, tensor: TensorItems) -> list[Band]:
    """Splits a tensor into bands that can be read at the same time. Raises as `boxes` and `locate` do."""
    axis = 0 if as_3d(tensor.shape)[0] > 1 else 1
    groups: list[list[Box]] = []
    reach = -1
    for box in sorted(boxes(shards, tensor), key=lambda box: (box.start[axis], box.start)):
        if box.start[axis] >= reach:
            groups.append([])
        groups[-1].append(box)
        reach = max(reach, box.stop[axis])
    for group in groups:
        _check_disjoint(shards, tensor, group)
    return [Band(shards, tensor, group) for group in groups]


def _check_disjoint(shards: Shards, tensor: TensorItems, group: list[Box]) -> None:
    """With volumes that add up, boxes that do not overlap tile the tensor."""
    for index, one in enumerate(group):
        for other in group[index + 1 :]:
            if all(one.start[d] < other.stop[d] and other.start[d] < one.stop[d] for d in range(3)):
                raise _untiled(shards, tensor)


def _untiled(shards: Shards, tensor: TensorItems) -> errors.StepDamaged:
    return errors.StepDamaged(
        f"the chunks of {tensor.fqn} do not cover it exactly once", path=shards.step, hint=_RESAVE
    )
