"""What nothing can see: faults that pass every check, because neither a DCP nor a run says what would tell.

Each stands here so that it is known, and so that whoever finds a way to tell has to take it out of the list.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from converter.families import registry
from converter.families.qwen3.spec import SPEC
from tests.robustness.faults.fault import stored_name
from tests.robustness.faults.faults_stored import swap_shards
from tests.robustness.faults.faults_values import put_hf
from tests.robustness.faults.scene import Scene
from tests.robustness.faults.stored import entries, item
from tests.support.checkpoints.cases import BY_NAME, Case
from tests.unit.converter.editing import edit_json, edit_metadata

NOT_RUN = "not run"


@dataclass(frozen=True)
class Unseen:
    """One such fault."""

    what: str
    why: str
    case: Case
    damage: Callable[[Scene], None]
    says: tuple[str, str] | None = None
    """(check, verdict) by which the manifest says that this could not be seen."""

    def __str__(self) -> str:
        return self.what


def _older_shard(scene: Scene) -> None:
    older = scene.case.step(scene.checkpoints, 2) / "__1_0.distcp"
    shutil.copy2(older, scene.step / older.name)


def _exchange_entries(scene: Scene) -> None:
    one, other = (stored_name(scene, f"layers.{n}.feed_forward.w1.weight") for n in (0, 1))

    def change(metadata: Any) -> None:
        first, second = (metadata.storage_data[entries(metadata, fqn)[2]] for fqn in (one, other))
        first.offset, second.offset = second.offset, first.offset

    edit_metadata(scene.step, change)


def _exchange_names(scene: Scene) -> None:
    one, other = (stored_name(scene, f"layers.1.feed_forward.{w}.weight") for w in ("w1", "w3"))

    def change(metadata: Any) -> None:
        tensors = metadata.state_dict_metadata
        tensors[one], tensors[other] = tensors[other], tensors[one]
        for held in metadata.storage_data:
            if held.fqn in (one, other):
                object.__setattr__(held, "fqn", other if held.fqn == one else one)

    edit_metadata(scene.step, change)


def _flip_unchecked(scene: Scene) -> None:
    held = item(scene.step, "tok_embeddings.weight")
    held.flip(held.start("data/0") + 400)


def _rename_wrongly(scene: Scene) -> None:
    table = tuple(
        (pattern.replace("w([13])", "w1"), new.replace(r"w\2", "w3")) if "13" in pattern else (pattern, new)
        for pattern, new in SPEC.renames
    )
    other = (r"layers\.(\d+)\.moe\.experts\.w3(?:_EFD)?", r"layers.\1.moe.routed_experts.inner_experts.w1_EFD")
    scene.patch.setattr(registry, "FAMILIES", (replace(SPEC, renames=(*table, other)),))


def _wrong_theta(scene: Scene) -> None:
    folder = scene.base_assets()
    edit_json(folder / "config.json", lambda said: said.update(rope_theta=500_000))


UNSEEN = (
    Unseen(
        "Two DCP shards of ranks with equal amounts of data are swapped",
        "An item does not name its tensor, and a shard does not name its rank. Both shards are complete",
        BY_NAME["dense_tied-0.2-fsdp-float32"],
        lambda scene: swap_shards(scene, "__1_0.distcp", "__2_0.distcp"),
    ),
    Unseen(
        "A DCP shard is from an earlier step of the same run",
        "The same reason. Shards may be an hour older than the storage metadata. When the right one is there, the step "
        "is converted again",
        BY_NAME["two_steps"],
        _older_shard,
    ),
    Unseen(
        "Two entries of storage metadata with the same shape and dtype point at each other's items",
        "Every chunk is still one item, and every item has its own bytes",
        BY_NAME["dense_untied-0.3-fsdp-bfloat16"],
        _exchange_entries,
    ),
    Unseen(
        "Two tensors of the same shape have exchanged names throughout the storage metadata",
        "The same reason",
        BY_NAME["dense_tied-0.2-2x2-bfloat16"],
        _exchange_names,
    ),
    Unseen(
        "A bit is flipped in a payload without a checksum",
        "The training run switched checksums off",
        BY_NAME["crc_off"],
        _flip_unchecked,
        ("checksums", NOT_RUN),
    ),
    Unseen(
        "A bit is flipped in a step in HF form",
        "safetensors has no checksums",
        BY_NAME["last_in_hf"],
        lambda scene: put_hf(scene, "model.layers.0.self_attn.q_proj.weight", 3, 0.25),
        ("checksums", NOT_RUN),
    ),
    Unseen(
        "Our own table of renames confuses two tensors",
        "Both sides of the forward check use this table. Tests compare every naming with TorchTitan's own",
        BY_NAME["moe-0.2-fsdp-float32"],
        _rename_wrongly,
    ),
    Unseen(
        "The base assets have another rope theta, and the run recorded none",
        "There is no other value to compare it with",
        BY_NAME["dense_tied-0.2-fsdp-float32"],
        _wrong_theta,
        ("independence", NOT_RUN),
    ),
)
