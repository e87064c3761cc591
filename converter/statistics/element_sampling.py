"""Owns the sample of a tensor's elements for statistics. It takes their values from the blocks of an export.

Uses only numpy and the standard library. A tensor is cut into as many equal parts as the sample has elements, and one
element of each part is taken. The choice depends only on name and shape, so every step of a run is sampled in the same
places.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.checkpoint.tensor_reader import Bytes
from converter.checkpoint.tensors import TensorItems
from converter.common.dtypes import FLOATS

POSITIONS = 1 << 12
"""Elements that are looked at, of a tensor that has more."""
ALL = 1 << 23
"""… of all tensors together, about. Only a step in HF form reaches it, where each expert has tensors of its own (36,000 of a
235B): at 4,096 of each they took 1.6 GB, and as much again to be kept."""
_BITS = np.uint64(32)


def _mixed(count: int) -> NDArray[np.uint64]:
    """Random numbers below 2**32: splitmix64 (Steele, Lea, Flood 2014), the same in every version of numpy."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed >> _BITS


_RANDOM = _mixed(POSITIONS)
"""Where in its part an element lies, as a fraction of 2**32, before a tensor's own shift."""
_PLACES = np.arange(POSITIONS + 1, dtype=np.uint64)

Take = Callable[[int, Bytes], None]
"""Takes what it needs of a block: the index of its first element, its bytes."""
Floats = NDArray[np.float32]


def identity(name: str, shape: Sequence[int]) -> str:
    """What positions depend on, `layers.0.attention.wq.weight[128, 72]`: a tensor's name and shape."""
    return f"{name}{list(shape)}"


def share(tensors: int) -> int:
    """Elements that are looked at of each of so many tensors: POSITIONS, or the power of two that keeps to ALL."""
    return min(POSITIONS, 1 << max(0, (ALL // max(1, tensors)).bit_length() - 1))


def positions(identity: str, elements: int, most: int = POSITIONS) -> NDArray[np.int64]:
    """Indices of the elements that are looked at, ascending: `most`, a power of two, or all of them where there are few."""
    if elements <= most:
        return np.arange(elements, dtype=np.int64)
    shift = int.from_bytes(hashlib.sha256(identity.encode(errors="surrogatepass")).digest()[:4], "little")
    bounds = _bounds(elements, most)
    within = ((_RANDOM[:most] + np.uint64(shift)) & np.uint64(0xFFFF_FFFF)) * (bounds[1:] - bounds[:-1]) >> _BITS
    return (bounds[:-1] + within).view(np.int64)


def weights(elements: int, looked_at: int) -> NDArray[np.float64]:
    """For how much of the tensor each of the elements that are looked at stands; 1 together."""
    if elements <= looked_at:
        return np.full(elements, 1 / max(1, elements))
    return np.diff(_bounds(elements, looked_at)) / elements


def _bounds(elements: int, parts: int) -> NDArray[np.uint64]:
    """Where parts begin, and the last one ends; their number is a power of two."""
    return _PLACES[: parts + 1] * np.uint64(elements) >> np.uint64(parts.bit_length() - 1)


class Sample:
    """The elements that are looked at of one tensor, or of some rows of it."""

    def __init__(self, at: NDArray[np.int64], elements: int):
        self._at = at
        self.elements = elements
        """That it stands for."""
        self.values: Floats = np.zeros(at.size, np.float32)

    def take(self, first: int, raw: Bytes, dtype: str) -> None:
        """Takes the values that lie in a block whose first element is the tensor's `first`; by any thread."""
        low, high = self._at.searchsorted((first, first + raw.size // _WIDTHS[dtype])).tolist()
        if low < high:
            self.values[low:high] = _as_float32(raw, dtype, self._at[low:high] - first)


_KINDS: dict[str, Any] = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
_WIDTHS = {dtype: np.dtype(kind).itemsize for dtype, kind in _KINDS.items()}


def _as_float32(raw: Bytes, dtype: str, at: NDArray[np.int64]) -> Floats:
    chosen = raw.view(_KINDS[dtype])[at]
    if dtype == "bfloat16":
        chosen = (chosen.astype(np.uint32) << 16).view(np.float32)
    if dtype != "float64":
        return np.asarray(chosen, np.float32)
    with np.errstate(over="ignore"):
        return np.asarray(chosen, np.float32)


class Sampler:
    """The samples of one export of so many tensors, made as they pass; `rows` names those of a tensor that get one of
    their own."""

    def __init__(self, rows: Mapping[str, Sequence[int]] | None = None, *, tensors: int = 1):
        self._rows = rows or {}
        self._most = share(tensors)
        self._lock = threading.Lock()
        self.whole: dict[str, Sample] = {}
        """By FQN."""
        self.of_rows: dict[str, Sample] = {}
        self.identities: dict[str, str] = {}
        """By FQN, what the positions depend on."""

    def of(self, tensor: TensorItems) -> Take:
        """What takes the values of a tensor from its blocks; of integers it takes nothing."""
        if tensor.dtype not in FLOATS:
            return lambda first, raw: None
        with self._lock:
            if tensor.fqn not in self.whole:
                self._add(tensor)
        samples = [made[tensor.fqn] for made in (self.whole, self.of_rows) if tensor.fqn in made]

        def take(first: int, raw: Bytes) -> None:
            for sample in samples:
                sample.take(first, raw, tensor.dtype)

        return take

    def _add(self, tensor: TensorItems) -> None:
        name = identity(tensor.fqn, tensor.shape)
        self.identities[tensor.fqn] = name
        self.whole[tensor.fqn] = Sample(positions(name, tensor.elements, self._most), tensor.elements)
        if rows := self._rows.get(tensor.fqn):
            width = prod(tensor.shape[1:])
            within = positions(f"{name} of {len(rows)} rows", len(rows) * width)
            at = _chosen(rows, within // width) * width + within % width
            self.of_rows[tensor.fqn] = Sample(at, len(rows) * width)


def _chosen(rows: Sequence[int], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """These of `rows`. A range stays one: a sparse file of a few MB can have an embedding of a billion rows."""
    return rows.start + rows.step * at if isinstance(rows, range) else np.asarray(rows, np.int64)[at]
