"""Owns steps that TorchTitan saved in HF form (`last_save_in_hf`): safetensors with an index and without `.metadata`.

Uses only the standard library. Files grow in place, and the index is written last (torchtitan 0.3.0). A step is
complete if the index can be parsed and each file that it names has exactly the length that its header states.
"""

import hashlib
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from converter.checkpoint.completeness import Listing, times, wholeness
from converter.common import errors
from converter.common.dtypes import SAFETENSORS
from converter.common.files import CONFIG_LIMIT, REFUSED, named, open_regular, parse_json, read_regular
from converter.common.names_on_disk import INDEX

_HEADER_LIMIT = 32 << 20
"""Bytes of a safetensors header: six times that of a 235B in one file. Parsed, it takes up to twenty times as much."""
_MOST_ENTRIES = 1_000_000
"""Of all files together; a 235B has 37,000."""
_MOST = 1 << 62
"""Bytes and elements are less."""
_EARLIER = "convert an earlier step, which has a DCP"
_DTYPES = {name: dtype for dtype, (name, _) in SAFETENSORS.items()}


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One tensor of a safetensors file: where its payload lies in which file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    position: int
    length: int


def state_of(step: Path, listing: Listing) -> dict[str, Any]:
    """ "state", "reason", times and sizes of a step in HF form, as `probe.probe` answers."""
    names = {file.name for file in listing.files}
    if INDEX not in names:
        return {"state": "incomplete", "reason": f"no {INDEX} yet"}
    try:
        payload = read_regular(step / INDEX, limit=CONFIG_LIMIT)
        files = sorted(set(parse_json(payload)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"state": "incomplete", "reason": f"{INDEX} does not parse yet"}
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return {"state": "incomplete", "reason": f"{INDEX} is no file that is read ({error.strerror})"}
    found: list[ShardEntry] = []
    stamps = []
    for name in files:
        if not isinstance(name, str) or name not in names:
            return {"state": "incomplete", "reason": f"{name!r} is missing"}
        facts = os.stat(step / name)
        stamps.append((name, facts.st_size, facts.st_mtime_ns))
        try:
            entries, wanted = header(step / name)
        except ValueError as error:
            return {"state": "incomplete", "reason": f"{name}: {error}"}
        if facts.st_size != wanted:
            return {"state": "incomplete", "reason": f"{name} has {facts.st_size:,} of {wanted:,} bytes"}
        found += entries
        if len(found) > _MOST_ENTRIES:
            raise errors.StepDamaged(f"the step has more than {_MOST_ENTRIES:,} tensors", path=step, hint=_EARLIER)
    state, reason = wholeness(listing, files, INDEX)
    said = times(listing, files, INDEX)
    return {
        "state": state, "reason": reason, "oldest": said.oldest if said else 0, "latest": said.latest if said else 0, "save_id": "hf-" + hashlib.sha256(payload + repr(stamps).encode()).hexdigest()[:32],
        "model_bytes": sum(e.length for e in found), "model_elements": sum(prod(e.shape) for e in found),
        "largest_item": max((e.length for e in found), default=0), "dtypes": sorted({e.dtype for e in found}),
    }  # fmt: skip


def entries(step: Path) -> list[ShardEntry]:
    """All tensors of a complete step in HF form.

    Raises StepDamaged for an entry that is none: torchtitan before 2026-06 wrote `lm_head.weight` with empty dtype and
    shape for tied models whose base assets have an index (torchtitan #3764).
    """
    weight_map = parse_json(read_regular(step / INDEX, limit=CONFIG_LIMIT))["weight_map"]
    found: list[ShardEntry] = []
    for name in sorted(set(weight_map.values())):
        held, end = header(step / name)
        for entry in held:
            check_entry(step, entry)
        check_tiled(step / name, held, end)
        found += held
    check_once(step, found)
    return found


def check_entry(step: Path, entry: ShardEntry) -> None:
    """The entry's dtype and shape are as long as its bytes."""
    item = SAFETENSORS.get(entry.dtype, ("", 0))[1]
    if item == 0 or prod(entry.shape) * item != entry.length:
        raise errors.StepDamaged(
            f"the entry {entry.name[:200]!r} is {entry.dtype or 'of no dtype'}{list(entry.shape)} in {entry.length:,} bytes: "
            "a tied head as torchtitan before 2026-06 saved it (torchtitan #3764), or another broken file",
            path=step / entry.file, hint=_EARLIER,
        )  # fmt: skip


def check_tiled(path: Path, held: list[ShardEntry], end: int) -> None:
    """Entries lie one behind the other, up to `end`: none points at another's bytes."""
    at = end - sum(entry.length for entry in held)
    for entry in sorted(held, key=lambda entry: entry.position):
        if entry.position != at:
            raise errors.StepDamaged(
                f"the entry {entry.name[:200]!r} begins at {entry.position:,}, not at {at:,}", path=path, hint=_EARLIER
            )
        at += entry.length


def check_once(step: Path, found: list[ShardEntry]) -> None:
    """No tensor is in two files."""
    if len({entry.name for entry in found}) != len(found):
        raise errors.StepDamaged("a tensor is stored twice", path=step, hint=_EARLIER)


def header(path: Path) -> tuple[list[ShardEntry], int]:
    """(entries, bytes the file must have) of a safetensors file. Raises ValueError where there is no whole header."""
    try:
        fd, _ = open_regular(path)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        raise ValueError(f"no file that is read ({error.strerror})") from None
    with named(path), os.fdopen(fd, "rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("no header yet")
        length = struct.unpack("<Q", head)[0]
        if length > _HEADER_LIMIT:
            raise ValueError("header too large")
        text = file.read(length)
    if len(text) < length:
        raise ValueError("header not whole yet")
    found, end = [], 0
    try:
        for name, entry in parse_json(text).items():
            if name == "__metadata__":
                continue
            (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
            if len(shape) > 16 or not all(
                type(n) is int and 0 <= n < _MOST for n in (start, stop, stop - start, *shape)
            ):
                raise ValueError(f"entry {name[:200]!r} is malformed")
            if prod(shape) >= _MOST:
                raise ValueError(f"entry {name[:200]!r} has too many elements")
            dtype = _DTYPES.get(entry["dtype"], errors.printable(str(entry["dtype"])[:20]))
            found.append(ShardEntry(name, dtype, shape, path.name, 8 + length + start, stop - start))
            end = max(end, stop)
    except (KeyError, TypeError, AttributeError):
        raise ValueError("the header is not a safetensors file's") from None
    return found, 8 + length + end
