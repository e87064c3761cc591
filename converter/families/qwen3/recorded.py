"""Owns what a run recorded of its Qwen3, as TorchTitan's model config: the registry's flavor under what the run wrote.

Needs torchtitan 0.3.0. A 0.3 record is not buildable as it stands (no class names, functions as text), so every recorded
scalar is laid over the flavor's config, path by path; a 0.2 record is a flavor and, sometimes, dimensions.
"""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchtitan.models.qwen3 as titan

from converter.common import errors
from converter.families.family import Shapes
from converter.families.qwen3.architecture import architecture_of, architecture_of_shapes, is_moe, is_yarn
from converter.families.qwen3.spec import SPEC
from converter.run.run_config import RunConfig

_NOT_ARCHITECTURE = frozenset(
    {
        "param_init",
        "sharding_config",
        "inner_attention",
        "qkv_linear",
        "token_dispatcher",
        "max_seq_len",
        "max_context_length",
        "_torchao_config",
    }
)
"""Parts of a recorded model config that do not change the function (or, qkv_linear, are derived from the rest; or, of
float8 training, say how products were rounded). `max_context_length` is `max_seq_len` on TorchTitan's main branch."""


_CAUSAL = [-1, 0]
"""`VarlenAttention.Config.window_size`: all tokens before, none after."""

_UNTOLD, _UNTOLD_MOE = ("rope_theta", "rms_norm_eps", "tie_word_embeddings"), ("num_experts_per_tok", "norm_topk_prob")
"""What no tensor's shape tells."""


