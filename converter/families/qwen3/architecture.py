"""Owns how tensor shapes, TorchTitan's config and a config.json each tell the architecture of a Qwen3."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PretrainedConfig, Qwen3MoeConfig

from converter.families.family import Shapes
from converter.families.qwen3.spec import SPEC

FIXED: dict[str, Any] = {
    "attention_bias": False, "hidden_act": "silu", "rope_type": "default", "partial_rotary_factor": 1.0,
    "sliding_window": None, "layer_types": ["full_attention"], "is_causal": True, "rope_parameters": None,
}  # fmt: skip
"""What TorchTitan's Qwen3 is whatever its dimensions, and HF's could be otherwise."""
NEVER = (
    "quantization_config",
    "compression_config",
    "quantization",
    "auto_map",
    "dual_chunk_attention_config",
    "is_encoder_decoder",
    "add_cross_attention",
    "pruned_heads",
    "use_bidirectional_attention",
)
"""Keys that tell some reader of another model (vLLM: `compression_config`, `dual_chunk_attention_config`; mlx:
`quantization`; `auto_map`: code beside the weights; transformers: the others). Empty or false, they say nothing."""
_FIXED_MOE = {"decoder_sparse_step": 1, "mlp_only_layers": []}
YARN = {
    "rope_factor": "factor",
    "rope_original_length": "original_max_position_embeddings",
    "rope_beta_fast": "beta_fast",
    "rope_beta_slow": "beta_slow",
    "rope_attention_factor": "attention_factor",
}
"""What YaRN adds to the architecture -> HF's key. torchtitan 0.3.0's Qwen3 scales frequencies as HF does, and no logits:
an attention factor of 1, where HF's default is 0.1 ln(factor) + 1."""


def is_moe(names: Iterable[str]) -> bool:
    """Whether tensors of these names (torchtitan 0.3.0's) are a MoE's."""
    return any(".moe." in name for name in names)


def architecture_of_shapes(shapes: Shapes) -> dict[str, Any]:
    """What the tensors' shapes alone tell of the architecture. Raises KeyError if a tensor that tells it is missing,
    ValueError, IndexError or ZeroDivisionError if it has another shape."""
    head_dim = shapes["layers.0.attention.q_norm.weight"][0]
    found = {
        "num_hidden_layers": len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
        "hidden_size": shapes[SPEC.embedding][1],
        "head_dim": head_dim,
        "num_attention_heads": shapes["layers.0.attention.qkv_linear.wq.weight"][0] // head_dim,
        "num_key_value_heads": shapes["layers.0.attention.qkv_linear.wk.weight"][0] // head_dim,
    }
    if is_moe(shapes):
        experts, width, _ = shapes["layers.0.moe.routed_experts.inner_experts.w1_EFD"]
        return found | {"num_experts": experts, "moe_intermediate_size": width}
    return found | {"intermediate_size": shapes["layers.0.feed_forward.w1.weight"][0]}


def is_yarn(rope: Any) -> bool:
    """Whether a `CosSinRoPE.Config` scales: below a factor of 1 TorchTitan ignores it (0.3.0)."""
    return bool(rope.scaling == "yarn" and rope.rope_factor > 1.0)


def _yarn_of_base(rope: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN as transformers 5.23 reads it, defaults included, but for `mscale`; none where it is no numbers."""
    try:
        factor = float(rope.get("factor") or 1.0)
        defaults = {
            "factor": factor,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "attention_factor": 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0,
        }
        found = {ours: float(rope.get(key) or defaults.get(key, 0.0)) for ours, key in YARN.items()}
    except (TypeError, ValueError):
        return {}
    return found | {"rope_truncate": bool(rope.get("truncate", True))}


def architecture_of(config: Any) -> dict[str, Any]:
    """The architecture that a `Qwen3Model.Config` builds."""
    layer = config.layers[0]
    attention = layer.attention
    found = FIXED | dict.fromkeys(NEVER) | {
        "num_hidden_layers": len(config.layers), "hidden_size": config.dim, "head_dim": attention.head_dim,
        "num_attention_heads": attention.n_heads, "num_key_value_heads": attention.n_kv_heads,
        "rope_theta": float(attention.rope.theta),
        "rope_type": "yarn" if is_yarn(attention.rope) else "default",
        "rms_norm_eps": config.norm.eps, "tie_word_embeddings": config.enable_weight_tying,
    }  # fmt: skip
    if is_yarn(rope := attention.rope):
        numbers = (rope.rope_factor, rope.original_seq_len, rope.beta_fast, rope.beta_slow, 1.0)
        found |= dict(zip(YARN, map(float, numbers), strict=True)) | {"rope_truncate": rope.truncate}
    if layer.moe is None:
        return found | {"intermediate_size": layer.feed_forward.w1.out_features}
    router = layer.moe.router
    return found | _FIXED_MOE | {
        "num_experts": layer.moe.num_experts, "num_experts_per_tok": router.top_k, "norm_topk_prob": router.route_norm,
        "moe_intermediate_size": layer.moe.routed_experts.inner_experts.hidden_dim,
    }  # fmt: skip


def architecture_of_base(config: PretrainedConfig) -> dict[str, Any]:
    """The architecture that base assets describe."""
    rope = config.rope_parameters or {}
    keys = [
        "num_hidden_layers", "hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
        "tie_word_embeddings", "attention_bias", "hidden_act",
    ]  # fmt: skip
    moe = isinstance(config, Qwen3MoeConfig)
    keys += (
        ["num_experts", "num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size", *_FIXED_MOE]
        if moe
        else ["intermediate_size"]
    )
    found = {key: getattr(config, key) for key in keys}
    if rope.get("rope_type") == "yarn":
        found |= _yarn_of_base(rope)
    slides = moe or "sliding_attention" in (config.layer_types or ())
    return found | {
        "rope_theta": float(rope.get("rope_theta", 10_000.0)),
        "rope_type": rope.get("rope_type", "default"),
        "partial_rotary_factor": float(rope.get("partial_rotary_factor", 1.0)),
        "sliding_window": config.sliding_window if slides else None,
        "layer_types": sorted({*map(str, getattr(config, "layer_types", None) or FIXED["layer_types"])}),
        "is_causal": getattr(config, "is_causal", True),
        "rope_parameters": _unused(rope),
        **{key: getattr(config, key, None) or None for key in NEVER},
    }


def _unused(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """What plain rope's parameters hold besides, such as a factor: transformers ignores it, another reader may not."""
    known = ("rope_theta", "rope_type", "type", "partial_rotary_factor")
    if rope.get("rope_type", "default") != "default":
        return None
    return {key: value for key, value in rope.items() if key not in known and value not in (None, 1)} or None
