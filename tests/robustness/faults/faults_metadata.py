"""Faults in storage metadata: one field of the real pickle changed, by torch's own classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from converter.common import errors
from tests.robustness.faults.checks import READING
from tests.robustness.faults.fault import Fault, faults, stored_name
from tests.robustness.faults.faults_stored import W1, W2, W3
from tests.robustness.faults.scene import Scene
from tests.robustness.faults.stored import entries
from tests.unit.converter.editing import edit_metadata, save_changed

Change = Callable[[Any], None]


def _edit(scene: Scene, change: Change) -> None:
    edit_metadata(scene.step, change)


def _info(metadata: Any, fqn: str, chunk: int) -> Any:
    return metadata.storage_data[entries(metadata, fqn)[chunk]]


def dtype(scene: Scene, fqn: str, to: str) -> None:
    name = stored_name(scene, fqn)
    _edit(scene, lambda m: setattr(m.state_dict_metadata[name].properties, "dtype", getattr(torch, to)))


def shape(scene: Scene, fqn: str, to: tuple[int, ...]) -> None:
    name = stored_name(scene, fqn)
    _edit(scene, lambda m: setattr(m.state_dict_metadata[name], "size", torch.Size(to)))


def move_chunk(scene: Scene, fqn: str, chunk: int, to: tuple[int, ...], index: bool = True) -> None:
    """Another offset of a chunk, in the tensor's entry and (with `index`) in storage data."""
    name = stored_name(scene, fqn)

    def change(metadata: Any) -> None:
        held = entries(metadata, name)[chunk]
        chunks = metadata.state_dict_metadata[name].chunks
        at = next(i for i, c in enumerate(chunks) if c.offsets == held.offset and 0 not in c.sizes)
        chunks[at] = replace(chunks[at], offsets=torch.Size(to))
        if index:
            metadata.storage_data[replace(held, offset=torch.Size(to))] = metadata.storage_data.pop(held)

    _edit(scene, change)


def size_chunks(scene: Scene, fqn: str, rows: int) -> None:
    """The first chunk takes `rows` from the second: both still tile, and neither is what its item holds."""
    name = stored_name(scene, fqn)

    def change(metadata: Any) -> None:
        chunks = sorted(metadata.state_dict_metadata[name].chunks, key=lambda c: tuple(c.offsets))
        first, second = chunks[0], chunks[1]
        middle = torch.Size((second.offsets[0] + rows, *second.offsets[1:]))
        held = entries(metadata, name)[1]
        metadata.state_dict_metadata[name].chunks = [
            ChunkStorageMetadata(first.offsets, torch.Size((first.sizes[0] + rows, *first.sizes[1:]))),
            ChunkStorageMetadata(middle, torch.Size((second.sizes[0] - rows, *second.sizes[1:]))),
            *chunks[2:],
        ]
        metadata.storage_data[replace(held, offset=middle)] = metadata.storage_data.pop(held)

    _edit(scene, change)


def shrink_chunk(scene: Scene, fqn: str, chunk: int, sizes: tuple[int, ...]) -> None:
    name = stored_name(scene, fqn)

    def change(metadata: Any) -> None:
        held = entries(metadata, name)[chunk]
        chunks = metadata.state_dict_metadata[name].chunks
        at = next(i for i, c in enumerate(chunks) if c.offsets == held.offset and 0 not in c.sizes)
        chunks[at] = replace(chunks[at], sizes=torch.Size(sizes))

    _edit(scene, change)


def point(scene: Scene, fqn: str, chunk: int, other: str, other_chunk: int) -> None:
    """An item's place becomes that of another tensor's item, which stays where it is."""
    name, there = stored_name(scene, fqn), stored_name(scene, other)

    def change(metadata: Any) -> None:
        info, target = _info(metadata, name, chunk), _info(metadata, there, other_chunk)
        assert info.length == target.length
        info.relative_path, info.offset = target.relative_path, target.offset

    _edit(scene, change)


def shift(scene: Scene, fqn: str, chunk: int, by: int) -> None:
    def change(metadata: Any) -> None:
        _info(metadata, stored_name(scene, fqn), chunk).offset += by

    _edit(scene, change)


