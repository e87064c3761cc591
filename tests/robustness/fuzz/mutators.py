"""Owns the list of mutators, and the cases that each starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from converter.common.names_on_disk import INDEX
from tests.robustness.faults.scene import Scene
from tests.robustness.fuzz import configs, metadata, shards
from tests.robustness.fuzz.pickles import Draw
from tests.support.checkpoints.cases import BY_NAME, Case

DCP = [
    BY_NAME[name]
    for name in (
        "dense_tied-0.2-2x2-bfloat16", "dense_untied-0.3-fsdp-float32", "moe-between-2x2-float32", "moe-0.3-fsdp-bfloat16",
        "dense_tied-0.2-fsdp-float32", "one_rank",
    )
]  # fmt: skip
"""Every kind, naming, mesh and dtype; a run config of each generation."""
HF = [BY_NAME["last_in_hf"], BY_NAME["last_in_hf_moe"]]


@dataclass(frozen=True, eq=False)
class Mutator:
    """One way to change a checkpoint."""

    name: str
    group: str
    change: Callable[[Draw, Scene], str]
    """Changes the scene's step or run config; says what it did."""
    cases: list[Case]
    weight: int = 1


def _step(name: str, group: str, change: Callable[[Draw, Path], str], weight: int = 1) -> Mutator:
    return Mutator(name, group, lambda draw, scene: change(draw, scene.step), DCP, weight)


def _weights_file(draw: Draw, scene: Scene) -> Path:
    return Path(draw(st.sampled_from(sorted(scene.step.glob("*.safetensors")))))


_METADATA, _SHARDS, _FORM = "`.metadata`", "DCP shards", "steps in HF form"
MUTATORS = [
    _step("opcodes of the pickle", _METADATA, metadata.opcodes, 5),
    _step("fields of DCP's objects", _METADATA, metadata.objects, 7),
    _step("bytes of the pickle", _METADATA, metadata.bytes_, 2),
    _step("fields of zip records", _SHARDS, shards.zip_fields, 4),
    _step("end record of a zip", _SHARDS, shards.tail),
    _step("opcodes of data.pkl", _SHARDS, shards.description, 3),
    _step("zip written anew", _SHARDS, shards.rezipped),
    _step("payload with its checksum", _SHARDS, shards.payload_with_checksum),
    _step("payload", _SHARDS, shards.payload_alone),
    _step("a bit anywhere", _SHARDS, shards.anywhere),
    _step("length of a file", _SHARDS, shards.length),
    _step("two files", _SHARDS, shards.swapped_files),
    _step("two items", _SHARDS, shards.swapped_items, 2),
    _step("what is no file", "files", shards.odd_file),
    Mutator("JSON", "run config", lambda draw, scene: configs.run_config(draw, scene.run_config), DCP, 6),
    Mutator("index", _FORM, lambda draw, scene: configs.index(draw, scene.step / INDEX), HF),
    Mutator("header of a file", _FORM, lambda draw, scene: configs.header(draw, _weights_file(draw, scene)), HF, 3),
]
WEIGHTED = [mutator for mutator in MUTATORS for _ in range(mutator.weight)]
