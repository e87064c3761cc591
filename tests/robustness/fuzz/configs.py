"""Owns mutations of JSON files: run config, and index and headers of a step in HF form; by value, by structure, by text."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.robustness.fuzz.pickles import INTEGERS, TEXTS, Draw
from tests.robustness.fuzz.places import put

VALUES = st.sampled_from(
    [None, True, False, 0.0, -0.5, 1e308, float("nan"), float("inf"), [], {}, [[]], [{}], {"": {}}, "float32", "bfloat16", "float16",
     "qwen3", "tiny", "debugmodel", "debugmodel_moe", "0.6B", "/etc", "/etc/shadow", "/dev/zero", "./tokenizer.json", 10**30]
) | INTEGERS | TEXTS  # fmt: skip
_BOMBS = [
    b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"-", b"1e999999999", b"\xff\xfe", b"", b"NaN", b'"\\ud800"',
    b'{"training": {"dtype": "float32"}, "training": {"seq_len": 3}, "model": {}}', b"[" + b"{}," * 200_000 + b"0]",
]  # fmt: skip


def run_config(draw: Draw, path: Path) -> str:
    """A run config."""
    what, payload = mutate_json(draw, path.read_bytes())
    put(path, payload)
    return f"run config: {what}"


def index(draw: Draw, path: Path) -> str:
    """The index of a step in HF form."""
    what, payload = mutate_json(draw, path.read_bytes())
    put(path, payload)
    return f"index: {what}"


def header(draw: Draw, path: Path) -> str:
    """The header of a safetensors file, with its length made right or not."""
    payload = path.read_bytes()
    size = struct.unpack("<Q", payload[:8])[0]
    what, text = mutate_json(draw, payload[8 : 8 + size])
    if draw(st.booleans()):
        text += b" " * max(0, size - len(text))
    said = len(text) if draw(st.integers(0, 5)) else draw(st.sampled_from([0, 1, size, 2**25, 2**40, 2**64 - 1]))
    put(path, struct.pack("<Q", said) + text + payload[8 + size :])
    return f"header: {what}"


def mutate_json(draw: Draw, payload: bytes) -> tuple[str, bytes]:
    """(what was done, the text after it)."""
    what = draw(st.sampled_from(["value", "value", "value", "key", "drop", "nest", "text", "cut", "bomb"]))
    if what == "text":
        at = draw(st.integers(0, len(payload) - 1))
        return what, payload[:at] + draw(st.binary(min_size=1, max_size=4)) + payload[at + 1 :]
    if what == "cut":
        return what, payload[: draw(st.integers(0, len(payload) - 1))]
    if what == "bomb":
        return what, draw(st.sampled_from(_BOMBS))
    said = json.loads(payload)
    holder, key = draw(st.sampled_from(list(_places(said))))
    if what == "value":
        holder[key] = draw(VALUES)
    elif what == "drop":
        del holder[key]
    elif what == "nest":
        holder[key] = draw(st.sampled_from([[holder[key]], {"a": holder[key]}]))
    elif isinstance(holder, dict):
        holder[draw(TEXTS)] = holder.pop(key)
    text = json.dumps(said)
    return what, text.encode("utf-8", "surrogatepass")


def _places(said: Any) -> Any:
    """Every (container, key) below."""
    for key, value in list(said.items() if isinstance(said, dict) else enumerate(said)):
        yield said, key
        if isinstance(value, dict | list):
            yield from _places(value)