def stretch(scene: Scene, fqn: str, chunk: int, by: int) -> None:
    def change(metadata: Any) -> None:
        _info(metadata, stored_name(scene, fqn), chunk).length += by

    _edit(scene, change)


def other_file(scene: Scene, fqn: str, chunk: int, name: str) -> None:
    def change(metadata: Any) -> None:
        _info(metadata, stored_name(scene, fqn), chunk).relative_path = name

    _edit(scene, change)


def rename_item(scene: Scene, fqn: str, chunk: int, to: str) -> None:
    """The FQN of one item: the dict then holds two equal keys, as the pickle may."""

    def change(metadata: Any) -> None:
        held = entries(metadata, stored_name(scene, fqn))[chunk]
        object.__setattr__(held, "fqn", stored_name(scene, to))

    _edit(scene, change)


def rename(scene: Scene, fqn: str, to: str) -> None:
    """A tensor's FQN, wherever it stands."""
    old = stored_name(scene, fqn)

    def change(metadata: Any) -> None:
        metadata.state_dict_metadata[to] = metadata.state_dict_metadata.pop(old)
        for held in [index for index in metadata.storage_data if index.fqn == old]:
            metadata.storage_data[replace(held, fqn=to)] = metadata.storage_data.pop(held)

    _edit(scene, change)


def rename_tensor(scene: Scene, fqn: str, to: str) -> None:
    """A tensor's FQN, but not its items'."""
    _edit(scene, lambda m: m.state_dict_metadata.update({to: m.state_dict_metadata.pop(stored_name(scene, fqn))}))


def transform(scene: Scene, fqn: str, chunk: int) -> None:
    def change(metadata: Any) -> None:
        _info(metadata, stored_name(scene, fqn), chunk).transform_descriptors = ["stream.zstd/1"]

    _edit(scene, change)


def save_twice(scene: Scene, fqn: str, to: str) -> None:
    """One tensor under an old and a new name."""
    save_changed(scene.step, lambda states: states.update({to: states[stored_name(scene, fqn)].clone() + 1}))


def save_extra(scene: Scene, name: str) -> None:
    save_changed(scene.step, lambda states: states.update({name: torch.randn(6, 4)}))


def leave_out(scene: Scene, fqn: str) -> None:
    save_changed(scene.step, lambda states: states.pop(stored_name(scene, fqn)))


DAMAGED = errors.StepDamaged
F32, BF16 = ("dense_tied-0.2-fsdp-float32", "moe-0.3-2x2-bfloat16")
FSDP, SQUARE, MOE = "dense_tied-0.2-fsdp-float32", "dense_untied-between-2x2-bfloat16", "moe-0.3-2x2-float32"
Q0, Q2, UP1 = (
    "layers.0.attention.qkv_linear.wq.weight",
    "layers.2.attention.qkv_linear.wq.weight",
    "layers.1.feed_forward.w3.weight",
)
EMBEDDING, HEAD = "tok_embeddings.weight", "lm_head.weight"

