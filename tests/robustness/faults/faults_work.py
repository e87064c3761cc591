"""Faults in our own work: the plan, the bytes written, the configs."""

from __future__ import annotations

from typing import Any

from converter.common import errors
from tests.robustness.faults.fault import Fault, faults
from tests.robustness.faults.work_bytes import (
    block_lost,
    block_over_another,
    block_twice,
    blocks_exchanged,
    cast_to,
    config_says,
    flip_after,
    flip_index,
    flip_manifest,
    flip_small,
    header_dtype,
    header_says,
    index_says,
    older_theta,
    rows_apart,
    swap_bytes,
    transpose,
    truncate_casts,
)
from tests.robustness.faults.work_plans import (
    add,
    leave_out,
    shift_experts,
    shift_in_adapter,
    swap,
    swap_in_adapter,
    swap_layers,
    swap_provisionally,
)

L = "model.layers.{}.{}.weight".format
TIED, UNTIED, MOE, OLD = (
    "dense_tied-0.3-2x2-float32",
    "dense_untied-0.2-fsdp-bfloat16",
    "moe-between-2x2-float32",
    "moe-0.2-fsdp-bfloat16",
)
SQUARE, SQUARE_TIED, MANY = "square", "square_tied", "many_experts"
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
E = "model.layers.{}.mlp.experts.{}.{}_proj.weight".format
DIFFER, MISMATCH, LOST = errors.ForwardMismatch, errors.PlanMismatch, errors.ExportMismatch


def _pairs(*places: tuple[str, str, str]) -> list[tuple[str, dict[str, Any]]]:
    return [(case, {"name": one, "other": other}) for case, one, other in places]


KV = _pairs(
    (TIED, L(0, "self_attn.k_proj"), L(0, "self_attn.v_proj")),
    (UNTIED, L(2, "self_attn.k_proj"), L(2, "self_attn.v_proj")),
    (MOE, L(1, "self_attn.k_proj"), L(1, "self_attn.v_proj")),
)
QK = _pairs(
    (SQUARE, L(0, "self_attn.q_proj"), L(0, "self_attn.k_proj")),
    (SQUARE, L(2, "self_attn.q_proj"), L(2, "self_attn.k_proj")),
    (SQUARE_TIED, L(1, "self_attn.q_proj"), L(1, "self_attn.k_proj")),
)
NORMS = _pairs(
    (TIED, L(0, "self_attn.q_norm"), L(0, "self_attn.k_norm")),
    (UNTIED, L(1, "self_attn.q_norm"), L(1, "self_attn.k_norm")),
    (OLD, L(2, "self_attn.q_norm"), L(2, "self_attn.k_norm")),
)
LAYER_NORMS = _pairs(
    (TIED, L(1, "input_layernorm"), L(1, "post_attention_layernorm")),
    (UNTIED, NORM, L(0, "input_layernorm")),
    (MOE, L(2, "input_layernorm"), L(2, "post_attention_layernorm")),
)
GATE_UP = _pairs(
    (TIED, L(0, "mlp.gate_proj"), L(0, "mlp.up_proj")),
    (SQUARE, L(1, "mlp.gate_proj"), L(1, "mlp.up_proj")),
    (MOE, E(0, 3, "gate"), E(0, 3, "up")),
    (OLD, E(2, 5, "gate"), E(2, 5, "up")),
)
LAYERS_APART = _pairs(
    (TIED, L(0, "mlp.down_proj"), L(2, "mlp.down_proj")),
    (UNTIED, L(0, "self_attn.o_proj"), L(1, "self_attn.o_proj")),
    (MOE, L(0, "mlp.gate"), L(1, "mlp.gate")),
)
EXPERTS = _pairs(
    (MOE, E(1, 0, "down"), E(1, 5, "down")),
    (MANY, E(0, 17, "gate"), E(0, 18, "gate")),
    (MANY, E(1, 62, "down"), E(1, 63, "down")),
    (MANY, E(1, 1, "up"), E(1, 40, "up")),
)
ENDS = _pairs((UNTIED, EMBEDDING, HEAD), (SQUARE, EMBEDDING, HEAD), (MANY, EMBEDDING, HEAD))
SQUARES = [
    (SQUARE, {"name": L(0, "self_attn.q_proj")}),
    (SQUARE, {"name": L(1, "mlp.down_proj")}),
    (SQUARE_TIED, {"name": L(1, "self_attn.o_proj")}),
    (MANY, {"name": E(1, 9, "gate")}),
]
BLOCKS = [(TIED, {"name": EMBEDDING}), (UNTIED, {"name": HEAD}), (MOE, {"name": E(1, 2, "gate")})]

