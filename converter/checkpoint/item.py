"""Owns the form of one DCP item: a complete `torch.save` zip with a description of its tensor and its payload.

Uses only the standard library. In torch 2.13.0's zip (`torch_zip`), `data.pkl` has dtype, shape and stride. The record
`data/0` is the raw little-endian payload, stored without compression, with a CRC32 that nothing else checks. The
item's description must agree with the storage metadata. A form that stock TorchTitan does not write is refused by
name, never guessed.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from converter.checkpoint import torch_zip
from converter.checkpoint.item_pickle import PickledTensor, parse_item
from converter.checkpoint.tensors import ITEM_BYTES, Chunk, TensorItems
from converter.common import errors

RESAVE = "save this step again, or convert another; then look at the disks of the training hosts"
_ENDS = 4096
"""Bytes read at both ends of an item: `data.pkl`, the small records and the directory take about 1,700."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Where a chunk's raw elements lie: `crc` is 0 where the writer computed none."""

    file: str
    position: int
    length: int
    crc: int


@dataclass(frozen=True, slots=True)
class Item:
    """One item being located: whose it is, and its first and last bytes."""

    path: Path
    tensor: TensorItems
    chunk: Chunk
    head: bytearray
    tail: bytearray

    @property
    def tail_at(self) -> int:
        """Byte of the item at which `tail` begins."""
        return self.chunk.length - len(self.tail)

    def corrupt(self, what: str) -> errors.PayloadCorrupt:
        """What the item says of itself does not hold."""
        return errors.PayloadCorrupt(
            f"{self.tensor.fqn}, item at byte {self.chunk.offset:,}: {what}", path=self.path, hint=RESAVE
        )

    def unread(self, what: str, hint: str) -> errors.StepDamaged:
        """A form that is not read."""
        return errors.StepDamaged(f"{self.tensor.fqn} is stored {what}", path=self.path, hint=hint)


def locate(step: Path, tensor: TensorItems, chunk: Chunk, pread: Callable[[str, int, int], bytearray]) -> Payload:
    """Finds the payload of one item and checks that the item describes the chunk that storage metadata speaks of.

    `pread(file, position, length)` reads from a DCP shard. Raises PayloadCorrupt (what the item says of itself does not
    hold), StepDamaged or UnsupportedModel (a form that is not read).
    """
    if chunk.raw:
        return Payload(chunk.file, chunk.offset, chunk.length, 0)
    head = pread(chunk.file, chunk.offset, min(_ENDS, chunk.length))
    tail_at = max(0, chunk.length - _ENDS)
    tail = pread(chunk.file, chunk.offset + tail_at, chunk.length - tail_at)
    item = Item(step / chunk.file, tensor, chunk, head, tail)
    try:
        records = torch_zip.directory(tail, tail_at, chunk.length)
        check_uncompressed(item, records)
        described = records["data.pkl"]
        pickled = torch_zip.content(head, described)
        order = torch_zip.content(head, records["byteorder"]) if "byteorder" in records else b"little"
    except (KeyError, struct.error, IndexError, ValueError) as error:
        raise item.corrupt(f"not the zip that torch.save writes ({error})") from None
    check_description_checksum(item, described, pickled)
    view = parse_item(bytes(pickled), item.path, tensor.fqn)
    check_plain(item, view, bytes(order))
    try:
        payload = records[f"data/{view.storage_key}"]
        start = torch_zip.start(head, payload)
        for record in (described, payload):
            check_archive(item, record)
    except (KeyError, struct.error, IndexError, ValueError) as error:
        raise item.corrupt(f"not the zip that torch.save writes ({error})") from None
    check_description(item, view, payload, start)
    return Payload(chunk.file, chunk.offset + start, _bytes(item), payload.crc)


def _bytes(item: Item) -> int:
    return prod(item.chunk.sizes) * ITEM_BYTES[item.tensor.dtype]


def check_description_checksum(item: Item, described: torch_zip.Record, pickled: bytearray) -> None:
    """`data.pkl` is what its checksum says."""
    if described.crc and zlib.crc32(pickled) != described.crc:
        raise item.corrupt("its description does not match its own checksum")


def check_uncompressed(item: Item, records: dict[str, torch_zip.Record]) -> None:
    """Every record is stored as it is."""
    if any(record.method for record in records.values()):
        raise item.unread("compressed", "save without compression")


def check_plain(item: Item, view: PickledTensor, order: bytes) -> None:
    """The item has the form that stock TorchTitan writes; any other is refused by name."""
    if order != b"little":
        raise item.unread(f"with byte order {order[:10]!r}", "only little-endian items are read")
    if view.storage_offset or view.storage_key != "0" or not _is_contiguous(view.shape, view.stride):
        raise item.unread(
            f"as a view (offset {view.storage_offset}, stride {list(view.stride)})", "save contiguous tensors"
        )


def check_archive(item: Item, record: torch_zip.Record) -> None:
    """What the zip says twice of a record is the same."""
    if said := torch_zip.disagreement(item.head, item.tail, item.tail_at, record):
        raise item.corrupt(f"{record.name}: {said}")


def check_description(item: Item, view: PickledTensor, payload: torch_zip.Record, start: int) -> None:
    """The item holds the chunk that storage metadata speaks of, and all of it."""
    tensor, chunk, want = item.tensor, item.chunk, _bytes(item)
    if view.dtype != tensor.dtype or view.shape != chunk.sizes:
        raise item.corrupt(
            f"it holds {view.dtype}{list(view.shape)}, storage metadata says {tensor.dtype}{list(chunk.sizes)}"
        )
    if payload.length != want or view.storage_elements * ITEM_BYTES[view.dtype] != want:
        raise item.corrupt(f"its payload has {payload.length:,} of {want:,} bytes")
    if start + want > chunk.length:
        raise item.corrupt("its payload leaves the item")


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    if len(shape) != len(stride):
        return False
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
