"""Owns the form of one DCP item: a complete `torch.save` zip, what it says of itself, and where its payload lies.

Standard library only. In torch 2.13.0's zip, `data.pkl` says dtype, shape and stride, the record `data/0` is the raw
little-endian payload, stored as it is, with a CRC32 that nobody else checks. What the item says must be what storage
metadata says; a form that stock TorchTitan does not write is refused by name, never guessed.
"""

import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from converter import errors
from converter.storage import ITEM_BYTES, Chunk, TensorItems
from converter.unpickle import Named, load, need

RESAVE = "save this step again, or convert another; then look at the disks of the training hosts"
_HEAD = 4096
"""Bytes read at both ends of an item: `data.pkl`, the small records and the directory take about 1,700."""


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """What an item's `data.pkl` says: dtype's name, elements of its storage, and the view of it."""

    dtype: str
    storage_key: str
    storage_elements: int
    storage_offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "BFloat16Storage": "bfloat16", "HalfStorage": "float16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: object) -> PickledTensor:
    """`torch._utils._rebuild_tensor_v2`."""
    dtype, key, elements = storage
    for number in (offset, elements, *size, *stride):
        need(type(number) is int and 0 <= number < 1 << 62, "a view")
    return PickledTensor(dtype, key, elements, offset, tuple(size), tuple(stride))


def _rebuild_parameter(tensor: object, *_rest: object) -> PickledTensor:
    """`torch._utils._rebuild_parameter`."""
    if not isinstance(tensor, PickledTensor):
        raise ValueError("a parameter is no tensor")
    return tensor


_ITEM_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch", name): Named(dtype) for name, dtype in _STORAGES.items()},
}


def parse_item(payload: bytes, where: Path, what: str) -> PickledTensor:
    """An item's `data.pkl`. `what` (its FQN) is named in the errors, which are `parse`'s."""

    def storage(pid: Any) -> tuple[str, str, int]:
        kind, dtype, key, _location, elements = pid
        need(kind == "storage" and type(dtype) is Named and type(key) is str and type(elements) is int, "a storage")
        return dtype.name, key, elements

    found = load(payload, _ITEM_NAMES, where, storage)
    if type(found) is not PickledTensor:
        raise errors.StepDamaged(f"the item of {what} holds no tensor", path=where, hint="save this step again")
    return found


@dataclass(frozen=True, slots=True)
class Payload:
    """Where a chunk's raw elements lie: `crc` is 0 where the writer computed none."""

    file: str
    position: int
    length: int
    crc: int


def locate(step: Path, tensor: TensorItems, chunk: Chunk, pread: Callable[[str, int, int], bytearray]) -> Payload:
    """Finds the payload of one item and checks that the item describes the chunk that storage metadata speaks of.

    `pread(file, position, length)` reads from a DCP shard. Raises PayloadCorrupt (what the item says of itself does not hold), StepDamaged (a form that is not read).
    """
    path = step / chunk.file
    if chunk.raw:
        return Payload(chunk.file, chunk.offset, chunk.length, 0)

    def corrupt(what: str) -> errors.PayloadCorrupt:
        return errors.PayloadCorrupt(f"{tensor.fqn}, item at byte {chunk.offset:,}: {what}", path=path, hint=RESAVE)

    head = pread(chunk.file, chunk.offset, min(_HEAD, chunk.length))
    tail_at = max(0, chunk.length - _HEAD)
    tail = pread(chunk.file, chunk.offset + tail_at, chunk.length - tail_at)
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