FAULTS: list[Fault] = [
    *faults("k and v swapped", "forward", DIFFER, swap, KV),
    *faults("q and k swapped", "forward", DIFFER, swap, QK),
    *faults("q_norm and k_norm swapped", "forward", DIFFER, swap, NORMS),
    *faults("two layer norms swapped", "forward", DIFFER, swap, LAYER_NORMS),
    *faults("gate and up swapped", "forward", DIFFER, swap, GATE_UP),
    *faults("two tensors of equal shape swapped between layers", "forward", DIFFER, swap, LAYERS_APART),
    *faults("two experts swapped, most of them reached by no token", "forward", DIFFER, swap, EXPERTS),
    *faults("embedding and head swapped", "forward", DIFFER, swap, ENDS),
    *faults("the adapter itself swaps two tensors", "forward", DIFFER, swap_in_adapter, [KV[0], QK[0], NORMS[1], GATE_UP[2], EXPERTS[2]]),
    *faults("two layers swapped", "forward", DIFFER, swap_layers, [(TIED, {"layer": 0, "other": 1}), (SQUARE, {"layer": 1, "other": 2}), (MOE, {"layer": 0, "other": 2})]),
    *faults(
        "each expert's slice shifted by one expert", "forward", DIFFER, shift_experts,
        [(MOE, {"layer": 0, "part": "gate", "by": "expert"}), (OLD, {"layer": 2, "part": "down", "by": "expert"}), (MANY, {"layer": 1, "part": "up", "by": "expert"})],
    ),
    *faults(
        "each expert's slice shifted by one row", "forward", DIFFER, shift_experts,
        [(MOE, {"layer": 1, "part": "up", "by": "row"}), (OLD, {"layer": 0, "part": "gate", "by": "row"}), (MANY, {"layer": 0, "part": "down", "by": "row"})],
    ),
    *faults(
        "the adapter shifts an expert's slice by one row", "plan", MISMATCH, shift_in_adapter,
        [(MOE, {"layer": 1, "part": "up"}), (OLD, {"layer": 0, "part": "gate"}), (MANY, {"layer": 0, "part": "down"})],
    ),
    *faults("the adapter leaves a tensor out", "plan", MISMATCH, leave_out, [(TIED, {"name": L(1, "mlp.up_proj")}), (SQUARE, {"name": NORM}), (MOE, {"name": E(2, 5, "down")})]),
    *faults(
        "the adapter gives a tensor too many", "plan", MISMATCH, add,
        [(TIED, {"name": HEAD, "of": EMBEDDING}), (UNTIED, {"name": L(3, "mlp.up_proj"), "of": L(2, "mlp.up_proj")}), (MOE, {"name": E(2, 6, "down"), "of": E(2, 5, "down")})],
    ),
    *faults("the provisional plan is wrong: corrected by the real one", "plan", None, swap_provisionally, [KV[0], QK[2], NORMS[1], EXPERTS[0]]),
    *faults("a square weight transposed", "forward", DIFFER, transpose, SQUARES),
    *faults("casts truncated, not rounded", "forward", DIFFER, truncate_casts, [(TIED, {}), (SQUARE_TIED, {}), (MOE, {})]),
    *faults(
        "fp16 bytes called bf16, and the reverse", "forward", DIFFER, cast_to,
        [(TIED, {"dtype": "float16", "header": "bfloat16"}), ("dense_untied-0.3-fsdp-float32", {"dtype": "bfloat16", "header": "float16"}), (MOE, {"dtype": "float16", "header": "bfloat16"})],
    ),
    *faults(
        "a header calls bf16 fp16", "forward", DIFFER, header_dtype,
        [(UNTIED, {"name": L(1, "self_attn.q_proj"), "to": "F16"}), (SQUARE, {"name": EMBEDDING, "to": "F16"}), (OLD, {"name": E(0, 1, "up"), "to": "F16"})],
    ),
    *faults("bytes of each element reversed", "forward", DIFFER, swap_bytes, [(TIED, {"name": NORM}), (UNTIED, {"name": L(2, "mlp.up_proj")}), (MANY, {"name": E(0, 33, "gate")})]),
    *faults("a header gives two tensors each other's place", "forward", DIFFER, header_says, [KV[1], QK[1], GATE_UP[3], EXPERTS[1]]),
    *faults(
        "an index names another file", "forward", DIFFER, index_says,
        [(TIED, {"name": L(0, "mlp.up_proj"), "size": 200_000}), (UNTIED, {"name": HEAD, "size": 100_000}), (MOE, {"name": E(1, 3, "up"), "size": 300_000})],
    ),
    *faults("rows put together one off", "forward", DIFFER, rows_apart, [(TIED, {"name": "wo.weight", "by": "row"}), ("dense_untied-0.2-2x2-bfloat16", {"name": "layers.1.feed_forward.w2.weight", "by": "row"}), (MOE, {"name": "layers.0.moe.experts.w2_EDF", "by": "row"})]),
    *faults("columns put together one off", "forward", DIFFER, rows_apart, [(TIED, {"name": "layers.2.attention.wo.weight", "by": "column"}), ("dense_untied-0.2-2x2-bfloat16", {"name": "tok_embeddings.weight", "by": "column"}), (MOE, {"name": "layers.0.moe.experts.w2_EDF", "by": "column"})]),
    *faults("a block written twice", "read_back", LOST, block_twice, BLOCKS),
    *faults("a block not written", "read_back", LOST, block_lost, BLOCKS),
    *faults("a block written over another", "read_back", LOST, block_over_another, BLOCKS),
    *faults(
        "two blocks written at each other's place", "forward", DIFFER, blocks_exchanged,
        [(TIED, {"name": EMBEDDING, "at": 3}), (SQUARE, {"name": EMBEDDING, "at": 3, "block_bytes": 512}), (MANY, {"name": EMBEDDING, "at": 3, "block_bytes": 512}), (SQUARE, {"name": L(1, "mlp.down_proj"), "at": 1}), (MOE, {"name": E(0, 4, "down"), "at": 2})],
    ),
    *faults(
        "one bit of a HF shard changed after writing", "read_back", LOST, flip_after,
        [(TIED, {"name": "model.safetensors", "at": 3}), (UNTIED, {"name": "model.safetensors", "at": 2_000}), (MOE, {"name": "model.safetensors", "at": -1}), (SQUARE, {"name": "model.safetensors", "at": 100_000})],
    ),
    *faults(
        "one bit of a small file changed after writing", "read_back", LOST, flip_small,
        [(TIED, {"name": "tokenizer.json", "at": 3000}), (UNTIED, {"name": "generation_config.json", "at": -20}), (MOE, {"name": "config.json", "at": 40}), (SQUARE, {"name": "tokenizer_config.json", "at": 200})],
    ),
    *faults("one bit of the index changed after writing", "read_back", LOST, flip_index, [(TIED, {"at": -10, "size": 200_000}), (UNTIED, {"at": 200, "size": 100_000}), (MOE, {"at": 1000, "size": 300_000})]),
    *faults("one bit of the manifest changed after writing", "read_back", LOST, flip_manifest, [(TIED, {"at": 300}), (UNTIED, {"at": -3}), (MOE, {"at": 2000})]),
    *faults(
        "a key for older readers says otherwise", "config", LOST, older_theta,
        [(TIED, {"key": "rope_theta", "value": 10_000.0}), (MOE, {"key": "num_experts", "value": 128}), (UNTIED, {"key": "torch_dtype", "value": "float16"}), (OLD, {"key": "rope_scaling", "value": {"rope_type": "linear", "factor": 2.0}})],
    ),
    *faults(
        "config.json says otherwise than decided", "config", LOST, config_says,
        [(TIED, {"rms_norm_eps": 1e-5}), (UNTIED, {"rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"}}), (MOE, {"norm_topk_prob": False}), (SQUARE, {"dtype": "float32"}), (OLD, {"vocab_size": 637}), (UNTIED, {"max_position_embeddings": 40_960})],
    ),
]  # fmt: skip
