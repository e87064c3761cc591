"""Owns steps that TorchTitan saved in HF form (`last_save_in_hf`): safetensors with an index, no `.metadata`.

Standard library only. Files grow in place and the index comes last (torchtitan 0.3.0): complete means that the index
parses and each file it names has exactly the length that its header says.
"""

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

from converter.exports import INDEX
from converter.files import CONFIG_LIMIT, parse_json, read_regular


def state_of(step: Path, names: frozenset[str]) -> dict[str, Any]:
    """ "state", "reason" and sizes of a step in HF form, as `storage.probe` answers them."""
    if INDEX not in names:
        return {"state": "incomplete", "reason": f"no {INDEX} yet"}
    try:
        payload = read_regular(step / INDEX, limit=CONFIG_LIMIT)
        files = sorted(set(parse_json(payload)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"state": "incomplete", "reason": f"{INDEX} does not parse yet"}
    elements = total = largest = 0
    dtypes: set[str] = set()
    for name in files:
        if not isinstance(name, str) or "/" in name or name not in names:
            return {"state": "incomplete", "reason": f"{name!r} is missing"}
        try:
            entries, wanted = header(step / name)
        except ValueError as error:
            return {"state": "incomplete", "reason": f"{name}: {error}"}
        size = os.stat(step / name).st_size
        if size != wanted:
            return {"state": "incomplete", "reason": f"{name} has {size:,} of {wanted:,} bytes"}
        for entry in entries.values():
            start, stop = entry["data_offsets"]
            count = 1
            for side in entry["shape"]:
                count *= side
            elements, total, largest = elements + count, total + stop - start, max(largest, stop - start)
            dtypes.add(entry["dtype"])
    save_id = (
        "hf-"
        + hashlib.sha256(payload + repr([(n, os.stat(step / n).st_mtime_ns) for n in files]).encode()).hexdigest()[:32]
    )
    return {
        "state": "complete",
        "reason": "",
        "save_id": save_id,
        "model_bytes": total,
        "model_elements": elements,
        "largest_item": largest,
        "dtypes": sorted(dtypes),
    }


def header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """(entries, bytes the file must have) of a safetensors file. Raises ValueError where there is no whole header."""
    with open(path, "rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("no header yet")
        length = struct.unpack("<Q", head)[0]
        if length > 100_000_000:
            raise ValueError("header too large")
        text = file.read(length)
    if len(text) < length:
        raise ValueError("header not whole yet")
    entries = parse_json(text)
    entries.pop("__metadata__", None)
    end = 0
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        if not (isinstance(entry["shape"], list) and 0 <= start <= stop):
            raise ValueError(f"entry {name!r} is malformed")
        end = max(end, stop)
    return entries, 8 + length + end
