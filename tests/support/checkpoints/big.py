"""Owns checkpoints of real size, for benchmarks and for judging by hand; no test builds them.

    python -m tests.support.checkpoints.big OUT --size 0.6B --dtype float32 --adam --naming 0.3 --ranks 4

writes OUT/checkpoint/step-2 and its config.json, OUT/assets (base assets in the hub's keys) and OUT/tokenizer.
Sizes are TorchTitan's registry flavors, or a key of OWN. Each rank draws its own rows from seeds of name and rank, so
nothing is ever whole in memory; the balancing bias of a MoE is zero. Of a tied model Adam has one state for both names,
as TorchTitan's has: 0.6B in float32 is 7.8 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the ranks are forked

import torch
import torch.distributed.checkpoint as dcp
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torchtitan.models.qwen3 import Qwen3Model, qwen3_configs

from examples import base_assets, small_tokenizer, titan_model
from examples.base_assets import Architecture
from tests.support.checkpoints.launch import run_ranks
from tests.support.checkpoints.naming import older_states
from tests.support.checkpoints.run_configs import job_config

OWN = {
    "moe-3b": Architecture(
        hidden_size=2048,
        num_hidden_layers=5,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),
    "tiny": Architecture(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=96,
    ),
    "moe-tiny": Architecture(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=False,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
    ),
}
"""Sizes that are no registry flavor: a fifth of 30B-A3B's layers and less, 7.3 GB in bfloat16; and tiny ones with
Qwen3's whole vocabulary, 40 and 80 MB in float32."""

QWEN_SPECIAL_TOKENS = (
    *small_tokenizer.SPECIAL_TOKENS,
    *(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad", "vision") for end in ("start", "end")),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>"),
    *("<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>"),
    *("</tool_response>", "<think>", "</think>"),
)
QWEN_TOKENS = 151669


def synthetic_tokenizer(size: int) -> Tokenizer:
    """`size` tokens without training: all bytes, all pairs of them, triples as far as needed, Qwen3's 26 at the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(first, second) for first in alphabet for second in alphabet]
    wanted = size - len(QWEN_SPECIAL_TOKENS) - len(alphabet) - len(pairs)
    triples = [(a + b, c) for a, b in pairs[: wanted // len(alphabet) + 1] for c in alphabet][:wanted]
    merges = pairs + triples
    vocab = {token: i for i, token in enumerate([*alphabet, *(first + second for first, second in merges)])}
    tokenizer = small_tokenizer.assemble(models.BPE(vocab=vocab, merges=merges))
    small_tokenizer.add(tokenizer, QWEN_SPECIAL_TOKENS)
    assert tokenizer.get_vocab_size() == size
    return tokenizer


def size_config(size: str, rows: int | None) -> Qwen3Model.Config:
    """The TorchTitan config of a size, with `rows` embedding rows if given."""
    config = titan_model.model_config(OWN[size]) if size in OWN else qwen3_configs[size](attn_backend="flex")
    if rows is not None:
        config.vocab_size = config.tok_embeddings.num_embeddings = config.lm_head.out_features = rows
    return config


def architecture(config: Qwen3Model.Config) -> Architecture:
    """A registry flavor in HF's words."""
    layer = config.layers[0]
    attention, moe = layer.attention, layer.moe
    experts = None if moe is None else moe.routed_experts.inner_experts
    return Architecture(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        num_hidden_layers=len(config.layers),
        num_attention_heads=attention.n_heads,
        num_key_value_heads=attention.n_kv_heads,
        head_dim=attention.head_dim,
        intermediate_size=3 * config.dim if experts else layer.feed_forward.w1.out_features,
        rope_theta=int(attention.rope.theta),
        tie_word_embeddings=config.enable_weight_tying,
        num_experts=experts.num_experts if experts else 0,
        num_experts_per_tok=moe.router.top_k if moe else 0,
        moe_intermediate_size=experts.hidden_dim if experts else 0,
    )


def local_part(
    fqn: str, shape: torch.Size, dtype: torch.dtype, mesh: DeviceMesh, *, tied: bool, std: float
) -> torch.Tensor:
    """This rank's rows of one parameter: normal with `std`, norm weights about 1, the same for both tied ones."""
    name = "tok_embeddings.weight" if tied and fqn == "lm_head.weight" else fqn
    sizes, _ = compute_local_shape_and_global_offset(shape, mesh, (Shard(0),))
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {mesh.get_rank()}".encode()))
    mean, spread = (1.0, 0.1) if fqn.endswith("norm.weight") else (0.0, std)
    return torch.empty(sizes).normal_(mean, spread, generator=generator).to(dtype)


