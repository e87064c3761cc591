"""Owns the zip that `torch.save` writes: its directory, and where the bytes of a record begin and end.

Uses only the standard library. torch 2.13.0 stores records uncompressed, pads local headers, and repeats checksum and
length in a descriptor after each record. Values that are stored twice must be equal. The format is PKWARE's APPNOTE
6.3.
"""

import struct
from dataclasses import dataclass

_STREAMED = 1 << 3
"""Flag of a record whose checksum and length follow its bytes."""


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the directory. Lengths in bytes; `header` is the byte of the item at which its local header is."""

    name: str
    method: int
    """0: stored as it is."""
    crc: int
    """0: none computed."""
    packed: int
    length: int
    header: int


def directory(tail: bytearray, tail_at: int, length: int) -> dict[str, Record]:
    """The central directory (APPNOTE 4.3.12 to 4.3.16): name without the archive's folder -> record.

    `tail` is the end of an item of `length` bytes, from `tail_at` on. Raises ValueError, struct.error or IndexError.
    """
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
    records: dict[str, Record] = {}
    for _ in range(entries):
        fields = struct.unpack_from("<IHHHHHHIIIHHHHHII", tail, cursor)
        if fields[0] != 0x02014B50:
            raise ValueError("no directory entry")
        method, crc, packed, unpacked = fields[4], *fields[7:10]
        name_len, extra_len, comment_len, header = *fields[10:13], fields[16]
        name = bytes(tail[cursor + 46 : cursor + 46 + name_len]).decode("utf-8")
        extra = bytes(tail[cursor + 46 + name_len : cursor + 46 + name_len + extra_len])
        unpacked, packed, header = _zip64(extra, unpacked, packed, header)
        short = name.partition("/")[2]
        if short in records:
            raise ValueError("a record twice")
        records[short] = Record(name, method, crc, packed, unpacked, header)
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


def start(head: bytearray, record: Record) -> int:
    """Byte of the item at which a record's bytes begin: its local header may be padded (APPNOTE 4.3.7)."""
    signature, *_, name_len, extra_len = struct.unpack_from("<IHHHHHIIIHH", head, record.header)
    if signature != 0x04034B50:
        raise ValueError("no local header")
    return int(record.header + 30 + name_len + extra_len)


def content(head: bytearray, record: Record) -> bytearray:
    """The bytes of a small record."""
    at = start(head, record)
    if record.length > len(head) - at:
        raise ValueError("a small record out of place")
    return head[at : at + record.length]


def disagreement(head: bytearray, tail: bytearray, tail_at: int, record: Record) -> str | None:
    """What local header or descriptor say of a record that its directory entry does not, in words; None if all agree.

    It is what tells that the bytes begin where they seem to, also where no checksum was stored.
    """
    _, _, flags, method, _, _, crc, packed, unpacked, name_len, _ = struct.unpack_from(
        "<IHHHHHIIIHH", head, record.header
    )
    if bytes(head[record.header + 30 : record.header + 30 + name_len]).decode("utf-8", "replace") != record.name:
        return "its local header names another record"
    if method != record.method:
        return "its local header says another compression"
    if record.packed != record.length and not method:
        return "it has two lengths"
    if not flags & _STREAMED:
        same = (crc, packed, unpacked) == (record.crc, record.packed, record.length)
        return None if same or 0xFFFFFFFF in (packed, unpacked) else "its local header says another checksum or length"
    at = start(head, record) + record.packed
    part, at = (head, at) if at + 24 <= len(head) else (tail, at - tail_at)
    forms = [form for form in ("<4sIII", "<4sIQQ") if at >= 0 and at + struct.calcsize(form) <= len(part)]
    wanted = (b"PK\x07\x08", record.crc, record.packed, record.length)
    if any(struct.unpack_from(form, part, at) == wanted for form in forms):
        return None
    return "no descriptor with its checksum and length follows its bytes"
