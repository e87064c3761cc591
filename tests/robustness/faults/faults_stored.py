"""Faults in the bytes of a step: payloads, item headers, whole files."""

from __future__ import annotations

import os
import struct
import zipfile

from converter.common import errors
from tests.robustness.faults.checks import READING
from tests.robustness.faults.fault import Fault, faults, stored_name
from tests.robustness.faults.scene import Scene
from tests.robustness.faults.stored import Item, item, put_elsewhere, rezip
from tests.unit.converter.editing import make_newer

W1, W2, W3 = (f"moe.routed_experts.inner_experts.w{n}" for n in ("1_EFD", "2_EDF", "3_EFD"))


def _item(scene: Scene, fqn: str, chunk: int = 0) -> Item:
    return item(scene.step, stored_name(scene, fqn), chunk)


def flip_payload(scene: Scene, fqn: str, chunk: int, byte: int, bit: int) -> None:
    held = _item(scene, fqn, chunk)
    held.flip(held.start("data/0") + byte % len(held.content()), bit)


def zero_block(scene: Scene, fqn: str, chunk: int) -> None:
    held = _item(scene, fqn, chunk)
    content = held.content()
    held.write(held.start("data/0"), content[:256] + bytes(512) + content[768:])


def swap_blocks(scene: Scene, fqn: str, chunk: int) -> None:
    held = _item(scene, fqn, chunk)
    content = held.content()
    held.write(held.start("data/0"), content[512:1024] + content[:512] + content[1024:])


def flip_description(scene: Scene, fqn: str, byte: int, bit: int) -> None:
    held = _item(scene, fqn)
    held.flip(held.start("data.pkl") + byte, bit)


def describe(scene: Scene, fqn: str, old: bytes, new: bytes) -> None:
    """Another description, with its own right checksum."""
    held = _item(scene, fqn)
    content = held.content("data.pkl")
    assert content.count(old) == 1, (old, content)
    held.set_content(content.replace(old, new), "data.pkl")


def redescribe(scene: Scene, fqn: str, old: bytes, new: bytes) -> None:
    """A description of another length: the item is written anew elsewhere."""
    blob = _item(scene, fqn).blob
    put_elsewhere(
        scene.step,
        stored_name(scene, fqn),
        rezip(blob, lambda name, c: c.replace(old, new) if name == "data.pkl" else c),
    )


def patch_header(scene: Scene, fqn: str, record: str, at: int, form: str, add: int) -> None:
    """Adds to a field of a record's local header (APPNOTE 4.3.7)."""
    held = _item(scene, fqn)
    where = held.info(record).header_offset + at
    (value,) = struct.unpack_from(form, held.blob, where)
    held.write(where, struct.pack(form, value + add))


def patch_entry(scene: Scene, fqn: str, record: str, at: int, form: str, add: int) -> None:
    """Adds to a field of a record's entry in the central directory (APPNOTE 4.3.12)."""
    held = _item(scene, fqn)
    where = held.entry(record) + at
    (value,) = struct.unpack_from(form, held.blob, where)
    held.write(where, struct.pack(form, (value + add) % (1 << 8 * struct.calcsize(form))))


def flip_name(scene: Scene, fqn: str, record: str) -> None:
    held = _item(scene, fqn)
    held.flip(held.info(record).header_offset + 30 + len("archive/"), 1)


def spoil_end(scene: Scene, fqn: str, byte: int) -> None:
    held = _item(scene, fqn)
    held.flip(held.length - byte)


def compress(scene: Scene, fqn: str) -> None:
    blob = rezip(_item(scene, fqn).blob, lambda _, content: content, zipfile.ZIP_DEFLATED)
    put_elsewhere(scene.step, stored_name(scene, fqn), blob)


def swap_order(scene: Scene, fqn: str) -> None:
    blob = rezip(_item(scene, fqn).blob, lambda name, content: b"big" if name == "byteorder" else content)
    put_elsewhere(scene.step, stored_name(scene, fqn), blob)


def other_item(scene: Scene, fqn: str, other: str) -> None:
    """Another tensor's item in place of this one's."""
    put_elsewhere(scene.step, stored_name(scene, fqn), _item(scene, other).blob)


def truncate(scene: Scene, name: str, by: int) -> None:
    path = scene.step / name
    facts = path.stat()
    os.truncate(path, max(0, facts.st_size - by))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def remove(scene: Scene, name: str) -> None:
    (scene.step / name).unlink()


def swap_shards(scene: Scene, name: str, other: str) -> None:
    one, two, aside = scene.step / name, scene.step / other, scene.step.parent / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def newer(scene: Scene, name: str, seconds: float) -> None:
    make_newer(scene.step, seconds, name)


