"""Owns mutations of a pickle by its opcodes: what stands there is changed, dropped, doubled, swapped, and stays opcodes."""

from __future__ import annotations

import pickletools
import struct
from typing import Any

from hypothesis import strategies as st

Draw = Any
"""`draw(strategy)` of hypothesis."""
INTEGERS = st.sampled_from(
    [0, 1, 2, 7, 255, 256, 4096, 65535, 2**31 - 1, 2**31, 2**32, 2**62 - 1, 2**62, 2**63, 2**64, 10**40, -1, -255, -(2**63)]
) | st.integers(-300, 300)  # fmt: skip
TEXTS = st.sampled_from(
    ["", ".", "..", "../x.distcp", "/etc/passwd", "__0_0.distcp", "__3_0.distcp", "__9_0.distcp", "a\nb", "\x1b]0;x\x07", "a\0b", "\udc80",
     "A" * 5000, "posix", "system", "builtins", "eval", "torch", "Size", "int64", "float64", "bool", "layers.0.attention.wq.weight",
     "output.weight", "lm_head.weight", "tok_embeddings.weight", "layers.99.ffn_norm.weight", "train_state"]
)  # fmt: skip
_INT, _TEXT = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"), ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE")
_MEMO = ("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE")


def opcodes(payload: bytes) -> list[tuple[str, Any, bytes]]:
    """(name, argument, bytes) of each opcode but FRAME, whose lengths would not hold any more."""
    found = list(pickletools.genops(payload))
    ends = [position for _, _, position in found[1:]] + [len(payload)]
    parts = [(op.name, arg, payload[at:end]) for (op, arg, at), end in zip(found, ends, strict=True)]
    return [part for part in parts if part[0] != "FRAME"]


def integer(value: int) -> bytes:
    """An opcode that pushes this integer."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    packed = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(packed)]) + packed


def text(value: str) -> bytes:
    """An opcode that pushes this text."""
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _pick(draw: Draw, parts: list[tuple[str, Any, bytes]], names: tuple[str, ...]) -> int:
    able = [index for index, part in enumerate(parts) if part[0] in names]
    return int(draw(st.sampled_from(able or [0])))


def mutate(draw: Draw, payload: bytes) -> tuple[str, bytes]:
    """(what was done, the pickle after one to three such changes)."""
    parts = opcodes(payload)
    what = draw(st.sampled_from(["integer", "text", "memo", "drop", "double", "swap", "insert"]))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        if what == "integer":
            index = _pick(draw, parts, _INT)
            parts[index] = ("BININT", 0, integer(draw(INTEGERS)))
        elif what == "text":
            index = _pick(draw, parts, _TEXT)
            others = [part[1] for part in parts if part[0] in _TEXT]
            parts[index] = ("BINUNICODE", "", text(draw(TEXTS | st.sampled_from(others))))
        elif what == "memo":
            index = _pick(draw, parts, _MEMO)
            place = draw(
                st.sampled_from([0, 1, 2, 50, 255, 1000, 100_000, 20_000_000, 200_000_000]) | st.integers(0, 300)
            )
            code = b"j" if "GET" in parts[index][0] else b"r"
            parts[index] = ("LONG_BINPUT", place, code + struct.pack("<I", place))
        else:
            index = draw(st.integers(0, len(parts) - 2))
            if what == "drop":
                del parts[index]
            elif what == "double":
                parts.insert(index, parts[index])
            elif what == "swap":
                other = draw(st.integers(0, len(parts) - 2))
                parts[index], parts[other] = parts[other], parts[index]
            else:
                parts.insert(index, ("?", None, draw(st.sampled_from(_INSERTED))))
    return what, b"".join(part[2] for part in parts)


_INSERTED = [
    b"N", b"(", b"0", b"1", b"2", b")", b"]", b"}", b"t", b"\x85", b"\x86", b"R", b"b", b"u", b"a", b"e", b"\x81", b"\x93", b".",
    b"cposix\nsystem\n", b"Q", b"P1\n", b"\x8f", b"\x91", b"\x90", b"h\x00", b"j\xff\xff\xff\x7f", b"r\x00\xc2\xeb\x0b",
    b"\x8e\x00\x00\x00\x00\x20\x00\x00\x00", b"\x8d\x00\x00\x00\x00\x20\x00\x00\x00", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
]  # fmt: skip
"""Opcodes of every kind, some that ask for more than there is."""
