"""Owns the two allow-list unpicklers: of `.metadata`, and of an item's `data.pkl`. Neither imports what it names.

Standard library only. Every name maps to a small class of ours that keeps what it is given; any other name is
refused. A pickle that names something else would run it as whoever reads it (PyTorch's SECURITY.md puts that out
of its scope). Memory and time are the caller's to limit: see `storage`.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter import errors

DISTCP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.distcp")
"""What DCP calls its shards (`__<rank>_<i>.distcp`): a plain name in the step's own directory."""
_METADATA = "torch.distributed.checkpoint.metadata"


def _need(holds: bool, what: str) -> None:
    """Checks of hostile bytes must not go away with `python -O`, as assertions do."""
    if not holds:
        raise ValueError(what)


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


@dataclass(frozen=True, slots=True)
class _Named:
    """A torch dtype, storage class or layout, by its name alone."""

    name: str


def _ignored(*_args: object) -> None:
    """Whatever does not matter to us: layouts, memory formats, paths of the writing host."""


def _size(values: object = ()) -> tuple[int, ...]:
    """`torch.Size`."""
    if not isinstance(values, list | tuple) or not all(type(v) is int for v in values) or len(values) > 16:
        raise pickle.UnpicklingError("a size is no short tuple of integers")
    return tuple(values)


_DTYPES = frozenset(
    [
        "float64",
        "float32",
        "bfloat16",
        "float16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    ]
    + ["uint16", "uint32", "uint64", "complex64"]
)
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


class _AllowList(pickle.Unpickler):
    """An unpickler that knows the names it is given and no other."""

    def __init__(
        self, payload: bytes, names: dict[tuple[str, str], Any], persistent: Callable[[object], object] | None = None
    ):
        super().__init__(io.BytesIO(payload))
        self._names, self._persistent = names, persistent

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._names:
            return self._names[module, name]
        if module == "torch" and name in _DTYPES:
            return _Named(name)
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: object) -> object:
        if self._persistent is None:
            raise pickle.UnpicklingError("a persistent id has no place here")
        return self._persistent(pid)


class _Refused(pickle.UnpicklingError):
    """A name that is not on the list."""


def _load(
    payload: bytes, names: dict[tuple[str, str], Any], where: Path, persistent: Callable[[object], object] | None = None
) -> Any:
    try:
        return _AllowList(payload, names, persistent).load()
    except _Refused as error:
        raise errors.HostileCheckpoint(
            f"the pickle asks for {str(error)[:200]}, which no checkpoint of TorchTitan's holds; nothing of it was run",
            path=where, hint="find out who wrote this checkpoint",
        ) from None  # fmt: skip
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # an unpickler raises whatever the bytes provoke
        raise errors.StepDamaged(
            f"the pickle does not parse ({type(error).__name__})", path=where, hint="save this step again"
        ) from None


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
    root = _load(payload, _METADATA_NAMES, where)
    try:
        _need(type(root) is _Metadata, "no Metadata")
        meta = getattr(root, "storage_meta", None)
        save_id = getattr(meta, "save_id", None)
        _need(save_id is None or (type(save_id) is str and len(save_id) <= 200 and save_id.isprintable()), "save id")
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
    if type(fqn) is not str or not fqn:
        raise ValueError("an FQN is no text")
    _need(type(entry) is _Tensor, f"{fqn!r} is no tensor")
    shape, dtype = entry.size, entry.properties.dtype
    _need(type(dtype) is _Named and dtype.name in _DTYPES, f"dtype of {fqn!r}")
    _need(type(shape) is tuple and all(n >= 0 for n in shape), f"shape of {fqn!r}")
    chunks = []
    for chunk in entry.chunks:
        offsets, sizes = chunk.offsets, chunk.sizes
        _need(
            type(offsets) is tuple and type(sizes) is tuple and len(offsets) == len(sizes) == len(shape),
            f"chunk of {fqn!r}",
        )
        _need(
            all(o >= 0 and s >= 0 and o + s <= n for o, s, n in zip(offsets, sizes, shape, strict=True)),
            f"chunk of {fqn!r} leaves it",
        )
        chunks.append((offsets, sizes))
    return RawTensor(fqn, dtype.name, shape, tuple(chunks))


def _item(index: Any, info: Any) -> RawItem:
    fqn, offsets = index.fqn, getattr(index, "offset", None)
    _need(type(index) is _Index and type(info) is _StorageInfo and type(fqn) is str, "an item")
    _need(offsets is None or type(offsets) is tuple, f"offset of {fqn!r}")
    _need(type(info.relative_path) is str, f"file of {fqn!r}")
    _need(type(info.offset) is int and type(info.length) is int, f"place of {fqn!r}")
    _need(0 <= info.offset < 1 << 62 and 0 < info.length < 1 << 62, f"place of {fqn!r}")
    transforms = getattr(info, "transform_descriptors", None) or ()
    return RawItem(fqn, offsets, info.relative_path, info.offset, info.length, tuple(str(t)[:80] for t in transforms))


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
        _need(type(number) is int and 0 <= number < 1 << 62, "a view")
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
    **{("torch", name): _Named(dtype) for name, dtype in _STORAGES.items()},
}


def parse_item(payload: bytes, where: Path, what: str) -> PickledTensor:
    """An item's `data.pkl`. `what` (its FQN) is named in the errors, which are `parse`'s."""

    def storage(pid: Any) -> tuple[str, str, int]:
        kind, dtype, key, _location, elements = pid
        _need(kind == "storage" and type(dtype) is _Named and type(key) is str and type(elements) is int, "a storage")
        return dtype.name, key, elements

    found = _load(payload, _ITEM_NAMES, where, storage)
    if type(found) is not PickledTensor:
        raise errors.StepDamaged(f"the item of {what} holds no tensor", path=where, hint="save this step again")
    return found
