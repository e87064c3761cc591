"""Owns the folders beside the runs: base assets of each kind and generation, and the runs' own tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

from examples import base_assets, small_tokenizer
from tests.support.checkpoints.cases import ADDED_TOKENS, ALL, BASE_ROWS, BASE_TOKENS, ROPE_THETA, Case, Dims


def architecture(dims: Dims, rows: int) -> base_assets.Architecture:
    """`dims` in HF's words, with `rows` rows: the run's own, or the base model's, which are fewer."""
    return base_assets.Architecture(
        vocab_size=rows,
        hidden_size=dims.dim,
        num_hidden_layers=dims.layers,
        num_attention_heads=dims.heads,
        num_key_value_heads=dims.kv_heads,
        head_dim=dims.head_dim,
        intermediate_size=dims.hidden,
        rope_theta=ROPE_THETA,
        tie_word_embeddings=dims.tied,
        num_experts=dims.experts,
        num_experts_per_tok=dims.top_k,
        moe_intermediate_size=dims.expert_hidden,
    )


def write_all(out: Path) -> None:
    """Each folder that a case's run config points to, once."""
    base = small_tokenizer.train(BASE_TOKENS)
    own = small_tokenizer.extended(base)
    assert own.get_vocab_size() == BASE_TOKENS + ADDED_TOKENS
    hub_tokenizer = out / "tokenizers" / "hub"
    small_tokenizer.write_hub(hub_tokenizer, own)
    small_tokenizer.write_transformers5(out / "tokenizers" / "transformers5", hub_tokenizer)
    for folder in (out / "tokenizers").iterdir():
        (folder / "metadata.json").write_text(json.dumps({"added": list(small_tokenizer.DOMAIN_TOKENS)}))
    for case in sorted({case.base_assets(out): case for case in ALL}.values(), key=lambda case: case.assets):
        folder = case.base_assets(out)
        if case.assets == "transformers5":
            base_assets.write_transformers5(folder, folder.with_name(f"{case.kind}-hub"))
        else:
            base_assets.write_hub(folder, architecture(case.dims, BASE_ROWS), base)
        if case.assets == "hub-indexed":
            _write_index(folder, _hf_names(case))


def _hf_names(case: Case) -> list[str]:
    """The names on the hub: those of TorchTitan's adapter, and the head that hub repositories of tied models hold."""
    from torchtitan.models.qwen3 import Qwen3StateDictAdapter

    from tests.support.checkpoints.models import tiny_config

    config = tiny_config(case.dims, fuse_qkv=False)
    adapter = Qwen3StateDictAdapter(config, None)
    return sorted({*adapter.to_hf(config.build().state_dict()), "lm_head.weight"})


def _write_index(folder: Path, names: list[str], files: int = 2) -> None:
    file_names = [f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i in range(files)]
    weight_map = {name: file_names[i * files // len(names)] for i, name in enumerate(names)}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
