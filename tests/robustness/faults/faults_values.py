"""Faults in the values of a checkpoint, stored with their right checksums; and faults in steps that are in HF form."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from converter.common import errors
from tests.robustness.faults.checks import READING
from tests.robustness.faults.fault import Fault, faults, stored_name
from tests.robustness.faults.faults_stored import W1, W2, remove, truncate
from tests.robustness.faults.scene import Scene
from tests.robustness.faults.stored import item, write
from tests.unit.converter.editing import edit_metadata

_ELEMENT = {"float32": "<f", "bfloat16": "<H"}


def _set(scene: Scene, fqn: str, chunk: int, index: int, change: Callable[[bytes], bytes]) -> None:
    """Changes one element of a chunk, in place and with its checksum."""
    held = item(scene.step, stored_name(scene, fqn), chunk)
    content = bytearray(held.content())
    bias = fqn.endswith("expert_bias_E")
    size = 4 if scene.case.dtype == "float32" or bias else 2
    at = index * size % len(content)
    content[at : at + size] = change(bytes(content[at : at + size]))
    held.set_content(bytes(content))


def put(scene: Scene, fqn: str, chunk: int, index: int, value: float) -> None:
    def change(old: bytes) -> bytes:
        exact = struct.pack("<f", value)
        return exact if len(old) == 4 else exact[2:]

    _set(scene, fqn, chunk, index, change)


def flip_element(scene: Scene, fqn: str, chunk: int, index: int) -> None:
    _set(scene, fqn, chunk, index, lambda old: bytes([old[0] ^ 1]) + old[1:])


def narrow(scene: Scene, fqn: str, chunk: int, index: int, value: float, dtype: str) -> None:
    scene.options["dtype"] = dtype
    put(scene, fqn, chunk, index, value)


def _file(scene: Scene, name: str) -> tuple[Any, Any, int]:
    path = next(
        path for path in sorted(scene.step.glob("model-*.safetensors")) if name.encode() in path.read_bytes()[:60_000]
    )
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    return path, json.loads(blob[8 : 8 + length]), length


def entry(scene: Scene, name: str, key: str, value: Any) -> None:
    """One field of an entry of a safetensors header; what its entry of the same name in `other` says, if that is text."""
    path, header, length = _file(scene, name)
    header[name][key] = header[value][key] if key == "data_offsets" else value
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= length
    write(path, 8, text.ljust(length))


def rename_hf(scene: Scene, name: str, to: str) -> None:
    path, header, length = _file(scene, name)
    renamed = {to if key == name else key: said for key, said in header.items()}
    text = json.dumps(renamed, separators=(",", ":")).encode()
    assert len(text) <= length
    write(path, 8, text.ljust(length))


def put_hf(scene: Scene, name: str, index: int, value: float) -> None:
    path, header, length = _file(scene, name)
    start = header[name]["data_offsets"][0]
    write(path, 8 + length + start + 4 * index, struct.pack("<f", value))


def saved_again(scene: Scene, event: str) -> None:
    """The step gets another save id while it is read."""

    def again(said: str) -> None:
        if said == event:
            edit_metadata(scene.step, lambda metadata: setattr(metadata.storage_meta, "save_id", "another"))

    scene.on_event = again


def touched(scene: Scene, name: str) -> None:
    def touch(said: str) -> None:
        if said == "conversion_started":
            (scene.step / name).touch()

    scene.on_event = touch


NAN, INF = float("nan"), float("inf")
TIED, UNTIED, MOE = "dense_tied-0.2-fsdp-float32", "dense_untied-0.3-2x2-bfloat16", "moe-between-2x2-float32"
EMBEDDING, HEAD, UP1 = "tok_embeddings.weight", "lm_head.weight", "layers.1.feed_forward.w3.weight"
HF, ONE, HF_MOE = "last_in_hf", "last_in_hf_one_file", "last_in_hf_moe"
Q, GATE, EXPERT = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.gate_proj.weight",
    "model.layers.2.mlp.experts.3.down_proj.weight",
)

FAULTS: list[Fault] = [
    *faults(
        "NaN in one element of one tensor", "finite", errors.NonFiniteTensor, put,
        [
            (TIED, {"fqn": UP1, "chunk": 2, "index": 5, "value": NAN}),
            (UNTIED, {"fqn": EMBEDDING, "chunk": 3, "index": -1, "value": NAN}),
            (UNTIED, {"fqn": "norm.weight", "chunk": 0, "index": 0, "value": NAN}),
            (MOE, {"fqn": f"layers.2.{W2}", "chunk": 3, "index": 77, "value": NAN}),
            (MOE, {"fqn": "layers.0.moe.expert_bias_E", "chunk": 0, "index": 4, "value": NAN}),
        ],
    ),
    *faults(
        "infinity in one element of one tensor", "finite", errors.NonFiniteTensor, put,
        [(TIED, {"fqn": "layers.0.attention.qkv_linear.wv.weight", "chunk": 1, "index": 0, "value": -INF}), (UNTIED, {"fqn": HEAD, "chunk": 1, "index": 99, "value": INF}), (MOE, {"fqn": f"layers.0.{W1}", "chunk": 0, "index": -1, "value": -INF})],
    ),
    *faults(
        "a value that the export's dtype cannot hold", "cast_range", errors.CastOverflow, narrow,
        [
            (TIED, {"fqn": UP1, "chunk": 2, "index": 5, "value": 3.4e38, "dtype": "bfloat16"}),
            (UNTIED, {"fqn": EMBEDDING, "chunk": 3, "index": -1, "value": 66_000.0, "dtype": "float16"}),
            (MOE, {"fqn": f"layers.2.{W2}", "chunk": 3, "index": 77, "value": -1e6, "dtype": "float16"}),
        ],
    ),
    *faults(
        "a tied head that is not the embedding", "tied_weights", errors.TiedWeightsDiffer, put,
        [
            (TIED, {"fqn": HEAD, "chunk": 0, "index": 0, "value": 0.125}),
            ("dense_tied-0.3-2x2-bfloat16", {"fqn": HEAD, "chunk": 2, "index": -1, "value": 0.125}),
            ("dense_tied-between-2x2-float32", {"fqn": EMBEDDING, "chunk": 3, "index": 4000, "value": -1.0}),
        ],
    ),
    *faults(
        "a tied head one bit from the embedding", "tied_weights", errors.TiedWeightsDiffer, flip_element,
        [(TIED, {"fqn": HEAD, "chunk": 3, "index": -1}), ("dense_tied-0.3-2x2-bfloat16", {"fqn": EMBEDDING, "chunk": 0, "index": 1}), ("one_rank", {"fqn": HEAD, "chunk": 0, "index": 22_222})],
    ),
    *faults(
        "a balancing bias that is not zero", "balancing_bias", errors.RoutingDrift, put,
        [
            (MOE, {"fqn": "layers.0.moe.expert_bias_E", "chunk": 0, "index": 0, "value": 0.001}),
            ("moe-0.2-fsdp-bfloat16", {"fqn": "layers.1.moe.expert_bias_E", "chunk": 0, "index": 5, "value": -1e-7}),
            ("moe-0.3-fsdp-float32", {"fqn": "layers.2.moe.expert_bias_E", "chunk": 0, "index": 3, "value": 0.5}),
        ],
    ),
    *faults(
        "a step saved again while it is read", "source_unchanged", errors.StepVanished, saved_again,
        [(TIED, {"event": "conversion_started"}), (UNTIED, {"event": "conversion_started"}), (MOE, {"event": "conversion_started"})],
    ),
    *faults(
        "a file of the step touched while it is read", "source_unchanged", errors.StepVanished, touched,
        [(TIED, {"name": "__1_0.distcp"}), (UNTIED, {"name": ".metadata"}), (HF, {"name": "model-00002-of-00002.safetensors"})],
    ),
    *faults(
        "in HF form: an entry of another shape", "headers", errors.StepDamaged, entry,
        [(HF, {"name": Q, "key": "shape", "value": [128, 71]}), (ONE, {"name": GATE, "key": "shape", "value": [93, 72]}), (HF_MOE, {"name": EXPERT, "key": "shape", "value": [72, 57]})],
    ),
    *faults(
        "in HF form: an entry of another dtype", "headers", errors.StepDamaged, entry,
        [(HF, {"name": Q, "key": "dtype", "value": "F64"}), (ONE, {"name": GATE, "key": "dtype", "value": "F16"}), (HF_MOE, {"name": EXPERT, "key": "dtype", "value": "U8"})],
    ),
    *faults(
        "in HF form: an entry points at another's bytes", "headers", errors.StepDamaged, entry,
        [
            (HF, {"name": "model.layers.0.self_attn.k_proj.weight", "key": "data_offsets", "value": "model.layers.0.self_attn.v_proj.weight"}),
            (ONE, {"name": GATE, "key": "data_offsets", "value": "model.layers.1.mlp.up_proj.weight"}),
            (HF_MOE, {"name": EXPERT, "key": "data_offsets", "value": "model.layers.2.mlp.experts.4.down_proj.weight"}),
        ],
    ),
    *faults(
        "in HF form: a tensor's name is another's",
        "plan",
        errors.PlanMismatch,
        rename_hf,
        [
            (HF, {"name": "model.layers.2.self_attn.q_proj.weight", "to": "model.layers.7.self_attn.q_proj.weight"}),
            (ONE, {"name": GATE, "to": "model.layers.8.mlp.gate_proj.weight"}),
            (HF_MOE, {"name": EXPERT, "to": "model.layers.2.mlp.experts.9.down_proj.weight"}),
        ],
    ),
    *faults(
        "in HF form: NaN in one element", "finite", errors.NonFiniteTensor, put_hf,
        [(HF, {"name": Q, "index": 3, "value": NAN}), (ONE, {"name": GATE, "index": 0, "value": NAN}), (HF_MOE, {"name": EXPERT, "index": 71, "value": NAN})],
    ),
    *faults(
        "in HF form: a truncated file", READING, errors.StepIncomplete, truncate,
        [(HF, {"name": "model-00001-of-00002.safetensors", "by": 1}), (ONE, {"name": "model-00001-of-00001.safetensors", "by": 9000}), (HF_MOE, {"name": "model-00001-of-00001.safetensors", "by": 10_000_000})],
    ),
    *faults(
        "in HF form: a file missing", READING, errors.StepIncomplete, remove,
        [(HF, {"name": "model-00002-of-00002.safetensors"}), (ONE, {"name": "model.safetensors.index.json"}), (HF_MOE, {"name": "model-00001-of-00001.safetensors"})],
    ),
]  # fmt: skip
