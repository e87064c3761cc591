"""Owns all that is Qwen3's: its TorchTitan config and adapter, its HF config class, and how the two describe one model.

Needs torch, torchtitan 0.3.0 and transformers. Another family is another module with these functions.
The architecture is a dict in HF's words, the common ground of run record, tensor shapes and base assets.
"""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
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

from converter import errors
from converter.run_config import RunConfig

EMBEDDING, HEAD = "tok_embeddings.weight", "lm_head.weight"
BIAS = ".moe.expert_bias_E"
"""Ends the name of the balancing bias, for which HF's Qwen3MoE has no place."""
FIXED: dict[str, Any] = {"attention_bias": False, "hidden_act": "silu", "rope_type": "default"}
"""What TorchTitan's Qwen3 is whatever its dimensions, and HF's could be otherwise."""
_FIXED_MOE = {"decoder_sparse_step": 1, "mlp_only_layers": []}
_NOT_ARCHITECTURE = frozenset(
    {"param_init", "sharding_config", "inner_attention", "qkv_linear", "token_dispatcher", "max_seq_len"}
)
"""Parts of a recorded model config that do not change the function (or, qkv_linear, are derived from the rest)."""

Shapes = Mapping[str, tuple[int, ...]]


def is_moe(names: Shapes | frozenset[str]) -> bool:
    """Whether tensors of these names (torchtitan 0.3.0's) are a MoE's."""
    return any(".moe." in name for name in names)


def belongs(shapes: Shapes) -> bool:
    """Whether these tensors are a Qwen3's: a decoder with norms on queries and keys."""
    return (
        EMBEDDING in shapes
        and "layers.0.attention.q_norm.weight" in shapes
        and "layers.0.attention.qkv_linear.wq.weight" in shapes
    )


def architecture_of_shapes(shapes: Shapes) -> dict[str, Any]:
    """What the tensors' shapes alone tell of the architecture. Raises KeyError if a tensor that tells it is missing."""
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


def architecture_of(config: Any) -> dict[str, Any]:
    """The architecture that a `Qwen3Model.Config` builds."""
    layer = config.layers[0]
    attention = layer.attention
    found = FIXED | {
        "num_hidden_layers": len(config.layers), "hidden_size": config.dim, "head_dim": attention.head_dim,
        "num_attention_heads": attention.n_heads, "num_key_value_heads": attention.n_kv_heads, "rope_theta": float(attention.rope.theta),
        "rope_type": {"none": "default", "llama": "llama3"}.get(attention.rope.scaling, attention.rope.scaling),
        "rms_norm_eps": config.norm.eps, "tie_word_embeddings": config.enable_weight_tying,
    }  # fmt: skip
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
    return found | {
        "rope_theta": float(rope.get("rope_theta", 10_000.0)),
        "rope_type": rope.get("rope_type", "default"),
    }


def recorded_config(run: RunConfig, shapes: Shapes, base: dict[str, Any]) -> tuple[Any, list[str]]:
    """TorchTitan's model config as the run recorded it, and what in it could not be told without the base assets.

    Raises ArchitectureMismatch where record and tensors differ, UnsupportedModel for a record that is not understood.
    """
    moe = is_moe(shapes)
    registered = run.flavor in titan.qwen3_configs
    template = run.flavor if registered else "debugmodel_moe" if moe else "debugmodel"
    config = copy.deepcopy(titan.model_registry(template).model)
    told = architecture_of_shapes(shapes)
    borrowed: list[str] = []
    if registered and (config.layers[0].moe is not None) != moe:
        raise errors.ArchitectureMismatch(
            f"the run's flavor {run.flavor!r} and the tensors are not both dense or both MoE",
            path=run.path,
            hint="is this the run config of this checkpoint?",
        )
    if run.model is not None:
        _overlay(config, run.model, "model_spec.model", run.path)
        _match(architecture_of(config), told, run)
    else:
        stated = dict(run.dimensions)
        _match(stated, told, run)
        if registered:
            ours = architecture_of(config)
            borrowed += [
                f"{key}: the tensors' {told[key]}, not the flavor's {ours[key]}"
                for key in told
                if ours[key] != told[key] and key not in stated
            ]
        else:
            unknown = [
                key
                for key in (
                    "rope_theta",
                    "rms_norm_eps",
                    "tie_word_embeddings",
                    "num_experts_per_tok",
                    "norm_topk_prob",
                )
                if key not in stated and key in base
            ]
            borrowed += [
                f"{key}: the base assets' (flavor {run.flavor!r} is not in TorchTitan's registry)" for key in unknown
            ]
            stated |= {key: base[key] for key in unknown}
        _set(config, told | stated)
    if run.overrides:
        borrowed.append(f"override.imports {', '.join(run.overrides)}: what they change is not recorded")
    rows = shapes[EMBEDDING][0]
    if run.model is not None and config.vocab_size != rows:
        raise errors.VocabularyMismatch(
            f"the run recorded {config.vocab_size:,} tokens, the embedding has {rows:,} rows",
            path=run.path,
            hint="is this the run config of this checkpoint?",
        )
    _set_vocabulary(config, rows)
    return config, borrowed


def _match(recorded: Mapping[str, Any], told: Mapping[str, Any], run: RunConfig) -> None:
    differs = [
        f"{key}: recorded {recorded[key]}, tensors {told[key]}"
        for key in told
        if key in recorded and recorded[key] != told[key]
    ]
    if differs:
        raise errors.ArchitectureMismatch(
            f"run record and tensors differ ({'; '.join(differs)})",
            path=run.path,
            hint="is this the run config of this checkpoint?",
        )


