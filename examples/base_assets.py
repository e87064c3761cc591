"""Owns base assets made locally: `config.json`, `generation_config.json` and a tokenizer, as a base model's folder.

The config is in the hub's keys (those of Qwen/Qwen3-0.6B and Qwen/Qwen3-30B-A3B, which transformers 4.51 wrote), or
in those that the installed transformers saves. Both say the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from examples import small_tokenizer


@dataclass(frozen=True)
class Architecture:
    """A Qwen3 model in HF's words; the defaults are Qwen3-0.6B's. `num_experts` 0 is a dense model."""

    vocab_size: int = 151936
    hidden_size: int = 1024
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 3072
    max_position_embeddings: int = 40960
    rope_theta: int = 1000000
    tie_word_embeddings: bool = True
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0


def hub_config(architecture: Architecture, *, eos_token_id: int, bos_token_id: int) -> dict[str, Any]:
    """`config.json` with the keys and their order as on the hub."""
    a = architecture
    moe = a.num_experts > 0
    config: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos_token_id,
        **({"decoder_sparse_step": 1} if moe else {}),
        "eos_token_id": eos_token_id,
        "head_dim": a.head_dim,
        "hidden_act": "silu",
        "hidden_size": a.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": a.intermediate_size,
        "max_position_embeddings": a.max_position_embeddings,
        "max_window_layers": a.num_hidden_layers,
    }
    if moe:
        config |= {"mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": a.moe_intermediate_size}
        config |= {"norm_topk_prob": True}
    else:
        config |= {"model_type": "qwen3"}
    config |= {"num_attention_heads": a.num_attention_heads}
    if moe:
        config |= {"num_experts": a.num_experts, "num_experts_per_tok": a.num_experts_per_tok}
    config |= {"num_hidden_layers": a.num_hidden_layers, "num_key_value_heads": a.num_key_value_heads}
    if moe:
        config |= {"output_router_logits": False}
    config |= {"rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": a.rope_theta}
    if moe:
        config |= {"router_aux_loss_coef": 0.001}
    return config | {
        "sliding_window": None,
        "tie_word_embeddings": a.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": a.vocab_size,
    }


def generation_config(*, eos_token_id: int, pad_token_id: int) -> dict[str, Any]:
    """Sampling defaults and the list of EOS ids, as on the hub."""
    return {
        "bos_token_id": pad_token_id,
        "do_sample": True,
        "eos_token_id": [eos_token_id, pad_token_id],
        "pad_token_id": pad_token_id,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "transformers_version": "4.51.0",
    }


def write_hub(folder: Path, architecture: Architecture, tokenizer: Tokenizer) -> None:
    """A base model's folder as the hub holds it, without weights."""
    small_tokenizer.write_hub(folder, tokenizer, maps=False)
    pad, _, eos = (tokenizer.get_vocab()[token] for token in small_tokenizer.SPECIAL_TOKENS)
    _write_json(folder / "config.json", hub_config(architecture, eos_token_id=eos, bos_token_id=pad))
    _write_json(folder / "generation_config.json", generation_config(eos_token_id=eos, pad_token_id=pad))


def write_transformers5(folder: Path, hub: Path) -> None:
    """The same folder as the installed transformers saves it: config and tokenizer in its own keys and files."""
    from transformers import AutoConfig, GenerationConfig

    small_tokenizer.write_transformers5(folder, hub)
    AutoConfig.from_pretrained(hub).save_pretrained(folder)
    GenerationConfig.from_pretrained(hub).save_pretrained(folder)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
