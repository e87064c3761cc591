"""Owns what is done to a block between reading and writing: the finite check and the cast, bit for bit as torch does.

numpy only. bfloat16 has no numpy type: its bits are handled as uint16, cast from float32 by rounding to nearest even.
A wider source than float32 goes through float32, as in torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_NUMPY: dict[str, Any] = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
_BITS: dict[str, tuple[Any, int, int]] = {
    "float64": (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "float32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "float16": (np.uint16, 0x7FFF, 0x7C00),
    "bfloat16": (np.uint16, 0x7FFF, 0x7F80),
}
"""dtype -> its bits as an integer, the mask of all but the sign, and infinity's pattern: NaN is above it."""


@dataclass
class Counts:
    """What was met in one HF tensor."""

    nan: int = 0
    inf: int = 0
    to_inf: int = 0
    """Finite values that the target cannot hold."""
    to_zero: int = 0
    """Non-zero values that became zero: reported, allowed."""

    def add(self, other: "Counts") -> None:
        """Adds another block's."""
        self.nan, self.inf = self.nan + other.nan, self.inf + other.inf
        self.to_inf, self.to_zero = self.to_inf + other.to_inf, self.to_zero + other.to_zero


class Caster:
    """Checks and casts blocks from one dtype to another; keeps its scratch memory. One for each thread."""

    def __init__(self, source: str, target: str):
        self.source, self.target = source, target
        self._scratch = np.empty(0, np.uint64)

    def __call__(self, raw: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Counts]:
        """The cast bytes of a block, valid until the next call, and what was met in it. Other types pass untouched."""
        counts = Counts()
        if self.source not in _BITS:
            return raw, counts
        kind, mask, infinity = _BITS[self.source]
        bits = raw.view(kind)
        rounded = self._round(bits) if (self.source, self.target) == ("float32", "bfloat16") else None
        if rounded is not None and self._is_plain(rounded):
            return rounded.view(np.uint8), counts
        magnitude = self._space(bits.size, kind, 0)
        np.bitwise_and(bits, kind(mask), out=magnitude)
        if magnitude.max(initial=0) >= infinity:
            counts.inf = int(np.count_nonzero(magnitude == infinity))
            counts.nan = int(np.count_nonzero(magnitude > infinity))
        if self.source == self.target:
            return raw, counts
        out = self._convert(raw) if rounded is None else rounded
        narrows = (
            self.source == "float64"
            or self.source == "float32"
            or (self.source, self.target) == ("bfloat16", "float16")
        )
        if narrows:
            self._losses(bits, out, counts)
        return out.view(np.uint8), counts

    def _space(self, size: int, kind: Any, part: int) -> Array:
        """Scratch for `size` elements; `part` 0 or 1 tells two uses of one call apart."""
        need = 2 * size
        if self._scratch.size < need:
            self._scratch = np.empty(need, np.uint64)
        half: Array = self._scratch[part * size : (part + 1) * size].view(kind)
        return half[:size]

    def _round(self, bits: Array) -> Array:
        """float32 to bfloat16: adds half of the last kept place, or just less of it where that place is even."""
        work = self._space(bits.size, np.uint32, 0)
        np.right_shift(bits, 16, out=work)
        np.bitwise_and(work, 1, out=work)
        np.add(work, 0x7FFF, out=work)
        np.add(work, bits, out=work)
        np.right_shift(work, 16, out=work)
        out = self._space(bits.size, np.uint16, 1)
        out[...] = work
        return out

    def _is_plain(self, out: Array) -> bool:
        """Whether nothing is to be counted. Rounding turns whatever is NaN, infinite or too large into infinity or more, or
        carries it past the sign into zero; what is lost to zero is zero."""
        _, mask, infinity = _BITS["bfloat16"]
        cast = np.bitwise_and(out, np.uint16(mask), out=self._space(out.size, np.uint16, 0))
        return bool(cast.min(initial=mask) > 0 and cast.max(initial=0) < infinity)

    def _convert(self, raw: NDArray[np.uint8]) -> Array:
        if self.source == "bfloat16":
            wide = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                wide = raw.view(_NUMPY[self.source]).astype(np.float32)
        if self.target == "bfloat16":
            return self._round(np.ascontiguousarray(wide).view(np.uint32)).copy()
        with np.errstate(over="ignore", invalid="ignore"):
            return wide.astype(_NUMPY[self.target], copy=False)

    def _losses(self, bits: Array, out: Array, counts: Counts) -> None:
        kind, mask, infinity = _BITS[self.target]
        cast = out.view(kind) & kind(mask)
        if cast.max(initial=0) >= infinity:
            counts.to_inf = int(np.count_nonzero(cast >= infinity)) - counts.inf - counts.nan
        if cast.min(initial=1) == 0:
            source_kind, source_mask, _ = _BITS[self.source]
            counts.to_zero = int(np.count_nonzero((cast == 0) & ((bits & source_kind(source_mask)) != 0)))
