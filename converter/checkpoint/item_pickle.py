"""Owns the reading of an item's `data.pkl`. Stand-ins from an allow-list rebuild the description of the saved tensor.

Uses only the standard library. torch 2.13.0 pickles a plain tensor or, in float8 training, torchao's wrapper around
one. Any other tensor subclass is refused by its name.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint.restricted_unpickle import Named, NotListed, is_bomb, load, need
from converter.common import errors


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


class _Inert:
    """Stands in for a class or function whose result says nothing of the payload: a layout, a device, a float8 setting."""

    def __new__(cls, *_args: object) -> "_Inert":
        return super().__new__(cls)


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """Stands in for a tensor subclass that wraps a plain tensor, in the attribute `inner`."""

    inner: str


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: object) -> PickledTensor:
    """`torch._utils._rebuild_tensor_v2`: requires_grad, hooks and, of a negated or conjugated view, that it is one."""
    dtype, key, elements = storage
    for number in (offset, elements, *size, *stride):
        need(type(number) is int and 0 <= number < 1 << 62, "a view")
    need(not rest[2:3] or not rest[2], "a negated or conjugated view")
    return PickledTensor(dtype, key, elements, offset, tuple(size), tuple(stride))


def _rebuild_parameter(tensor: object, *_rest: object) -> PickledTensor:
    """`torch._utils._rebuild_parameter`."""
    if not isinstance(tensor, PickledTensor):
        raise ValueError("a parameter is no tensor")
    return tensor


def _rebuild_wrapped(_rebuild: object, kind: object, args: Any, state: Any) -> PickledTensor:
    """`torch._tensor._rebuild_from_type_v2` of `_rebuild_wrapper_subclass`: the tensor inside, if the wrapper is as large.

    `args`: class, dtype, size, stride, storage offset, layout, device, requires_grad. `state`: the attributes.
    """
    if not isinstance(kind, _Wrapper) or not isinstance(state, dict):
        raise ValueError("a tensor subclass is not as torch writes it")
    inner, dtype = state.get(kind.inner), args[1]
    if not isinstance(inner, PickledTensor) or not isinstance(dtype, Named):
        raise ValueError("a tensor subclass holds no tensor")
    need((dtype.name, tuple(args[2]), tuple(args[3])) == (inner.dtype, inner.shape, inner.stride), "a tensor subclass")
    return inner


_ITEM_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_wrapped,
    ("torch._utils", "_rebuild_wrapper_subclass"): _Inert,
    ("torch.serialization", "_get_layout"): _Inert,
    ("torch", "device"): _Inert,
    # float8 training (torchao 0.18): the weight in float32, and how to cast it for a product.
    ("torchao.float8.fsdp_utils", "WeightWithDynamicFloat8CastTensor"): _Wrapper("_tensor"),
    ("torchao.float8.float8_training_tensor", "LinearMMConfig"): _Inert,
    ("torchao.float8.float8_training_tensor", "ScaledMMConfig"): _Inert,
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch", name): Named(dtype) for name, dtype in _STORAGES.items()},
}


_known: dict[bytes, PickledTensor] = {}
"""What was read before: layers and ranks repeat themselves (31 different ones in 933 items of three tests' runs)."""
_MOST_KNOWN = 10_000


def parse_item(payload: bytes, where: Path, what: str) -> PickledTensor:
    """An item's `data.pkl`. `what` (its FQN) is named in the errors.

    Raises UnsupportedModel for a tensor subclass that is not read, StepDamaged for what could be a bomb, and as `restricted_unpickle.load`.
    """
    if (known := _known.get(payload)) is not None:
        return known

    def storage(pid: Any) -> tuple[str, str, int]:
        kind, dtype, key, _location, elements = pid
        need(kind == "storage" and type(dtype) is Named and type(key) is str and type(elements) is int, "a storage")
        return dtype.name, key, elements

    try:
        need(not is_bomb(payload), "it could be larger than itself")
        found = load(payload, _ITEM_NAMES, where, storage, after="_rebuild_from_type_v2")
    except ValueError as error:
        raise errors.StepDamaged(
            f"the item of {what} holds no pickle of a tensor ({error})", path=where, hint="save this step again"
        ) from None
    except NotListed as error:
        raise errors.UnsupportedModel(
            f"{what} is stored as a {str(error)[:200]}, a tensor subclass that is not read",
            path=where,
            hint="save plain tensors: unwrap quantized weights before saving",
        ) from None
    if type(found) is not PickledTensor:
        raise errors.StepDamaged(f"the item of {what} holds no tensor", path=where, hint="save this step again")
    if len(_known) < _MOST_KNOWN:
        _known[payload] = found
    return found
