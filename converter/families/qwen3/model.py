"""Owns all that is Qwen3's: its TorchTitan config and adapter, its HF config class, and how the two describe one model.

Needs torch, torchtitan 0.3.0 and transformers. Another family is another module with these functions.
The architecture is a dict in HF's words, the common ground of run record, tensor shapes and base assets.
"""

import copy
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torchtitan.models.qwen3 as titan
from torchtitan.models.common.attention import QKVLinear, ScaledDotProductAttention
from torchtitan.models.common.linear import Linear
from torchtitan.models.common.token_dispatcher import LocalTokenDispatcher
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from converter.common import errors
from converter.families.meta_device import on_meta

EMBEDDING, HEAD = "tok_embeddings.weight", "lm_head.weight"
BIAS = ".moe.expert_bias_E"
"""Ends the name of the balancing bias, for which HF's Qwen3MoE has no place."""
FIXED: dict[str, Any] = {
    "attention_bias": False, "hidden_act": "silu", "rope_type": "default", "partial_rotary_factor": 1.0,
    "sliding_window": None, "layer_types": ["full_attention"], "is_causal": True, "rope_parameters": None,
}  # fmt: skip
"""What TorchTitan's Qwen3 is whatever its dimensions, and HF's could be otherwise."""
_NEVER = (
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
"""Keys that tell some reader of another model (vLLM: `compression_config`, `dual_chunk_attention_config`; mlx: `quantization`;
`auto_map`: code beside the weights; transformers: the others). Empty or false, they say nothing."""
_FIXED_MOE = {"decoder_sparse_step": 1, "mlp_only_layers": []}
_REPLACED = (
    "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "num_local_experts", "sliding_window", "use_sliding_window",
    "is_causal", *_NEVER,
)  # fmt: skip
"""Keys of a base config that say what others say too, or what a run of TorchTitan's never is."""
_YARN = {
    "rope_factor": "factor",
    "rope_original_length": "original_max_position_embeddings",
    "rope_beta_fast": "beta_fast",
    "rope_beta_slow": "beta_slow",
    "rope_attention_factor": "attention_factor",
}
"""What YaRN adds to the architecture -> HF's key. torchtitan 0.3.0's Qwen3 scales frequencies as HF does, and no logits: an
attention factor of 1, where HF's default is 0.1 ln(factor) + 1."""
_NEWER = ("rope_parameters", "num_local_experts", "dtype")
"""Keys that transformers before 5 does not read."""

Shapes = Mapping[str, tuple[int, ...]]


def is_moe(names: Shapes | frozenset[str]) -> bool:
    """Whether tensors of these names (torchtitan 0.3.0's) are a MoE's."""
    return any(".moe." in name for name in names)


def belongs(shapes: Shapes) -> bool:
    """Whether these tensors are a Qwen3's: a decoder with norms on queries and keys. One lost tensor changes nothing."""
    ends = (".attention.q_norm.weight", ".attention.qkv_linear.wq.weight")
    return all(any(name.startswith("layers.") and name.endswith(end) for name in shapes) for end in ends)


def architecture_of_shapes(shapes: Shapes) -> dict[str, Any]:
    """What the tensors' shapes alone tell of the architecture. Raises KeyError if a tensor that tells it is missing,
    ValueError, IndexError or ZeroDivisionError if it has another shape."""
    head_dim = shapes["layers.0.attention.q_norm.weight"][0]
    found = {
        "num_hidden_layers": len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
        "hidden_size": shapes[EMBEDDING][1],
        "head_dim": head_dim,
        "num_attention_heads": shapes["layers.0.attention.qkv_linear.wq.weight"][0] // head_dim,
        "num_key_value_heads": shapes["layers.0.attention.qkv_linear.wk.weight"][0] // head_dim,
    }
    if is_moe(shapes):
        experts, width, _ = shapes["layers.0.moe.routed_experts.inner_experts.w1_EFD"]
        return found | {"num_experts": experts, "moe_intermediate_size": width}
    return found | {"intermediate_size": shapes["layers.0.feed_forward.w1.weight"][0]}


def shapes_of_hf(hf_shapes: Shapes) -> tuple[dict[str, tuple[int, ...]], dict[str, list[str]]]:
    """TorchTitan's shapes of a step that is in HF form, and for each of its tensors the HF tensors it is made of.

    By the adapter's own table; experts are stacked by number. A name that is not in the table keeps it, and is nobody's.
    """
    table = adapter(SimpleNamespace(layers=[], enable_weight_tying=False)).from_hf_map
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, dict[int, str]] = {}
    for name, shape in hf_shapes.items():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        ours = table.get(re.sub(r"\.\d+(?=\.)", ".{}", name))
        installed = name if ours is None else ours.format(*numbers[:1])
        expert = numbers[1] if len(numbers) > 1 else 0
        parts.setdefault(installed, {})[expert] = name
        shapes[installed] = (len(parts[installed]), *shape) if len(numbers) > 1 else shape
    return shapes, {name: [found[index] for index in sorted(found)] for name, found in parts.items()}


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
        found = {ours: float(rope.get(key) or defaults.get(key, 0.0)) for ours, key in _YARN.items()}
    except (TypeError, ValueError):
        return {}
    return found | {"rope_truncate": bool(rope.get("truncate", True))}


