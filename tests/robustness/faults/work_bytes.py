"""Wrappers round exporter, layout, sinks and configs that make them wrong. The product has no switches for them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converter import move
from converter.checkpoint import tensor_reader
from converter.export import cast, exporter, writer
from converter.export.hf_shards import HFShard
from converter.families.qwen3 import model
from converter.proof import requests
from converter.publish import manifest
from converter.run import base_assets
from tests.robustness.faults.scene import Scene


def _puts(scene: Scene, wrong: Callable[..., None], block: int | None = None) -> None:
    """`wrong(put, tensor, file, position, block)` in place of the writer's own put."""
    put = writer.Writer.put
    if block:
        scene.patch.setattr(exporter, "BLOCK", block)
    scene.patch.setattr(writer.Writer, "put", lambda self, *args: wrong(lambda *a: put(self, *a), *args))


def transpose(scene: Scene, name: str) -> None:
    """A square weight is written transposed."""
    item = 2 if scene.case.dtype == "bfloat16" else 4

    def wrong(put: Callable[..., None], tensor: str, file: str, position: int, block: Any) -> None:
        if tensor == name:
            side = int((block.size // item) ** 0.5)
            block = np.ascontiguousarray(block.reshape(side, side, item).transpose(1, 0, 2)).reshape(-1)
        put(tensor, file, position, block)

    _puts(scene, wrong)


def block_twice(scene: Scene, name: str) -> None:
    def wrong(put: Callable[..., None], *args: Any) -> None:
        put(*args)
        if args[0] == name:
            put(*args)

    _puts(scene, wrong, block=8192)


def block_lost(scene: Scene, name: str) -> None:
    left = [1]

    def wrong(put: Callable[..., None], *args: Any) -> None:
        if args[0] != name or not left:
            put(*args)
        else:
            left.pop()

    _puts(scene, wrong, block=8192)


def block_over_another(scene: Scene, name: str) -> None:
    """A block of the tensor is written where the one before it was."""
    before: list[int] = []

    def wrong(put: Callable[..., None], tensor: str, file: str, position: int, block: Any) -> None:
        if tensor == name:
            before.append(position)
            position = before[0] if len(before) == 2 else position
        put(tensor, file, position, block)

    scene.options["threads"] = 1
    _puts(scene, wrong, block=4096)


def blocks_exchanged(scene: Scene, name: str, at: int, block_bytes: int = 2048) -> None:
    """Two blocks of one length are written at each other's places: all bytes once, and each reads back."""
    held: list[tuple[Any, ...]] = []
    seen: list[int] = []

    def wrong(put: Callable[..., None], tensor: str, file: str, position: int, block: Any) -> None:
        if tensor != name:
            put(tensor, file, position, block)
            return
        seen.append(position)
        if len(seen) == at:
            held.append((tensor, file, position, block.copy()))
        elif len(seen) == at + 1:
            (_, _, first, earlier) = held[0]
            assert earlier.size == block.size
            put(tensor, file, first, block)
            put(tensor, file, position, earlier)
        else:
            put(tensor, file, position, block)

    scene.options["threads"] = 1
    _puts(scene, wrong, block=block_bytes)


def truncate_casts(scene: Scene) -> None:
    """float32 to bfloat16 by leaving out the lower half, not by rounding."""
    scene.options["dtype"] = "bfloat16"
    scene.patch.setattr(cast.Caster, "_round", lambda self, bits: (bits >> 16).astype(np.uint16))


def cast_to(scene: Scene, dtype: str, header: str) -> None:
    """The bytes of one 16-bit dtype under the name of the other."""
    scene.options["dtype"] = header
    init = cast.Caster.__init__

    def wrong(self: cast.Caster, source: str, target: str) -> None:
        init(self, source, dtype if target == header else target)

    scene.patch.setattr(cast.Caster, "__init__", wrong)


def swap_bytes(scene: Scene, name: str) -> None:
    item = 2 if scene.case.dtype == "bfloat16" else 4

    def wrong(put: Callable[..., None], tensor: str, file: str, position: int, block: Any) -> None:
        put(
            tensor,
            file,
            position,
            np.ascontiguousarray(block.reshape(-1, item)[:, ::-1]).reshape(-1) if tensor == name else block,
        )

    _puts(scene, wrong)


def _lays_out(
    scene: Scene, change: Callable[[HFShard], HFShard], index: Callable[[bytes], bytes] = lambda i: i
) -> None:
    lay_out = move.lay_out

    def wrong(*args: Any) -> tuple[list[HFShard], bytes | None]:
        shards, made = lay_out(*args)
        return [change(shard) for shard in shards], None if made is None else index(made)

    scene.patch.setattr(move, "lay_out", wrong)


def header_says(scene: Scene, name: str, other: str) -> None:
    """The header gives two tensors each other's place; they are written where they belong."""

    def change(shard: HFShard) -> HFShard:
        said = json.loads(shard.header[8:])
        said[name]["data_offsets"], said[other]["data_offsets"] = (
            said[other]["data_offsets"],
            said[name]["data_offsets"],
        )
        text = json.dumps(said, separators=(",", ":")).encode()
        return replace(shard, header=shard.header[:8] + text.ljust(len(shard.header) - 8))

    _lays_out(scene, change)


def header_dtype(scene: Scene, name: str, to: str) -> None:
    def change(shard: HFShard) -> HFShard:
        said = json.loads(shard.header[8:])
        said[name]["dtype"] = to
        text = json.dumps(said, separators=(",", ":")).encode()
        return replace(shard, header=shard.header[:8] + text.ljust(len(shard.header) - 8))

    _lays_out(scene, change)


def index_says(scene: Scene, name: str, size: int) -> None:
    """The index names another file for one tensor."""
    scene.options["max_shard_size"] = size

    def index(made: bytes) -> bytes:
        said = json.loads(made)
        files = sorted(set(said["weight_map"].values()))
        said["weight_map"][name] = next(file for file in files if file != said["weight_map"][name])
        return (json.dumps(said, indent=2, sort_keys=True) + "\n").encode()

    _lays_out(scene, lambda shard: shard, index)


def older_theta(scene: Scene, key: str, value: Any) -> None:
    """A key that only readers before transformers 5 look at."""
    older = model.older_keys
    scene.patch.setattr(model, "older_keys", lambda *args: older(*args) | {key: value})


def config_says(scene: Scene, **changes: Any) -> None:
    """config.json is written with another value."""
    render = base_assets.render

    def wrong(found: Any, config: dict[str, Any], generation: Any) -> dict[str, bytes]:
        return render(found, config | changes, generation)

    scene.patch.setattr(base_assets, "render", wrong)
    scene.patch.setattr(requests.base_assets, "render", wrong)


def rows_apart(scene: Scene, name: str, by: str) -> None:
    """Chunks are put together wrongly as they are read for the export; what is read is right."""
    fill = tensor_reader.Band.fill

    def wrong(self: tensor_reader.Band, matrix: int, row: int, out: Any, *rest: Any) -> None:
        fill(self, matrix, row, out, *rest)
        if self.tensor.fqn.endswith(name):
            rows = out.reshape(-1, self.columns * self.item_bytes)
            rows[...] = np.roll(rows, self.item_bytes if by == "column" else 1, axis=1 if by == "column" else 0)

    scene.patch.setattr(tensor_reader.Band, "fill", wrong)


def flip_after(scene: Scene, name: str, at: int) -> None:
    """One bit of a HF shard changes on its way to the disk."""
    finish = writer.Writer.finish

    def wrong(self: writer.Writer) -> None:
        finish(self)
        _flip(self._staging / name, at)

    scene.patch.setattr(writer.Writer, "finish", wrong)


def flip_small(scene: Scene, name: str, at: int) -> None:
    """One bit of a small file changes on its way to the disk."""
    write = base_assets.write

    def wrong(staging: Path, rendered: dict[str, bytes]) -> None:
        write(staging, rendered)
        _flip(staging / name, at)

    scene.patch.setattr(base_assets, "write", wrong)


def flip_index(scene: Scene, at: int, size: int) -> None:
    scene.options["max_shard_size"] = size
    write = move.write_durably

    def wrong(path: Path, payload: bytes) -> None:
        write(path, payload)
        _flip(path, at)

    scene.patch.setattr(move, "write_durably", wrong)


def flip_manifest(scene: Scene, at: int) -> None:
    write = manifest.write

    def wrong(staging: Path, made: Any) -> None:
        write(staging, made)
        _flip(staging / "conversion.json", at)

    scene.patch.setattr(manifest, "write", wrong)


def _flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        at %= os.fstat(file.fileno()).st_size
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
