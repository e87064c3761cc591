"""Owns mutations of DCP shards and items: headers and fields of the zip, `data.pkl`, payloads, whole files."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

from hypothesis import strategies as st

from tests.robustness.faults.stored import Item, entries, item, load_metadata, put_elsewhere, rezip
from tests.robustness.fuzz import pickles
from tests.robustness.fuzz.pickles import Draw
from tests.robustness.fuzz.places import put

_NUMBERS = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]


def _fqn(draw: Draw, step: Path) -> str:
    """A tensor of the model, with an item that holds something."""
    metadata = load_metadata(step)
    states = ("optimizer", "lr_scheduler", "dataloader", "train_state")
    able = [
        fqn for fqn, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "chunks") and fqn.partition(".")[0] not in states and entries(metadata, fqn)
    ]  # fmt: skip
    return str(draw(st.sampled_from(sorted(able))))


def _item(draw: Draw, step: Path) -> Item:
    fqn = _fqn(draw, step)
    return item(step, fqn, draw(st.integers(0, len(entries(load_metadata(step), fqn)) - 1)))


def zip_fields(draw: Draw, step: Path) -> str:
    """A field of a local header, a directory entry, a descriptor or the end record."""
    held = _item(draw, step)
    blob = held.blob
    signatures = {
        b"PK\x03\x04": 30,
        b"PK\x01\x02": 46,
        b"PK\x05\x06": 22,
        b"PK\x07\x08": 16,
        b"PK\x06\x06": 56,
        b"PK\x06\x07": 20,
    }
    found = [(at, size) for sign, size in signatures.items() for at in _all(blob, sign) if at + size <= len(blob)]
    at, size = draw(st.sampled_from(sorted(found)))
    width = draw(st.sampled_from([1, 2, 4]))
    place = at + draw(st.integers(0, size - width))
    value = draw(st.sampled_from(_NUMBERS) | st.integers(0, 2**32 - 1)) & ((1 << 8 * width) - 1)
    held.write(place, value.to_bytes(width, "little"))
    return "zip: field"


def _all(blob: bytes, sign: bytes) -> list[int]:
    found, at = [], blob.find(sign)
    while at >= 0:
        found.append(at)
        at = blob.find(sign, at + 1)
    return found


def description(draw: Draw, step: Path) -> str:
    """`data.pkl` by its opcodes, in a zip written anew around it."""
    fqn = _fqn(draw, step)
    what = ""

    def change(record: str, content: bytes) -> bytes:
        nonlocal what
        if record != "data.pkl":
            return content
        what, mutated = pickles.mutate(draw, content)
        return mutated

    put_elsewhere(step, fqn, rezip(item(step, fqn).blob, change))
    return f"data.pkl: {what}"


def rezipped(draw: Draw, step: Path) -> str:
    """The item in another zip: compressed, without its small records, with a record changed."""
    fqn = _fqn(draw, step)
    record = draw(
        st.sampled_from(["byteorder", "version", ".format_version", ".data/serialization_id", "data/0", "nothing"])
    )
    cut = draw(st.sampled_from([0, 1, 4]))
    method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    blob = rezip(
        item(step, fqn).blob, lambda name, content: content[: len(content) - cut] if name == record else content, method
    )
    put_elsewhere(step, fqn, blob)
    return "zip: written anew"


def payload_with_checksum(draw: Draw, step: Path) -> str:
    """Elements of a payload changed, and its checksums with them: an honest item with other weights."""
    held = _item(draw, step)
    content = bytearray(held.content())
    at = draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << draw(st.integers(0, 7))
    held.set_content(bytes(content))
    return "payload and checksum"


def payload_alone(draw: Draw, step: Path) -> str:
    """A bit of a payload."""
    held = _item(draw, step)
    held.flip(held.start("data/0") + draw(st.integers(0, len(held.content()) - 1)), draw(st.integers(0, 7)))
    return "payload"


def anywhere(draw: Draw, step: Path) -> str:
    """A bit anywhere in a DCP shard: also the optimizer's, which is not read."""
    path = _shard(draw, step)
    payload = bytearray(path.read_bytes())
    payload[draw(st.integers(0, len(payload) - 1))] ^= 1 << draw(st.integers(0, 7))
    put(path, bytes(payload))
    return "shard: a bit"


def length(draw: Draw, step: Path) -> str:
    """A shard cut off or longer."""
    path = _shard(draw, step)
    payload = path.read_bytes()
    cut = draw(st.integers(0, len(payload)))
    longer = draw(st.booleans())
    put(path, payload + b"\0" * min(cut, 5000) if longer else payload[:cut])
    return "shard: longer" if longer else "shard: cut off"


def swapped_files(draw: Draw, step: Path) -> str:
    """Two shards that have changed places, or one in the place of another."""
    one, other = _shard(draw, step), _shard(draw, step)
    kept = one.read_bytes()
    put(one, other.read_bytes())
    if draw(st.booleans()):
        put(other, kept)
    return "shards: changed places"


def swapped_items(draw: Draw, step: Path) -> str:
    """Two items that have changed places, or a part of one over another: nothing says whose an item is."""
    one, other = _item(draw, step), _item(draw, step)
    first, second = one.blob, other.blob
    size = min(len(first), len(second))
    one.write(0, second[:size])
    if draw(st.booleans()):
        other.write(0, first[:size])
    return "items: changed places"


def odd_file(draw: Draw, step: Path) -> str:
    """Something else in the place of a file: a folder, a pipe, a link, nothing."""
    path = draw(st.sampled_from([step / ".metadata", *sorted(step.glob("*.distcp"))]))
    what = draw(st.sampled_from(["folder", "pipe", "link", "nothing"]))
    kept = path.rename(step.parent / "aside")
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(kept)
    return f"in a file's place: {what}"


def tail(draw: Draw, step: Path) -> str:
    """The end record says that the directory is elsewhere, or of another size: zip64 as well."""
    held = _item(draw, step)
    place = held.length - 22 + draw(st.sampled_from([8, 10, 12, 16, 20]))
    held.write(place, struct.pack("<H", draw(st.sampled_from([0, 1, 64, 65, 0xFFFF]))))
    return "zip: end record"


def _shard(draw: Draw, step: Path) -> Path:
    return Path(draw(st.sampled_from(sorted(step.glob("*.distcp")))))
