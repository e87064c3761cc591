"""Owns tiny Qwen3 models of TorchTitan 0.3.0, and the record that a trainer of 0.3.0 leaves of them.

Imports torch and torchtitan (some seconds): import it late.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchtitan.models.qwen3 as qwen3
from torchtitan.models.common import CosSinRoPE, Embedding, Linear
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.qwen3 import Qwen3Model, config_registry

from examples.base_assets import Architecture


def model_config(architecture: Architecture, *, fuse_qkv: bool = True, max_seq_len: int = 4096) -> Qwen3Model.Config:
    """The config of a registry flavor with other numbers: put together by the functions that make those (0.3.0)."""
    a = architecture
    shape: dict[str, Any] = {
        "n_layers": a.num_hidden_layers,
        "dim": a.hidden_size,
        "n_heads": a.num_attention_heads,
        "n_kv_heads": a.num_key_value_heads,
        "head_dim": a.head_dim,
        "fuse_qkv": fuse_qkv,
        "attn_backend": "flex",
        "rope": CosSinRoPE.Config(dim=a.head_dim, max_seq_len=max_seq_len, theta=float(a.rope_theta)),
    }
    if a.num_experts:
        layers = qwen3._build_qwen3_moe_layers(
            moe_hidden_dim=a.moe_intermediate_size,
            num_experts=a.num_experts,
            top_k=a.num_experts_per_tok,
            moe_comm_backend="standard",
            **shape,
        )
    else:
        layers = qwen3._build_qwen3_layers(hidden_dim=a.intermediate_size, **shape)
    return Qwen3Model.Config(
        vocab_size=a.vocab_size,
        dim=a.hidden_size,
        norm=qwen3._qwen3_norm(a.hidden_size),
        enable_weight_tying=a.tie_word_embeddings,
        tok_embeddings=Embedding.Config(
            num_embeddings=a.vocab_size,
            embedding_dim=a.hidden_size,
            param_init=qwen3._EMBEDDING_SKIP_INIT if a.tie_word_embeddings else qwen3._EMBEDDING_INIT,
        ),
        lm_head=Linear.Config(in_features=a.hidden_size, out_features=a.vocab_size, param_init=qwen3._LINEAR_INIT),
        layers=layers,
    )


def use_plain_attention(config: Qwen3Model.Config) -> None:
    """Change `config` for a processor without flex attention: causal scaled dot product attention in each layer."""
    for layer in config.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()


def trainer_config(
    model: Qwen3Model.Config,
    *,
    flavor: str,
    dump_folder: Path,
    hf_assets: Path,
    dtype: str = "float32",
    seq_len: int = 128,
    keep_latest_k: int = 10,
) -> dict[str, Any]:
    """Trainer.Config.to_dict() of torchtitan 0.3.0: the stock 0.6B trainer (30B-A3B's for a MoE) around `model`.

    As in a real file, rope's max_seq_len is the model's own (the trainer shortens it later), and callables are text.
    """
    moe = any(layer.moe is not None for layer in model.layers)
    config = config_registry.qwen3_30b_a3b() if moe else config_registry.qwen3_0_6b()
    config.model_spec.flavor = flavor
    config.model_spec.model = model
    config.loss.loss_fn.global_vocab_size = model.vocab_size
    config.hf_assets_path = str(hf_assets)
    config.dump_folder = str(dump_folder)
    config.training.dtype = dtype
    config.training.seq_len = seq_len
    config.checkpoint.enable = True
    config.checkpoint.keep_latest_k = keep_latest_k
    config.checkpoint.async_mode = "async"
    config.debug.save_config_file = "config.json"
    recorded: dict[str, Any] = config.to_dict()
    return recorded