def recorded_config(step: Path, run: RunConfig, shapes: Shapes, base: dict[str, Any]) -> tuple[Any, list[str]]:
    """TorchTitan's model config as the run recorded it, and what in it could not be told without the base assets.

    Raises ArchitectureMismatch where record and tensors differ, UnsupportedModel for a record that is not understood,
    PlanMismatch where a tensor is missing that tells the architecture.
    """
    moe = is_moe(shapes)
    registered = run.flavor in titan.qwen3_configs
    template = run.flavor if registered else "debugmodel_moe" if moe else "debugmodel"
    config = copy.deepcopy(titan.model_registry(template).model)
    try:
        told = architecture_of_shapes(shapes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise errors.PlanMismatch(
            f"the checkpoint lacks a tensor that every Qwen3 has, or it has another shape ({error})",
            path=step,
            hint="a part of a model, or a custom one, is not converted",
        ) from None
    borrowed: list[str] = []
    if registered and (config.layers[0].moe is not None) != moe:
        raise errors.ArchitectureMismatch(
            f"the run's flavor {run.flavor!r} and the tensors are not both dense or both MoE",
            path=run.path,
            hint="is this the run config of this checkpoint?",
        )
    if run.model is not None:
        if isinstance(layers := run.model.get("layers"), list):
            check_record({"num_hidden_layers": len(layers)}, told, run)  # before each of them is made
        _overlay(config, run.model, "model_spec.model", run.path)
        check_record(architecture_of(config), told, run)
        check_alike(config, run)
        check_rope(config, run)
    else:
        stated = dict(run.dimensions)
        check_record(stated, told, run)
        if registered:
            ours = architecture_of(config)
            borrowed += [
                f"{key}: the tensors' {told[key]}, not the flavor's {ours[key]}"
                for key in told
                if ours[key] != told[key] and key not in stated
            ]
        else:
            unknown = [key for key in (*_UNTOLD, *_UNTOLD_MOE) if key not in stated and key in base]
            if unknown:
                borrowed.append(f"{', '.join(unknown)} (flavor {run.flavor!r} is not in TorchTitan's registry)")
            stated |= {key: base[key] for key in unknown}
        _set(config, told | stated)
    borrowed += run.assumed
    if run.overrides:
        borrowed.append(f"override.imports {', '.join(run.overrides)}: what they change is not recorded")
    rows = shapes[SPEC.embedding][0]
    if run.model is not None:
        check_rows(config.vocab_size, rows, run)
    _set_vocabulary(config, rows)
    return config, borrowed


def check_told(run: RunConfig, shapes: Shapes, where: Path) -> None:
    """What the tensors' shapes do not tell stands in the run's record or is its registered flavor's: nothing else tells it
    where `where`, the base assets, have no config.json. Raises AssetsMissing."""
    if run.flavor in titan.qwen3_configs:
        return
    told: Mapping[str, Any] = run.dimensions if run.model is None else _told(run.model)
    wanted = (*_UNTOLD, *(_UNTOLD_MOE if is_moe(shapes) else ()))
    if unknown := [key for key in wanted if told.get(key) is None]:
        raise errors.AssetsMissing(
            f"the base assets have no config.json, and the run did not record {', '.join(unknown)}",
            path=where,
            hint="put the config.json of the model that the run began with there (TorchTitan's "
            "scripts/download_hf_assets.py --assets config)",
        )


def _told(model: dict[str, Any]) -> dict[str, Any]:
    """What a 0.3 record says of `_UNTOLD` and `_UNTOLD_MOE`, None where it says nothing."""

    def of(*path: str) -> Any:
        layers = model.get("layers")
        found: Any = layers[0] if path[0] in ("attention", "moe") and isinstance(layers, list) and layers else model
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    return {
        "rope_theta": of("attention", "rope", "theta"),
        "rms_norm_eps": of("norm", "eps"),
        "tie_word_embeddings": of("enable_weight_tying"),
        "num_experts_per_tok": of("moe", "router", "top_k"),
        "norm_topk_prob": of("moe", "router", "route_norm"),
    }


def check_rows(recorded: int, rows: int, run: RunConfig) -> None:
    """The embedding has as many rows as the run recorded. Raises VocabularyMismatch."""
    if recorded != rows:
        raise errors.VocabularyMismatch(
            f"the run recorded {recorded:,} tokens, the embedding has {rows:,} rows",
            path=run.path,
            hint="is this the run config of this checkpoint?",
        )


def check_record(recorded: Mapping[str, Any], told: Mapping[str, Any], run: RunConfig) -> None:
    """What the run recorded is what the tensors' shapes tell. Raises ArchitectureMismatch."""
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


def _scaling(rope: Any) -> tuple[Any, ...]:
    yarn = (rope.rope_factor, rope.original_seq_len, rope.beta_fast, rope.beta_slow, rope.truncate)
    return (rope.scaling, *(yarn if is_yarn(rope) else ()))


def check_rope(config: Any, run: RunConfig) -> None:
    """HF's Qwen3 has the scaling, and every reader reads the same of it. Raises UnsupportedModel.

    transformers 4.51 takes the ratio of the two lengths for YaRN's factor whatever the config says, and rounds its bounds;
    4.57, 5.0 and 5.23 read both.
    """
    rope = config.layers[0].attention.rope
    problem = ""
    if rope.scaling not in ("none", "yarn"):
        problem = f"rope scaling {rope.scaling!r}, which TorchTitan's Qwen3 does not have"
    elif is_yarn(rope) and not rope.truncate:
        problem = "YaRN with bounds that are not rounded (truncate is False)"
    elif is_yarn(rope) and run.seq_len != rope.rope_factor * rope.original_seq_len:
        problem = (
            f"YaRN of factor {rope.rope_factor:g} over {rope.original_seq_len:,} positions, and a maximum sequence length of "
            f"{run.seq_len:,}, not {rope.rope_factor * rope.original_seq_len:,.0f}"
        )
    if problem:
        raise errors.UnsupportedModel(
            f"the run was trained with {problem}"[:500],
            path=run.path,
            hint="transformers 4.51 would read another model from an export; convert it with TorchTitan's own script",
        )


def check_alike(config: Any, run: RunConfig) -> None:
    """All norms have one eps and all layers one rope, as HF's have: a difference in a single layer may be too small for the
    forward check. Raises UnsupportedModel."""
    attentions = [layer.attention for layer in config.layers]
    norms = [
        norm for layer in config.layers for norm in (layer.attention_norm, layer.ffn_norm, layer.attention.qk_norm)
    ]
    for what, first, found in (
        ("rms_norm_eps", config.norm.eps, [norm.eps for norm in norms]),
        ("rope_theta", attentions[0].rope.theta, [attention.rope.theta for attention in attentions]),
        ("rope scaling", _scaling(attentions[0].rope), [_scaling(attention.rope) for attention in attentions]),
    ):
        others = [value for value in found if value != first]
        if others:
            raise errors.UnsupportedModel(
                f"the run recorded more than one {what} ({first} and {others[0]}), HF's model has one",
                path=run.path,
                hint="layers that are not alike are not converted",
            )


def check_window(window: object, where: str, path: Path) -> None:
    """Every token was trained to attend to all before it: other attentions that the registry's config can be given compute
    the same but for this. Raises UnsupportedModel."""
    if window is not None and window != _CAUSAL:
        raise errors.UnsupportedModel(
            f"the run recorded {where}.window_size {window}, not {_CAUSAL}",
            path=path,
            hint="attention through a window is not converted",
        )


def _overlay(config: Any, recorded: dict[str, Any], where: str, path: Path) -> None:
    """Every recorded scalar over the registry's config, path by path; a path that is not there is refused."""
    for key, value in recorded.items():
        if key == "inner_attention" and isinstance(value, dict):
            check_window(value.get("window_size"), f"{where}.{key}", path)
        if key in _NOT_ARCHITECTURE:
            continue
        if not any(field.name == key for field in dataclasses.fields(config)):
            if value is None or value in ({}, []):
                continue
            raise errors.UnsupportedModel(
                f"the run recorded {where}.{key}, which TorchTitan 0.3.0's Qwen3 does not have",
                path=path,
                hint="LoRA, quantization and custom models are not converted; a key that does not change the function can "
                "be taken out of a copy of the run config that is named with --run-config",
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
        elif isinstance(ours, list) or (type(ours) in (bool, int, float) and not _fits(value, ours)):
            raise errors.UnsupportedModel(
                f"the run recorded {where}.{key} as {type(value).__name__}, not {type(ours).__name__}",
                path=path,
                hint="is this file whole?",
            )
        else:
            setattr(config, key, value)


def _fits(value: object, ours: object) -> bool:
    """JSON has one kind of number: a float may be written without its point."""
    return type(value) is type(ours) or (type(ours) is float and type(value) is int)


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
