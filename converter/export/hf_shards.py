"""Owns HF shards: which tensor lies where in which safetensors file, and the index where there are several.

Standard library only. Format of the files: safetensors 0.8.0, byte for byte as its own writer orders and pads them; of
several: huggingface_hub's shard names and index.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from converter.common.dtypes import SAFETENSORS
from converter.export.plan import Export

_ORDER = {dtype: place for place, dtype in enumerate(("int64", "float64", "float32", "int32", "bfloat16", "float16", "int16", "int8", "uint8", "bool"))}  # fmt: skip
"""The order of dtypes in a safetensors file."""


@dataclass(frozen=True)
class HFShard:
    """One safetensors file: its header as bytes, and for each tensor the byte of the file at which it begins."""

    name: str
    header: bytes
    positions: dict[str, int]
    size: int


def lay_out(
    exports: Sequence[Export], dtypes: dict[str, str], max_shard_size: int
) -> tuple[list[HFShard], bytes | None]:
    """The HF shards of an export, and the index's bytes where there is more than one.

    `dtypes`: HF tensor's name -> dtype in the file. `max_shard_size` in bytes, of tensors (as transformers counts).
    """
    groups = list(_groups(exports, dtypes, max_shard_size))
    if len(groups) == 1:
        return [_shard("model.safetensors", groups[0], dtypes)], None
    shards = [
        _shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", group, dtypes) for i, group in enumerate(groups, 1)
    ]
    total = sum(_bytes(export, dtypes) for export in exports)
    index = {
        "metadata": {"total_parameters": sum(e.elements for e in exports), "total_size": total},
        "weight_map": {name: shard.name for shard in shards for name in shard.positions},
    }
    return shards, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _groups(exports: Sequence[Export], dtypes: dict[str, str], limit: int) -> Iterator[list[Export]]:
    """huggingface_hub 1.x `split_torch_state_dict_into_shards`: in order, a new one when the next would not fit.

    A unit counts as a whole, and lies where its first tensor does.
    """
    units: dict[str, list[Export]] = {}
    for export in exports:
        units.setdefault(export.unit or export.name, []).append(export)
    current: list[Export] = []
    size = 0
    for unit in units.values():
        length = sum(_bytes(export, dtypes) for export in unit)
        if length > limit:
            yield unit
            continue
        if size + length > limit:
            yield current
            current, size = [], 0
        current += unit
        size += length
    if current:
        yield current


def _bytes(export: Export, dtypes: dict[str, str]) -> int:
    return export.elements * SAFETENSORS[dtypes[export.name]][1]


def _shard(name: str, exports: list[Export], dtypes: dict[str, str]) -> HFShard:
    """safetensors orders by dtype, descending, then by name; pads the header with spaces to 8 bytes."""
    ordered = sorted(exports, key=lambda e: (_ORDER[dtypes[e.name]], e.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    positions, at = {}, 0
    for export in ordered:
        length = _bytes(export, dtypes)
        header[export.name] = {
            "dtype": SAFETENSORS[dtypes[export.name]][0],
            "shape": list(export.shape),
            "data_offsets": [at, at + length],
        }
        positions[export.name] = at
        at += length
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    return HFShard(name, head, {key: len(head) + start for key, start in positions.items()}, len(head) + at)
