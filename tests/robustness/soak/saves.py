"""Owns the saves of a soak: real steps of the test cases in which every element of the model carries the save's number.

A save is a real step whose stored float32 elements are XORed with the number (below 2**20: only mantissa bits change), each
item's checksum recomputed, and its save id replaced. The export of a save is then known without any code of ours: what
TorchTitan's own adapter gives for the real step (`tests.support.checkpoints.reference`), XORed with the same number. One element of
another save, anywhere, is another file.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
import uuid
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.robustness.faults import stored
from tests.support.checkpoints.cases import Case

METADATA = ".metadata"
WEIGHTS = "model.safetensors"
DAMAGES = ("flip", "nan", "truncate", "hostile")
"""What may be wrong with a save from its beginning: a bit of a payload, a NaN, a DCP shard cut short, a pickle that would
run a command."""


class Mark(NamedTuple):
    """Where the elements of one item of the model lie in its DCP shard, and where their checksum stands (twice)."""

    file: str
    at: int
    length: int
    checksums: tuple[int, int]


@dataclass(frozen=True)
class Save:
    """One save: what is written into a step directory, and what its export must be."""

    save_id: str
    number: int
    files: dict[str, bytes]
    """DCP shards and `.metadata`, by name."""
    weights: str
    """sha256 of the `model.safetensors` that it gives."""
    damage: str = ""


@dataclass(frozen=True)
class Template:
    """A real step of a test case, as what saves are made of."""

    files: dict[str, bytes]
    save_id: str
    marks: tuple[Mark, ...]
    export: bytes = field(repr=False)
    """`model.safetensors` of the real step."""

    @classmethod
    def of(cls, case: Case, checkpoints: Path) -> Template:
        """Of the last step of a float32 case; `checkpoints` is the folder that its paths take."""
        step = case.step(checkpoints)
        metadata = stored.load_metadata(step)
        names = [name for name in metadata.state_dict_metadata if _is_trained(name, metadata)]
        infos = [metadata.storage_data[index] for name in names for index in stored.entries(metadata, name)]
        marks = [_mark(stored.Item(step / info.relative_path, info.offset, info.length)) for info in infos]
        files = {path.name: path.read_bytes() for path in step.iterdir()}
        return cls(files, metadata.storage_meta.save_id, tuple(marks), _export(case, step))

    def save(self, number: int, chance: random.Random, damage: str = "", marker: Path | None = None) -> Save:
        """The save with this number. `chance` gives its id and where it is damaged; `marker` is the file that a hostile
        `.metadata` would make."""
        save_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        files = {name: bytearray(content) for name, content in self.files.items()}
        files[METADATA] = bytearray(self.files[METADATA].replace(self.save_id.encode(), save_id.encode()))
        for mark in self.marks:
            _put(files[mark.file], mark, _numbered(self.files[mark.file][mark.at : mark.at + mark.length], number))
        if damage:
            self._damage(files, damage, chance, marker)
        weights = hashlib.sha256(_export_of(self.export, number)).hexdigest()
        return Save(save_id, number, {name: bytes(content) for name, content in files.items()}, weights, damage)

    def _damage(self, files: dict[str, bytearray], damage: str, chance: random.Random, marker: Path | None) -> None:
        mark = chance.choice(self.marks)
        shard = files[mark.file]
        match damage:
            case "flip":
                shard[mark.at + chance.randrange(mark.length)] ^= 1 << chance.randrange(8)
            case "nan":
                elements = bytearray(shard[mark.at : mark.at + mark.length])
                elements[:4] = struct.pack("<f", float("nan"))
                _put(shard, mark, bytes(elements))
            case "truncate":
                del shard[len(shard) - chance.randrange(1, len(shard) // 2) :]
            case "hostile":
                files[METADATA][:] = b"cposix\nsystem\n(Vtouch " + os.fsencode(marker or "") + b"\ntR."
            case _:
                raise ValueError(damage)

    def rot(self, chance: random.Random) -> tuple[str, int, int]:
        """(file, byte, bit) of an element that a disk may lose at any time."""
        mark = chance.choice(self.marks)
        return mark.file, mark.at + chance.randrange(mark.length), chance.randrange(8)


def _is_trained(name: str, metadata: object) -> bool:
    """Whether an item is of the model's weights: not the balancing bias, which must stay zero."""
    held = metadata.state_dict_metadata[name]  # type: ignore[attr-defined]
    others = ("optimizer.", "lr_scheduler.", "dataloader.", "train_state.")
    return hasattr(held, "properties") and not name.startswith(others) and "expert_bias" not in name


def _mark(item: stored.Item) -> Mark:
    at, entry, length = item.start("data/0"), item.entry("data/0"), len(item.content())
    assert item.blob[at + length :][:4] == b"PK\x07\x08"
    return Mark(item.path.name, item.offset + at, length, (item.offset + at + length + 4, item.offset + entry + 16))


def _put(shard: bytearray, mark: Mark, elements: bytes) -> None:
    shard[mark.at : mark.at + mark.length] = elements
    for at in mark.checksums:
        shard[at : at + 4] = struct.pack("<I", zlib.crc32(elements))


def _numbered(elements: bytes, number: int) -> bytes:
    assert 0 <= number < 1 << 20
    return (np.frombuffer(elements, "<u4") ^ np.uint32(number)).tobytes()


def _export_of(export: bytes, number: int) -> bytes:
    begins = 8 + struct.unpack_from("<Q", export)[0]
    return export[:begins] + _numbered(export[begins:], number)


def _export(case: Case, step: Path) -> bytes:
    from safetensors.torch import save

    from tests.support.checkpoints import reference

    weights = reference.hf_weights(case, reference.weights(case, step))
    if case.dims.tied:
        weights.pop("lm_head.weight", None)
    return bytes(save({name: tensor.contiguous() for name, tensor in weights.items()}, {"format": "pt"}))
