"""Owns the form of `.metadata`: the pickle of torch.distributed.checkpoint (torch 2.13.0), checked field by field.

Uses only the standard library.
"""

import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.restricted_unpickle import Named, is_dtype, load, need
from converter.common import errors

DISTCP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,247}\.distcp")
"""What DCP calls its shards (`__<rank>_<i>.distcp`): a plain name in the step's own directory."""
_METADATA = "torch.distributed.checkpoint.metadata"
_MOST = 1 << 62
"""Bytes, elements and places are less: sums of some still fit into the 64 bits of messages and ledger."""
_LONGEST_NAME = 1000
"""Characters of an FQN: it is quoted, logged and handed on."""


class _Record:
    """Stands in for a dataclass of DCP: keeps the state it is built with."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("state is no dict")
        self.__dict__.update(state)


class _Metadata(_Record):
    """`Metadata`."""


class _Tensor(_Record):
    """`TensorStorageMetadata`."""


class _Chunk(_Record):
    """`ChunkStorageMetadata`."""


class _Bytes(_Record):
    """`BytesStorageMetadata`."""


class _Index(_Record):
    """`MetadataIndex`."""


class _StorageInfo(_Record):
    """`_StorageInfo` of the file system writer."""


class _StorageMeta(_Record):
    """`StorageMeta`."""


class _Properties:
    """`TensorProperties`: a tuple of (dtype, layout, requires_grad, memory_format, pin_memory), or a dict."""

    dtype: object = None

    def __setstate__(self, state: object) -> None:
        self.dtype = (
            state.get("dtype") if isinstance(state, dict) else state[0] if isinstance(state, tuple) and state else None
        )


def _ignored(*_args: object) -> None:
    """Whatever does not matter to us: layouts, memory formats, paths of the writing host."""


def _size(values: object = ()) -> tuple[int, ...]:
    """`torch.Size`."""
    if not isinstance(values, list | tuple) or not _is_size(tuple(values)):
        raise pickle.UnpicklingError("a size is no short tuple of integers")
    return tuple(values)


def _is_size(values: object) -> bool:
    return type(values) is tuple and len(values) <= 16 and all(type(v) is int and 0 <= v < _MOST for v in values)


_METADATA_NAMES: dict[tuple[str, str], Any] = {
    (_METADATA, "Metadata"): _Metadata,
    (_METADATA, "TensorStorageMetadata"): _Tensor,
    (_METADATA, "BytesStorageMetadata"): _Bytes,
    (_METADATA, "ChunkStorageMetadata"): _Chunk,
    (_METADATA, "TensorProperties"): _Properties,
    (_METADATA, "MetadataIndex"): _Index,
    (_METADATA, "StorageMeta"): _StorageMeta,
    (_METADATA, "_MEM_FORMAT_ENCODING"): _ignored,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    ("torch", "Size"): _size,
    ("torch.serialization", "_get_layout"): _ignored,
    ("torch", "strided"): None,
    ("torch", "contiguous_format"): None,
    ("torch", "preserve_format"): None,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        ("pathlib", name): _ignored for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    **{("pathlib._local", name): _ignored for name in ("Path", "PosixPath", "PurePosixPath")},
}


@dataclass(frozen=True, slots=True)
class RawItem:
    """An entry of storage data; `offsets` is None for items that are no tensor's."""

    fqn: str
    offsets: tuple[int, ...] | None
    file: str
    offset: int
    length: int
    transforms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RawTensor:
    """An entry of the state dict metadata: chunks as (offsets, sizes)."""

    fqn: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class RawMetadata:
    """All that we take from a `.metadata`."""

    save_id: str | None
    tensors: tuple[RawTensor, ...]
    items: tuple[RawItem, ...]


def parse(payload: bytes, where: Path) -> RawMetadata:
    """The bytes of a `.metadata`, checked field by field.

    Raises HostileCheckpoint for a name that is not on the list, StepDamaged for anything else amiss.
    """
    root = load(payload, _METADATA_NAMES, where)
    try:
        need(type(root) is _Metadata, "no Metadata")
        meta = getattr(root, "storage_meta", None)
        save_id = getattr(meta, "save_id", None)
        need(save_id is None or (type(save_id) is str and len(save_id) <= 200 and save_id.isprintable()), "save id")
        tensors = tuple(
            _tensor(fqn, entry) for fqn, entry in root.state_dict_metadata.items() if not isinstance(entry, _Bytes)
        )
        items = tuple(_item(index, info) for index, info in root.storage_data.items())
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise errors.StepDamaged(
            f"storage metadata is not as DCP writes it ({error})", path=where, hint="save this step again"
        ) from None
    return RawMetadata(save_id, tensors, items)


def _tensor(fqn: object, entry: Any) -> RawTensor:
    if type(fqn) is not str or not 0 < len(fqn) <= _LONGEST_NAME:
        raise ValueError("an FQN is no text, or a long one")
    need(type(entry) is _Tensor, f"{fqn!r} is no tensor")
    shape, dtype = entry.size, entry.properties.dtype
    need(type(dtype) is Named and is_dtype(dtype.name), f"dtype of {fqn!r}")
    need(_is_size(shape), f"shape of {fqn!r}")
    chunks = []
    for chunk in entry.chunks:
        offsets, sizes = chunk.offsets, chunk.sizes
        need(_is_size(offsets) and _is_size(sizes) and len(offsets) == len(sizes) == len(shape), f"chunk of {fqn!r}")
        need(all(o + s <= n for o, s, n in zip(offsets, sizes, shape, strict=True)), f"chunk of {fqn!r} leaves it")
        chunks.append((offsets, sizes))
    return RawTensor(fqn, dtype.name, shape, tuple(chunks))


def _item(index: Any, info: Any) -> RawItem:
    fqn, offsets = index.fqn, getattr(index, "offset", None)
    need(type(index) is _Index and type(info) is _StorageInfo, "an item")
    need(type(fqn) is str and len(fqn) <= _LONGEST_NAME, "an item's name")
    need(offsets is None or _is_size(offsets), f"offset of {fqn!r}")
    need(type(info.relative_path) is str, f"file of {fqn!r}")
    need(type(info.offset) is int and type(info.length) is int, f"place of {fqn!r}")
    need(0 <= info.offset < _MOST and 0 < info.length < _MOST, f"place of {fqn!r}")
    transforms = getattr(info, "transform_descriptors", None) or ()
    return RawItem(fqn, offsets, info.relative_path, info.offset, info.length, tuple(str(t)[:80] for t in transforms))