FLIPS = [
    ("dense_tied-0.2-fsdp-float32", {"fqn": "tok_embeddings.weight", "chunk": 3, "byte": -1, "bit": 7}),
    ("dense_tied-0.2-2x2-bfloat16", {"fqn": "lm_head.weight", "chunk": 0, "byte": 0, "bit": 0}),
    ("dense_tied-0.3-2x2-float32", {"fqn": "norm.weight", "chunk": 0, "byte": 17, "bit": 3}),
    (
        "dense_untied-between-2x2-float32",
        {"fqn": "layers.2.feed_forward.w2.weight", "chunk": 1, "byte": 2500, "bit": 1},
    ),
    ("moe-0.2-fsdp-bfloat16", {"fqn": f"layers.0.{W2}", "chunk": -1, "byte": -2, "bit": 6}),
    ("moe-between-2x2-float32", {"fqn": "layers.1.moe.expert_bias_E", "chunk": 0, "byte": 0, "bit": 0}),
    ("moe-0.3-2x2-bfloat16", {"fqn": f"layers.2.{W3}", "chunk": 1, "byte": 4096, "bit": 4}),
]
CORRUPT, DAMAGED = errors.PayloadCorrupt, errors.StepDamaged
Q0, NORM, GATE = (
    "layers.0.attention.qkv_linear.wq.weight",
    "layers.1.ffn_norm.weight",
    "layers.1.moe.router.gate.weight",
)
UP2 = "layers.2.feed_forward.w3.weight"
ITEMS = [
    ("dense_tied-0.2-2x2-float32", {"fqn": Q0}),
    ("dense_untied-0.3-fsdp-bfloat16", {"fqn": NORM}),
    ("moe-between-fsdp-float32", {"fqn": f"layers.2.{W1}"}),
]
PLAIN = [
    ("dense_tied-0.2-2x2-float32", {"fqn": Q0}),
    ("dense_untied-0.3-fsdp-bfloat16", {"fqn": "layers.1.feed_forward.w1.weight"}),
    ("moe-between-fsdp-float32", {"fqn": f"layers.2.{W1}"}),
]
OFF = [("crc_off", {"fqn": f}) for f in ("tok_embeddings.weight", GATE, f"layers.0.{W2}")]


def _each(places: list[tuple[str, dict[str, object]]], **given: object) -> list[tuple[str, dict[str, object]]]:
    return [(name, place | given) for name, place in places]