def architecture_of(config: Any) -> dict[str, Any]:
    """The architecture that a `Qwen3Model.Config` builds."""
    layer = config.layers[0]
    attention = layer.attention
    found = FIXED | dict.fromkeys(_NEVER) | {
        "num_hidden_layers": len(config.layers), "hidden_size": config.dim, "head_dim": attention.head_dim,
        "num_attention_heads": attention.n_heads, "num_key_value_heads": attention.n_kv_heads, "rope_theta": float(attention.rope.theta),
        "rope_type": "yarn" if is_yarn(attention.rope) else "default",
        "rms_norm_eps": config.norm.eps, "tie_word_embeddings": config.enable_weight_tying,
    }  # fmt: skip
    if is_yarn(rope := attention.rope):
        numbers = (rope.rope_factor, rope.original_seq_len, rope.beta_fast, rope.beta_slow, 1.0)
        found |= dict(zip(_YARN, map(float, numbers), strict=True)) | {"rope_truncate": rope.truncate}
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
    keys = ["num_hidden_layers", "hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "hidden_act"]  # fmt: skip
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
        **{key: getattr(config, key, None) or None for key in _NEVER},
    }


def _unused(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """What plain rope's parameters hold besides, such as a factor: transformers ignores it, another reader may not."""
    known = ("rope_theta", "rope_type", "type", "partial_rotary_factor")
    if rope.get("rope_type", "default") != "default":
        return None
    return {key: value for key, value in rope.items() if key not in known and value not in (None, 1)} or None


def differences(said: Mapping[str, Any], run: Mapping[str, Any], who: str = "base") -> list[str]:
    """Where `who` (the base assets) describes another model than the run trained."""
    return [f"{key}: {who} {said.get(key)}, run {run[key]}" for key in run if said.get(key) != run[key]]


def modules(layers: int) -> dict[str, str]:
    """HF's name of each module that holds weights, but for the experts -> TorchTitan's, by the adapter's own table."""
    table = adapter(SimpleNamespace(layers=[], enable_weight_tying=False)).from_hf_map
    pairs = [(hf, ours) for hf, ours in table.items() if ours is not None and hf.count("{}") < 2]
    return {
        hf.format(index).removesuffix(".weight"): ours.format(index).removesuffix(".weight")
        for hf, ours in pairs
        for index in (range(layers) if "{}" in hf else [0])
    }


def titan_model(config: Any, positions: int) -> torch.nn.Module:
    """TorchTitan's model of `config` on the meta device: plain attention, separate q, k and v, local experts, rope for `positions`.

    The registry's flex attention is compiled; sdpa computes the same. A rope cache for 40,960 positions in each of 28
    layers would take 1.2 GB.
    """
    config = copy.deepcopy(config)
    for layer in config.layers:
        attention = layer.attention
        attention.inner_attention = ScaledDotProductAttention.Config()
        attention.rope.max_seq_len = positions
        query, kv = attention.n_heads * attention.head_dim, attention.n_kv_heads * attention.head_dim
        attention.qkv_linear = QKVLinear.Config(
            head_dim=attention.head_dim,
            wq=Linear.Config(in_features=attention.dim, out_features=query),
            wkv=Linear.Config(in_features=attention.dim, out_features=kv),
        )
        if layer.moe is not None:
            layer.moe.routed_experts.token_dispatcher = LocalTokenDispatcher.Config(
                num_experts=layer.moe.num_experts, top_k=layer.moe.router.top_k
            )
    with on_meta():
        return config.build().eval()


def adapter(config: Any) -> Any:
    """TorchTitan's own adapter for this model; without assets, it renames and slices only."""
    return titan.model_registry("debugmodel").state_dict_adapter(config, None)


def hf_config(base: dict[str, Any], *, moe: bool, where: Path) -> PretrainedConfig:
    """The base assets' config as transformers reads it. Raises AssetsInvalid for another architecture's."""
    wanted = "qwen3_moe" if moe else "qwen3"
    if base.get("model_type") != wanted:
        raise errors.AssetsInvalid(
            f"the checkpoint is a {wanted}, the base assets' config is not",
            path=where / "config.json",
            hint="name the right folder with --hf-assets",
        )
    try:
        return (Qwen3MoeConfig if moe else Qwen3Config).from_dict(dict(base))
    except Exception as error:  # transformers validates with errors of many kinds, some of which quote the file
        raise errors.AssetsInvalid(
            f"the base assets' config does not load ({type(error).__name__})",
            path=where,
            hint="name the right folder with --hf-assets",
        ) from None


def with_architecture(base: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The base assets' config with another architecture (`--architecture run`)."""
    said = {key: value for key, value in base.items() if key not in _REPLACED}
    plain = {
        key: value
        for key, value in wanted.items()
        if key not in (*_REPLACED, *_YARN, "rope_truncate", "rope_type", "partial_rotary_factor")
    }
    rope = {"rope_theta": wanted["rope_theta"], "rope_type": wanted["rope_type"]}
    rope |= {key: wanted[ours] for ours, key in _YARN.items() if ours in wanted}
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = int(rope["original_max_position_embeddings"])
    return said | plain | {"rope_parameters": rope}


def made_config(special: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json for the architecture `wanted`, where there are no base assets' own; `special`: ids of special tokens."""
    return with_architecture(special | {"model_type": "qwen3_moe" if "num_experts" in wanted else "qwen3"}, wanted)


def hf_model(config: PretrainedConfig) -> PreTrainedModel:
    """HF's model of `config` on the meta device."""
    with on_meta():
        return (Qwen3MoeForCausalLM if isinstance(config, Qwen3MoeConfig) else Qwen3ForCausalLM)(config).eval()


def older_keys(said: dict[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    """The keys from which transformers before 5 takes what 5 writes elsewhere (4.51 reads theta 10,000 without them)."""
    rope = config.rope_parameters
    plain = rope.get("rope_type", "default") == "default"
    older = {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if plain else {k: v for k, v in rope.items() if k != "rope_theta"},
        "torch_dtype": said["dtype"],
    }
    return older | ({"num_experts": config.num_experts} if isinstance(config, Qwen3MoeConfig) else {})


def check_written(
    said: dict[str, Any], wanted: Mapping[str, Any], besides: Mapping[str, Any], dtype: str, *, where: Path
) -> None:
    """`config.json` as it was written says the architecture `wanted`, `besides` and `dtype`, to transformers 5 and to those
    before. Raises ExportMismatch."""
    moe = "num_experts" in wanted
    for reader, seen in (("5", said), ("4", {key: value for key, value in said.items() if key not in _NEWER})):
        config = hf_config(seen, moe=moe, where=where)
        found = architecture_of_base(config) | {key: getattr(config, key) for key in besides}
        differs = differences(found, {**wanted, **besides}, "written")
        if str(config.dtype) != f"torch.{dtype}":
            differs.append(f"dtype: written {config.dtype}, run {dtype}")
        if differs:
            raise errors.ExportMismatch(
                f"the config written says another model to transformers {reader} ({'; '.join(differs)})",
                path=where,
                hint="report this; nothing was published",
            )