def states(
    config: Qwen3Model.Config, dtype: torch.dtype, mesh: DeviceMesh, *, adam: bool, step: int, std: float = 0.02
) -> dict[str, Any]:
    """What a trainer of `config` would save, this rank's part of it (0.3.0's names)."""
    with torch.device("meta"):
        whole = config.build().state_dict()
    model: dict[str, Any] = {}
    optimizer: dict[str, Any] = {}
    for fqn, meta in whole.items():
        if fqn.endswith("expert_bias_E"):
            model[fqn] = torch.zeros(meta.shape)
            continue
        local = local_part(fqn, meta.shape, dtype, mesh, tied=config.enable_weight_tying, std=std)

        def spread(part: torch.Tensor, meta: torch.Tensor = meta) -> DTensor:
            return DTensor.from_local(part, mesh, (Shard(0),), run_check=False, shape=meta.shape, stride=meta.stride())

        model[fqn] = spread(local)
        if adam and not (config.enable_weight_tying and fqn == "lm_head.weight"):
            optimizer[f"state.{fqn}.step"] = torch.tensor(float(step))
            optimizer[f"state.{fqn}.exp_avg"] = spread(local * 0.01)
            optimizer[f"state.{fqn}.exp_avg_sq"] = spread(local.square() * 0.01)
            optimizer |= {f"param_groups.{fqn}.lr": 1e-3, f"param_groups.{fqn}.betas": (0.9, 0.95)}
    other = {"lr_scheduler": {"last_epoch": step}, "train_state": {"step": step, "ntokens_seen": step * 4096}}
    return {**model, **other, **({"optimizer": optimizer} if adam else {})}


def write_big(
    out: Path,
    *,
    size: str,
    dtype: str = "float32",
    adam: bool = True,
    naming: str = "0.3",
    ranks: int = 4,
    rows: int | None = None,
    step: int = 2,
    base: Tokenizer | None = None,
    std: float = 0.02,
) -> Path:
    """Write one run below `out`; returns its step directory. Forks: to be called before torch has started threads.

    `base` is the base model's tokenizer, a synthetic one if None; a run adds its own tokens to it. `std` is that of
    the weights.
    """
    config = size_config(size, rows)
    checkpoint, assets, tokenizer_folder = out / "checkpoint", out / "assets", out / "tokenizer"
    if base is None:
        base = synthetic_tokenizer(QWEN_TOKENS) if config.vocab_size > QWEN_TOKENS else small_tokenizer.train(596)
    own = small_tokenizer.extended(base)
    # 0.3.0 takes the tokenizer from hf_assets_path, so there it is the run's own
    base_assets.write_hub(assets, architecture(config), own if naming == "0.3" else base)
    small_tokenizer.write_hub(tokenizer_folder, own)

    def save(_: int) -> None:
        mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",))
        whole = states(config, getattr(torch, dtype), mesh, adam=adam, step=step, std=std)
        moe = config.layers[0].moe is not None
        dcp.save(older_states(whole, naming, moe=moe), checkpoint_id=str(checkpoint / f"step-{step}"))

    run_ranks(ranks, save)
    recorded: dict[str, Any] = {
        "flavor": size,
        "dump_folder": out,
        "hf_assets": assets,
        "dtype": dtype,
        "seq_len": 4096,
    }
    if naming == "0.3":
        run_config = titan_model.trainer_config(config, **recorded)
    else:
        run_config = job_config(tokenizer=tokenizer_folder, **recorded)
    (checkpoint / "config.json").write_text(json.dumps(run_config, indent=2))
    return checkpoint / f"step-{step}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", default="0.6B", choices=[*qwen3_configs, *OWN])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--adam", default=True, action=argparse.BooleanOptionalAction)
    parser.add_argument("--naming", default="0.3", choices=["0.2", "between", "0.3"])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--vocab-rows", type=int, dest="rows")
    parser.add_argument("--step", type=int, default=2)
    arguments = vars(parser.parse_args())
    print(write_big(arguments.pop("out").absolute(), **arguments))


if __name__ == "__main__":
    main()