FAULTS: list[Fault] = [
    *faults("bit flip in a payload", "checksums", CORRUPT, flip_payload, FLIPS),
    *faults("512 bytes of a payload zeroed", "checksums", CORRUPT, zero_block, _each(PLAIN, chunk=0)),
    *faults("two blocks of a payload swapped", "checksums", CORRUPT, swap_blocks, _each(PLAIN, chunk=-1)),
    *faults(
        "bit flip in an item's description (shape, stride, storage)", "checksums", CORRUPT, flip_description,
        [(name, place | {"byte": byte, "bit": 0}) for (name, place), byte in zip(ITEMS, (104, 58, 107), strict=True)],
    ),
    *faults("checksum of a payload flipped", "checksums", CORRUPT, patch_entry, _each(ITEMS, record="data/0", at=16, form="<I", add=1)),
    *faults(
        "an item's description says another dtype", "items", CORRUPT, describe,
        [
            ("dense_tied-0.2-2x2-float32", {"fqn": Q0, "old": b"FloatStorage", "new": b"ShortStorage"}),
            ("dense_tied-0.3-fsdp-float32", {"fqn": NORM, "old": b"FloatStorage", "new": b"ShortStorage"}),
            ("moe-0.2-fsdp-float32", {"fqn": GATE, "old": b"FloatStorage", "new": b"ShortStorage"}),
        ],
    ),
    *faults(
        "an item's description says fp16 for bf16", "items", CORRUPT, redescribe,
        [(name, {"fqn": fqn, "old": b"BFloat16Storage", "new": b"HalfStorage"}) for name, fqn in (
            ("dense_tied-0.2-2x2-bfloat16", Q0), ("dense_untied-0.3-fsdp-bfloat16", NORM), ("moe-0.2-fsdp-bfloat16", GATE))],
    ),
    *faults(
        "an item's description says another shape", "items", CORRUPT, describe,
        [
            ("dense_tied-0.2-fsdp-float32", {"fqn": Q0, "old": b"K\x20KH\x86q\x06KHK\x01\x86", "new": b"KHK\x20\x86q\x06K\x20K\x01\x86"}),
            ("dense_untied-between-fsdp-bfloat16", {"fqn": UP2, "old": b"K\x18KH\x86q\x06KHK\x01\x86", "new": b"KHK\x18\x86q\x06K\x18K\x01\x86"}),
            ("moe-0.2-fsdp-float32", {"fqn": f"layers.1.{W1}", "old": b"K\x02K8KH\x87q\x06M\xc0\x0f", "new": b"K8K\x02KH\x87q\x06M\x90\x00"}),
        ],
    ),
    *faults(
        "an item's description says another stride", "items", DAMAGED, describe,
        [
            ("dense_tied-0.2-fsdp-float32", {"fqn": Q0, "old": b"KHK\x01\x86", "new": b"K\x01K\x20\x86"}),
            ("dense_untied-between-fsdp-bfloat16", {"fqn": UP2, "old": b"KHK\x01\x86", "new": b"K\x01K\x18\x86"}),
            ("moe-0.2-fsdp-float32", {"fqn": f"layers.1.{W1}", "old": b"KHK\x01\x87", "new": b"K\x01K8\x87"}),
        ],
    ),
    *faults(
        "an item's description says a storage offset", "items", DAMAGED, describe,
        [(name, {"fqn": fqn, "old": b"QK\x00K", "new": b"QK\x01K"}) for name, fqn in (
            ("dense_tied-0.2-fsdp-float32", Q0), ("dense_untied-0.3-2x2-float32", NORM), ("moe-0.2-fsdp-float32", f"layers.0.{W2}"))],
    ),
    *faults(
        "a record's local header names another record", "items", CORRUPT, flip_name,
        _each(ITEMS, record="data/0"),
    ),
    *faults("where no checksum is stored: local header shifts the payload", "items", CORRUPT, patch_header, _each(OFF, record="data/0", at=28, form="<H", add=-2)),
    *faults("where no checksum is stored: directory leads to another record", "items", CORRUPT, patch_entry, _each(OFF, record="data/0", at=42, form="<I", add=-132)),
    *faults("directory says another length of a payload", "items", CORRUPT, patch_entry, _each(ITEMS, record="data/0", at=24, form="<I", add=-4)),
    *faults("descriptor behind a payload flipped", "items", CORRUPT, patch_header, _each(ITEMS, record="version", at=-8, form="<I", add=8)),
    *faults(
        "end of an item's directory flipped", READING, CORRUPT, spoil_end,
        [(name, place | {"byte": byte}) for (name, place), byte in zip(ITEMS, (22, 20, 6), strict=True)],
    ),
    *faults("an item stored compressed", "items", DAMAGED, compress, PLAIN),
    *faults("an item stored big-endian", "items", DAMAGED, swap_order, ITEMS),
    *faults(
        "another tensor's item, of another shape", "items", CORRUPT, other_item,
        [
            ("dense_tied-0.2-2x2-float32", {"fqn": Q0, "other": "layers.0.feed_forward.w1.weight"}),
            ("dense_untied-0.3-fsdp-bfloat16", {"fqn": "layers.0.feed_forward.w2.weight", "other": "layers.0.feed_forward.w1.weight"}),
            ("moe-between-2x2-float32", {"fqn": f"layers.2.{W1}", "other": f"layers.2.{W2}"}),
        ],
    ),
    *faults(
        "a truncated DCP shard", "complete", errors.StepIncomplete, truncate,
        [
            ("dense_tied-0.2-fsdp-float32", {"name": "__1_0.distcp", "by": 1}),
            ("moe-0.3-2x2-bfloat16", {"name": "__3_0.distcp", "by": 100_000}),
            ("dense_untied-between-2x2-float32", {"name": "__0_0.distcp", "by": 10_000_000}),
        ],
    ),
    *faults(
        "a DCP shard missing", "complete", errors.StepIncomplete, remove,
        [("dense_tied-0.2-fsdp-float32", {"name": "__2_0.distcp"}), ("moe-0.3-2x2-bfloat16", {"name": "__0_0.distcp"}), ("dense_untied-between-2x2-float32", {"name": "__3_0.distcp"})],
    ),
    *faults(
        "DCP shards newer than storage metadata", "complete", errors.StepSuspect, newer,
        [("dense_tied-0.2-fsdp-float32", {"name": "__2_0.distcp", "seconds": 6}), ("moe-0.3-2x2-bfloat16", {"name": "*.distcp", "seconds": 3600}), ("one_rank", {"name": "*.distcp", "seconds": 60})],
    ),
    *faults(
        "two DCP shards swapped", READING, CORRUPT, swap_shards,
        [
            ("dense_tied-0.2-fsdp-float32", {"name": "__0_0.distcp", "other": "__1_0.distcp"}),
            ("moe-0.3-2x2-bfloat16", {"name": "__1_0.distcp", "other": "__2_0.distcp"}),
            ("dense_untied-between-2x2-float32", {"name": "__2_0.distcp", "other": "__3_0.distcp"}),
        ],
    ),
]  # fmt: skip
