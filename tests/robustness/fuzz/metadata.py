"""Owns mutations of `.metadata`: by opcode, by torch's own objects, by bytes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from tests.robustness.fuzz import pickles
from tests.robustness.fuzz.pickles import INTEGERS, TEXTS, Draw
from tests.robustness.fuzz.places import put


def opcodes(draw: Draw, step: Path) -> str:
    """The pickle, opcode by opcode."""
    what, payload = pickles.mutate(draw, (step / ".metadata").read_bytes())
    put(step / ".metadata", payload)
    return f"opcode: {what}"


def bytes_(draw: Draw, step: Path) -> str:
    """Bytes flipped, put in, cut out."""
    payload = bytearray((step / ".metadata").read_bytes())
    what = draw(st.sampled_from(["flip", "insert", "cut", "truncate"]))
    at = draw(st.integers(0, len(payload) - 1))
    if what == "flip":
        payload[at] ^= 1 << draw(st.integers(0, 7))
    elif what == "insert":
        payload[at:at] = draw(st.binary(min_size=1, max_size=20))
    elif what == "cut":
        del payload[at : at + draw(st.integers(1, 20))]
    else:
        del payload[at:]
    put(step / ".metadata", bytes(payload))
    return f"bytes: {what}"


def objects(draw: Draw, step: Path) -> str:
    """Fields of DCP's own objects."""
    metadata: Any = pickle.loads((step / ".metadata").read_bytes())  # noqa: S301 - written by our own builders
    what = draw(st.sampled_from(sorted(_FIELDS)))
    _FIELDS[what](draw, metadata)
    put(step / ".metadata", pickle.dumps(metadata, protocol=draw(st.sampled_from([2, 4]))))
    return f"object: {what}"


def _info(draw: Draw, metadata: Any) -> Any:
    return metadata.storage_data[draw(st.sampled_from(sorted(metadata.storage_data, key=repr)))]


def _fqn(draw: Draw, metadata: Any) -> str:
    tensors = [fqn for fqn, entry in metadata.state_dict_metadata.items() if hasattr(entry, "chunks")]
    return str(draw(st.sampled_from(sorted(tensors))))


def _tensor(draw: Draw, metadata: Any) -> Any:
    return metadata.state_dict_metadata[_fqn(draw, metadata)]


def _place(draw: Draw, metadata: Any) -> None:
    info = _info(draw, metadata)
    name = draw(st.sampled_from(["offset", "length"]))
    value = getattr(info, name)
    setattr(info, name, draw(INTEGERS | st.sampled_from([value + 1, value - 1, value * 2, -value])))


def _path(draw: Draw, metadata: Any) -> None:
    _info(draw, metadata).relative_path = draw(TEXTS | INTEGERS)


def _swap_infos(draw: Draw, metadata: Any) -> None:
    one, other = _info(draw, metadata), _info(draw, metadata)
    vars(one).update(copy.copy(vars(other))) if draw(st.booleans()) else _exchange(vars(one), vars(other))


def _exchange(one: dict[str, Any], other: dict[str, Any]) -> None:
    kept = dict(one)
    one.update(other)
    other.update(kept)


def _dtype(draw: Draw, metadata: Any) -> None:
    names = ["float32", "bfloat16", "float16", "float64", "int64", "int8", "bool", "float8_e4m3fn", "complex64"]
    properties = _tensor(draw, metadata).properties
    properties.dtype = draw(st.sampled_from([getattr(torch, name) for name in names]))


def _size(draw: Draw, metadata: Any) -> None:
    entry = _tensor(draw, metadata)
    sizes = list(entry.size)
    _change_one(draw, sizes)
    entry.size = torch.Size(_small(sizes))


def _chunk(draw: Draw, metadata: Any) -> None:
    chunk = draw(st.sampled_from(_tensor(draw, metadata).chunks))
    name = draw(st.sampled_from(["offsets", "sizes"]))
    sizes = list(getattr(chunk, name))
    _change_one(draw, sizes)
    setattr(chunk, name, torch.Size(_small(sizes)))


def _change_one(draw: Draw, sizes: list[int]) -> None:
    if sizes and draw(st.booleans()):
        sizes[draw(st.integers(0, len(sizes) - 1))] = draw(INTEGERS)
    elif sizes and draw(st.booleans()):
        sizes.reverse()
    else:
        sizes.append(draw(INTEGERS))


def _small(sizes: list[int]) -> list[int]:
    """What torch.Size can hold."""
    return [min(max(size, -(2**63)), 2**63 - 1) for size in sizes]


def _drop_item(draw: Draw, metadata: Any) -> None:
    del metadata.storage_data[draw(st.sampled_from(sorted(metadata.storage_data, key=repr)))]


def _drop_tensor(draw: Draw, metadata: Any) -> None:
    del metadata.state_dict_metadata[_fqn(draw, metadata)]


def _double_chunk(draw: Draw, metadata: Any) -> None:
    chunks = _tensor(draw, metadata).chunks
    chunks.append(draw(st.sampled_from(chunks)))


def _rename(draw: Draw, metadata: Any) -> None:
    """A tensor and its items get another name, maybe another tensor's."""
    old, new = _fqn(draw, metadata), draw(TEXTS | st.just(_fqn(draw, metadata)))
    metadata.state_dict_metadata[new] = metadata.state_dict_metadata.pop(old)
    kept = metadata.storage_data
    metadata.storage_data = {
        type(index)(new, index.offset, index.index) if index.fqn == old else index: info for index, info in kept.items()
    }


def _transform(draw: Draw, metadata: Any) -> None:
    _info(draw, metadata).transform_descriptors = draw(st.sampled_from([["stream.zstd/1"], (), [], "x", [[]], [3]]))


def _save_id(draw: Draw, metadata: Any) -> None:
    metadata.storage_meta.save_id = draw(TEXTS | INTEGERS | st.none())


def _whole(draw: Draw, metadata: Any) -> None:
    name = draw(st.sampled_from(["storage_data", "state_dict_metadata", "storage_meta", "planner_data"]))
    setattr(metadata, name, draw(st.sampled_from([None, {}, [], 3, "x", metadata])))


_FIELDS = {
    "place of an item": _place, "file of an item": _path, "two items": _swap_infos, "dtype": _dtype, "shape": _size,
    "chunk": _chunk, "item gone": _drop_item, "tensor gone": _drop_tensor, "chunk twice": _double_chunk, "name": _rename,
    "transform": _transform, "save id": _save_id, "whole field": _whole,
}  # fmt: skip
