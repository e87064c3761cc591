"""Owns the reading of a DCP: it opens DCP shards and assembles ranges of a tensor's rows from chunks, with checks.

Uses only numpy and the standard library. Files are read with pread, because a mapped file on a network file system
raises SIGBUS.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from converter.checkpoint.item import RESAVE, Payload, locate
from converter.checkpoint.tensors import ITEM_BYTES, Chunk, TensorItems
from converter.common import errors
from converter.common.files import open_regular
from converter.common.io_pacing import Traffic

Bytes = NDArray[np.uint8]


class Shards:
    """The open DCP shards of one step; safe for threads. Counts the bytes it reads."""

    def __init__(self, step: Path, traffic: Traffic | None = None):
        self.step = step
        self._traffic = traffic or Traffic()
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
                self._fds[name], _ = open_regular(self.step / name)
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
            self._traffic(fd, position, done)
        except FileNotFoundError:
            raise errors.StepVanished(
                "the DCP shard is gone", path=self.step / name, hint="the step was purged"
            ) from None
        except OSError as error:
            error.filename = str(self.step / name)  # the call names a descriptor only
            raise
        with self._lock:
            self.bytes_read += len(view)

    def pread(self, name: str, position: int, length: int) -> bytearray:
        """`length` bytes of the DCP shard `name`."""
        buffer = bytearray(length)
        self.pread_into(name, buffer, position)
        return buffer

    def locate(self, tensor: TensorItems, chunk: Chunk) -> Payload:
        """The payload of one item: see `item.locate`."""
        return locate(self.step, tensor, chunk, self.pread)


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
                crcs[index] = crc32(part.data, crcs[index])
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
            check_payload_checksum(self, box.payload, crc)


def check_payload_checksum(band: Band, payload: Payload, crc: int) -> None:
    """The CRC32 of what was read of a chunk is the stored one, if one is stored. Raises PayloadCorrupt."""
    if payload.crc and crc != payload.crc:
        raise errors.PayloadCorrupt(
            f"{band.tensor.fqn}: the {payload.length:,} bytes at {payload.position:,} do not match their checksum "
            f"({crc:08x}, stored {payload.crc:08x})",
            path=band.shards.step / payload.file, hint=RESAVE,
        )  # fmt: skip


def boxes(shards: Shards, tensor: TensorItems) -> list[Box]:
    """The located chunks of a tensor. Raises StepDamaged where they do not cover it exactly once."""
    if len(tensor.shape) > 3 or tensor.dtype not in ITEM_BYTES:
        raise errors.UnsupportedModel(
            f"{tensor.fqn} is {tensor.dtype}{list(tensor.shape)}, which is not read",
            path=shards.step,
            hint="what is read: float32, bfloat16 and float16, up to three dimensions",
        )
    if tensor.elements == 0:
        raise _untiled(shards, tensor)
    check_volume(shards, tensor)
    located = []
    for chunk in tensor.chunks:
        start, sizes = as_3d(chunk.offsets, 0), as_3d(chunk.sizes)
        stop = (start[0] + sizes[0], start[1] + sizes[1], start[2] + sizes[2])
        located.append(Box(start, stop, shards.locate(tensor, chunk)))
    return located


def bands(shards: Shards, tensor: TensorItems) -> list[Band]:
    """Splits a tensor into bands that can be read at the same time. Raises as `boxes` and `locate` do."""
    located = boxes(shards, tensor)
    axis = 0 if as_3d(tensor.shape)[0] > 1 else 1
    groups: list[list[Box]] = []
    reach = -1
    for box in sorted(located, key=lambda box: (box.start[axis], box.start)):
        if box.start[axis] >= reach:
            groups.append([])
        groups[-1].append(box)
        reach = max(reach, box.stop[axis])
    for group in groups:
        check_disjoint(shards, tensor, group)
    return [Band(shards, tensor, group) for group in groups]


def check_volume(shards: Shards, tensor: TensorItems) -> None:
    """The chunks have as many elements as the tensor. Raises StepDamaged."""
    if sum(prod(c.sizes) for c in tensor.chunks) != tensor.elements:
        raise _untiled(shards, tensor)


def check_disjoint(shards: Shards, tensor: TensorItems, group: list[Box]) -> None:
    """With volumes that add up, boxes that do not overlap tile the tensor. Raises StepDamaged."""
    for index, one in enumerate(group):
        for other in group[index + 1 :]:
            if all(one.start[d] < other.stop[d] and other.start[d] < one.stop[d] for d in range(3)):
                raise _untiled(shards, tensor)


def _untiled(shards: Shards, tensor: TensorItems) -> errors.StepDamaged:
    return errors.StepDamaged(f"the chunks of {tensor.fqn} do not cover it exactly once", path=shards.step, hint=RESAVE)