FAULTS: list[Fault] = [
    *faults(
        "storage metadata says another dtype", "items", errors.PayloadCorrupt, dtype,
        [(FSDP, {"fqn": Q0, "to": "int32"}), (SQUARE, {"fqn": EMBEDDING, "to": "float16"}), (MOE, {"fqn": f"layers.1.{W2}", "to": "int32"})],
    ),
    *faults(
        "storage metadata says another shape", "chunks", DAMAGED, shape,
        [(FSDP, {"fqn": Q0, "to": (129, 72)}), (SQUARE, {"fqn": EMBEDDING, "to": (639, 72)}), (MOE, {"fqn": f"layers.1.{W2}", "to": (7, 72, 56)})],
    ),
    *faults(
        "storage metadata says a shape too small", READING, DAMAGED, shape,
        [(FSDP, {"fqn": Q0, "to": (72, 128)}), (SQUARE, {"fqn": EMBEDDING, "to": (637, 72)}), (MOE, {"fqn": f"layers.1.{W2}", "to": (6, 56, 72)})],
    ),
    *faults(
        "a chunk moved over another", "chunks", DAMAGED, move_chunk,
        [(FSDP, {"fqn": Q0, "chunk": 2, "to": (33, 0)}), (SQUARE, {"fqn": UP1, "chunk": 3, "to": (47, 0)}), (MOE, {"fqn": f"layers.1.{W2}", "chunk": 3, "to": (2, 0, 28)})],
    ),
    *faults(
        "a chunk's offset in the tensor's entry only", "storage_metadata", DAMAGED, move_chunk,
        [(FSDP, {"fqn": Q0, "chunk": 1, "to": (64, 0), "index": False}), (SQUARE, {"fqn": UP1, "chunk": 3, "to": (46, 0), "index": False}), (MOE, {"fqn": f"layers.1.{W1}", "chunk": 0, "to": (3, 28, 0), "index": False})],
    ),
    *faults(
        "chunks of other sizes than their items", "items", errors.PayloadCorrupt, size_chunks,
        [(FSDP, {"fqn": Q0, "rows": 8}), (SQUARE, {"fqn": EMBEDDING, "rows": 1}), ("moe-0.2-fsdp-float32", {"fqn": f"layers.2.{W3}", "rows": 1})],
    ),
    *faults(
        "a chunk smaller than its item", "chunks", DAMAGED, shrink_chunk,
        [(FSDP, {"fqn": Q0, "chunk": 2, "sizes": (31, 72)}), (SQUARE, {"fqn": EMBEDDING, "chunk": 0, "sizes": (160, 71)}), (MOE, {"fqn": f"layers.1.{W2}", "chunk": 3, "sizes": (2, 72, 28)})],
    ),
    *faults(
        "an item points at another's bytes, of the same shape and dtype", "storage_metadata", DAMAGED, point,
        [
            (FSDP, {"fqn": Q0, "chunk": 1, "other": Q2, "other_chunk": 1}),
            (FSDP, {"fqn": EMBEDDING, "chunk": 0, "other": EMBEDDING, "other_chunk": 1}),
            (SQUARE, {"fqn": UP1, "chunk": 0, "other": "layers.1.feed_forward.w1.weight", "other_chunk": 0}),
            (SQUARE, {"fqn": "layers.0.attention_norm.weight", "chunk": 1, "other": "layers.0.ffn_norm.weight", "other_chunk": 1}),
            (MOE, {"fqn": f"layers.1.{W1}", "chunk": 0, "other": f"layers.1.{W3}", "other_chunk": 2}),
            ("one_rank", {"fqn": UP1, "chunk": 0, "other": "optimizer.state.layers.1.feed_forward.w3.weight.exp_avg", "other_chunk": 0}),
        ],
    ),
    *faults(
        "an item's offset is off", "storage_metadata", DAMAGED, shift,
        [(FSDP, {"fqn": Q0, "chunk": 0, "by": 1}), (SQUARE, {"fqn": HEAD, "chunk": -1, "by": -64}), (MOE, {"fqn": f"layers.1.{W2}", "chunk": 2, "by": 4096})],
    ),
    *faults(
        "an item is said to be longer", "storage_metadata", DAMAGED, stretch,
        [(FSDP, {"fqn": Q0, "chunk": 0, "by": 1}), (SQUARE, {"fqn": HEAD, "chunk": -1, "by": 64}), (MOE, {"fqn": f"layers.1.{W2}", "chunk": 2, "by": 1000})],
    ),
    *faults(
        "an item is said to be shorter", READING, errors.PayloadCorrupt, stretch,
        [(FSDP, {"fqn": Q0, "chunk": 0, "by": -1}), (SQUARE, {"fqn": HEAD, "chunk": -1, "by": -22}), (MOE, {"fqn": f"layers.1.{W2}", "chunk": 2, "by": -1000})],
    ),
    *faults(
        "an item is said to be in another shard", "storage_metadata", DAMAGED, other_file,
        [
            (FSDP, {"fqn": UP1, "chunk": 1, "name": "__2_0.distcp"}),
            ("dense_untied-0.2-fsdp-bfloat16", {"fqn": EMBEDDING, "chunk": 2, "name": "__1_0.distcp"}),
            ("moe-0.2-fsdp-float32", {"fqn": f"layers.0.{W1}", "chunk": 1, "name": "__2_0.distcp"}),
        ],
    ),
    *faults(
        "an item is said to be another tensor's", "storage_metadata", DAMAGED, rename_item,
        [(FSDP, {"fqn": Q0, "chunk": 1, "to": Q2}), (SQUARE, {"fqn": UP1, "chunk": 0, "to": "layers.1.feed_forward.w1.weight"}), (MOE, {"fqn": f"layers.1.{W1}", "chunk": 3, "to": f"layers.1.{W3}"})],
    ),
    *faults(
        "a tensor's name is none", "names", errors.UnknownTensor, rename,
        [(FSDP, {"fqn": Q2, "to": "layers.2.attention.xq.weight"}), (SQUARE, {"fqn": HEAD, "to": "lm_heae.weight"}), (MOE, {"fqn": f"layers.1.{W2}", "to": "layers.1.moe.routed_experts.inner_experts.w2_EDG"})],
    ),
    *faults(
        "a tensor's name is another layer's", "plan", errors.PlanMismatch, rename,
        [(FSDP, {"fqn": UP1, "to": "layers.5.feed_forward.w3.weight"}), (SQUARE, {"fqn": Q2, "to": "layers.3.attention.qkv_linear.wq.weight"}), (MOE, {"fqn": f"layers.1.{W2}", "to": f"layers.9.{W2}"})],
    ),
    *faults(
        "a tensor's name, but not its items'", "storage_metadata", DAMAGED, rename_tensor,
        [(FSDP, {"fqn": Q0, "to": "layers.0.attention.wx.weight"}), (SQUARE, {"fqn": EMBEDDING, "to": "tok_embeddingr.weight"}), (MOE, {"fqn": f"layers.1.{W2}", "to": f"layers.0.{W3}"})],
    ),
    *faults(
        "a stream transform", "storage_metadata", errors.UnsupportedFormat, transform,
        [(FSDP, {"fqn": Q0, "chunk": 1}), (SQUARE, {"fqn": "norm.weight", "chunk": 0}), (MOE, {"fqn": f"layers.1.{W2}", "chunk": 3})],
    ),
    *faults(
        "one tensor under two names", "names", errors.UnknownTensor, save_twice,
        [("one_rank", {"fqn": HEAD, "to": "lm_head.weight"}), ("dense_untied-0.2-fsdp-bfloat16", {"fqn": Q2, "to": Q2}), ("moe-0.2-fsdp-float32", {"fqn": f"layers.0.{W1}", "to": f"layers.0.{W1}"})],
    ),
    *faults(
        "a tensor that no Qwen3 has", "names", errors.UnknownTensor, save_extra,
        [("one_rank", {"name": "vision_proj.weight"}), ("dense_untied-0.2-fsdp-bfloat16", {"name": "layers.1.attention.wq.bias"}), ("moe-0.2-fsdp-float32", {"name": "layers.2.moe.shared_experts.w1.weight"})],
    ),
    *faults(
        "LoRA or fused weights", "names", errors.UnsupportedModel, save_extra,
        [("one_rank", {"name": "layers.0.attention.wq.lora_a.weight"}), ("dense_untied-0.2-fsdp-bfloat16", {"name": "layers.1.attention.qkv_linear.wqkv.weight"}), ("moe-0.2-fsdp-float32", {"name": "layers.2.feed_forward.w13.weight"})],
    ),
    *faults(
        "a tensor that is not in the checkpoint", "plan", errors.PlanMismatch, leave_out,
        [("one_rank", {"fqn": UP1}), ("dense_untied-0.2-fsdp-bfloat16", {"fqn": "norm.weight"}), ("moe-0.2-fsdp-float32", {"fqn": "layers.2.moe.router.gate.weight"})],
    ),
]  # fmt: skip