def _overlay(config: Any, recorded: dict[str, Any], where: str, path: Path) -> None:
    """Every recorded scalar over the registry's config, path by path; a path that is not there is refused."""
    for key, value in recorded.items():
        if key in _NOT_ARCHITECTURE:
            continue
        if not any(field.name == key for field in dataclasses.fields(config)):
            if value is None:
                continue
            raise errors.UnsupportedModel(
                f"the run recorded {where}.{key}, which TorchTitan's Qwen3 does not have",
                path=path,
                hint="LoRA, quantization and custom models are not converted",
            )
        ours = getattr(config, key)
        if isinstance(value, list) and isinstance(ours, list):
            if not value or not all(isinstance(item, dict) for item in value):
                raise errors.UnsupportedModel(
                    f"the run recorded no layers at {where}.{key}", path=path, hint="is this file whole?"
                )
            ours[:] = [copy.deepcopy(ours[min(i, len(ours) - 1)]) for i in range(len(value))]
            for index, item in enumerate(value):
                _overlay(ours[index], item, f"{where}.{key}.{index}", path)
        elif isinstance(value, dict) and dataclasses.is_dataclass(ours):
            _overlay(ours, value, f"{where}.{key}", path)
        elif isinstance(value, dict | list) or (
            (value is None) != (ours is None) and (dataclasses.is_dataclass(ours) or ours is None)
        ):
            if value == ours:
                continue
            raise errors.UnsupportedModel(
                f"the run recorded {where}.{key}, which its flavor does not have",
                path=path,
                hint="LoRA, quantization and custom models are not converted",
            )
        else:
            setattr(config, key, value)


def _set(config: Any, wanted: Mapping[str, Any]) -> None:
    """Gives a registry config other dimensions."""
    config.layers[:] = [copy.deepcopy(config.layers[0]) for _ in range(wanted["num_hidden_layers"])]
    dim = wanted["hidden_size"]
    config.dim = config.norm.normalized_shape = config.tok_embeddings.embedding_dim = config.lm_head.in_features = dim
    eps = wanted.get("rms_norm_eps", config.norm.eps)
    config.norm.eps = eps
    config.enable_weight_tying = wanted.get("tie_word_embeddings", config.enable_weight_tying)
    for layer in config.layers:
        attention = layer.attention
        attention.dim, attention.head_dim = dim, wanted["head_dim"]
        attention.n_heads, attention.n_kv_heads = wanted["num_attention_heads"], wanted["num_key_value_heads"]
        attention.wo.in_features, attention.wo.out_features = attention.n_heads * attention.head_dim, dim
        attention.rope.dim = attention.qk_norm.normalized_shape = attention.head_dim
        attention.rope.theta = float(wanted.get("rope_theta", attention.rope.theta))
        layer.attention_norm.normalized_shape = layer.ffn_norm.normalized_shape = dim
        attention.qk_norm.eps = layer.attention_norm.eps = layer.ffn_norm.eps = eps
        if layer.moe is None:
            width = wanted["intermediate_size"]
            for linear, into, out in (
                (layer.feed_forward.w1, dim, width),
                (layer.feed_forward.w2, width, dim),
                (layer.feed_forward.w3, dim, width),
            ):
                linear.in_features, linear.out_features = into, out
            continue
        moe, experts = layer.moe, wanted["num_experts"]
        top_k = wanted.get("num_experts_per_tok", moe.router.top_k)
        moe.num_experts = moe.router.num_experts = moe.router.gate.out_features = experts
        moe.router.gate.in_features, moe.router.top_k, moe.router.route_norm = (
            dim,
            top_k,
            wanted.get("norm_topk_prob", moe.router.route_norm),
        )
        inner = moe.routed_experts.inner_experts
        inner.dim, inner.hidden_dim, inner.num_experts = dim, wanted["moe_intermediate_size"], experts


def _set_vocabulary(config: Any, rows: int) -> None:
    config.vocab_size = config.tok_embeddings.num_embeddings = config.lm_head.out_features = rows


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
    with torch.device("meta"):
        return config.build().eval()


def adapter(config: Any) -> Any:
    """TorchTitan's own adapter for this model; without assets, it renames and slices only."""
    return titan.model_registry("debugmodel").state_dict_adapter(config, None)


def hf_config(base: dict[str, Any], *, moe: bool, where: Path) -> PretrainedConfig:
    """The base assets' config as transformers reads it. Raises AssetsInvalid for another architecture's."""
    wanted = "qwen3_moe" if moe else "qwen3"
    if base.get("model_type") != wanted:
        raise errors.AssetsInvalid(
            f"the base assets' config is no {wanted}'s", path=where, hint="name the right folder with --hf-assets"
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
    said = {
        key: value
        for key, value in base.items()
        if key not in ("rope_theta", "rope_scaling", "rope_parameters", "layer_types", "num_local_experts")
    }
    plain = {key: value for key, value in wanted.items() if key not in ("rope_theta", "rope_type")}
    return said | plain | {"rope_parameters": {"rope_theta": wanted["rope_theta"], "rope_type": wanted["rope_type"]}}


def hf_model(config: PretrainedConfig) -> PreTrainedModel:
    """HF's model of `config` on the meta device."""
    with torch.device("meta"):
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
