"""Owns what Qwen3 provides as a `FamilyModel`: both models, TorchTitan's adapter, HF's config.json.

Needs torch, torchtitan 0.3.0 and transformers.
"""

import copy
import re
from collections.abc import Iterable, Mapping
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
from converter.families.family import Experts, Routing, Shapes, differences
from converter.families.meta_device import on_meta
from converter.families.qwen3.architecture import NEVER, YARN, architecture_of, architecture_of_base, is_moe
from converter.families.qwen3.recorded import check_told, recorded_config
from converter.families.qwen3.spec import SPEC

__all__ = [
    "SPEC",
    "adapter",
    "architecture_of",
    "architecture_of_base",
    "check_told",
    "check_written",
    "hf_buffers",
    "hf_config",
    "hf_experts",
    "hf_model",
    "is_router",
    "made_config",
    "modules",
    "older_keys",
    "recorded_config",
    "routing",
    "shapes_of_hf",
    "titan_buffers",
    "titan_experts",
    "titan_model",
    "with_architecture",
]
_REPLACED = (
    "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "num_local_experts", "sliding_window", "use_sliding_window",
    "is_causal", *NEVER,
)  # fmt: skip
"""Keys of a base config that say what others say too, or what a run of TorchTitan's never is."""
_NEWER = ("rope_parameters", "num_local_experts", "dtype")
"""Keys that transformers before 5 does not read."""
_TITAN_EXPERTS = {"gate": "w1_EFD", "down": "w2_EDF", "up": "w3_EFD"}
"""Projection -> its weight within TorchTitan's `GroupedExperts`."""


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


def titan_buffers(model: torch.nn.Module) -> None:
    """Makes the rope caches and the MoE's counters on the CPU."""
    for name, module in model.named_modules():
        if name.endswith(".rope"):
            module._init_self_buffers(buffer_device=torch.device("cpu"))
            module.cache = module._precompute_cache()
        elif name.endswith(".moe"):
            module._init_self_buffers(buffer_device=torch.device("cpu"))


def titan_experts(name: str) -> Experts | None:
    """Of one layer, where `name` is the module of its experts."""
    if not name.endswith(".inner_experts"):
        return None
    return Experts(
        f"model.layers.{name.split('.')[1]}.mlp.experts",
        lambda projection, expert: (f"{name}.{_TITAN_EXPERTS[projection]}", expert),
    )


def routing(index: str, layer: Any) -> Routing | None:
    """Of a layer of TorchTitan's model; None if it is dense."""
    return Routing(layer.moe.router, f"layers.{index}.moe.expert_bias_E") if layer.moe_enabled else None


def hf_experts(name: str) -> Experts | None:
    """Of one layer, where `name` is the module of its experts."""
    if not name.endswith(".mlp.experts"):
        return None
    return Experts(name, lambda projection, expert: (f"{name}.{expert}.{projection}_proj.weight", 0))


def hf_buffers(model: PreTrainedModel, config: PretrainedConfig) -> None:
    """Makes the rotary embedding anew on the CPU."""
    model.model.rotary_emb = type(model.model.rotary_emb)(config)


def is_router(hf_name: str) -> bool:
    """Whether HF's module of this name is a router."""
    return hf_name.endswith(".mlp.gate")


def adapter(config: Any) -> Any:
    """TorchTitan's own adapter for this model; without assets, it renames and slices only."""
    return titan.model_registry("debugmodel").state_dict_adapter(config, None)


def hf_config(base: dict[str, Any], names: Iterable[str], *, where: Path) -> PretrainedConfig:
    """The base assets' config as transformers reads it, for tensors of these names. Raises AssetsInvalid for another
    architecture's."""
    return _read_config(base, moe=is_moe(names), where=where)


def _read_config(base: dict[str, Any], *, moe: bool, where: Path) -> PretrainedConfig:
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
        if key not in (*_REPLACED, *YARN, "rope_truncate", "rope_type", "partial_rotary_factor")
    }
    rope = {"rope_theta": wanted["rope_theta"], "rope_type": wanted["rope_type"]}
    rope |= {key: wanted[ours] for ours, key in YARN.items() if ours in wanted}
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
        config = _read_config(seen, moe=moe, where=where)
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
