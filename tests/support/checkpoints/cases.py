"""Owns the list of test checkpoints: what each is and where it lies. Imports neither torch nor anything of ours.

One case is one run as users have it: `<out>/<name>/checkpoint/step-N`, its run config beside or above, its base assets
and tokenizer elsewhere (`<out>/assets`, `<out>/tokenizers`), found through the absolute paths that the config records.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, product
from pathlib import Path
from typing import Any

BASE_TOKENS = 596
"""Tokens that the base assets' tokenizer knows."""
ADDED_TOKENS = 4
"""Tokens that a 0.2 run's own tokenizer knows besides."""
BASE_ROWS = 620
"""The base assets' vocab_size: fewer rows than the run's."""
SEQ_LEN = 128
"""training.seq_len of each run: the base assets' max_position_embeddings is another."""
ROPE_THETA = 1_000_000
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Dims:
    """A tiny Qwen3 in TorchTitan's words. Sizes are chosen so that chunks of four ranks are uneven or empty."""

    tied: bool
    rows: int = 638
    """Embedding rows; more than any tokenizer's tokens. Over four ranks: 160, 160, 160, 158."""
    dim: int = 72
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    hidden: int = 94
    """Over four ranks: 24, 24, 24, 22."""
    experts: int = 0
    """0: dense. 6 over four ranks: 2, 2, 2 and none, which DCP stores as an item of no elements."""
    top_k: int = 0
    expert_hidden: int = 0


KINDS = {
    "dense_tied": Dims(tied=True),
    "dense_untied": Dims(tied=False),
    "moe": Dims(tied=False, experts=6, top_k=2, expert_hidden=56),
}
NAMINGS = ("0.2", "between", "0.3")
MESHES = ("fsdp", "2x2")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One run on disk.

    The paths take `out`, the folder given to `python -m tests.support.checkpoints`, so that a test can pass a private copy's parent.
    """

    name: str
    kind: str
    """A key of KINDS."""
    naming: str
    """TorchTitan's names: of 0.2.x, of 0.3.0, or of a point between where some were new and some old."""
    mesh: str
    """"fsdp": four ranks on dim 0; "2x2": dim 0, dim 1 and both (experts dim 0 with 1 or 2); "one": a single rank."""
    dtype: str
    """training.dtype of the run, in which its parameters are stored."""
    config: str
    """"0.2": JobConfig.to_dict(); "0.2-figures": with vocabulary figures and dimensions; "0.3": Trainer.Config's."""
    config_file: str = "checkpoint/config.json"
    """Below the run."""
    flavor: str = "tiny"
    """What the run config records; "tiny" is in no registry."""
    assets: str = "hub"
    """Generation of base assets and tokenizer files: "hub" (transformers 4's) or "transformers5"; "hub-indexed" has a
    model.safetensors.index.json as well."""
    steps: tuple[int, ...] = (2,)
    folder: str = "checkpoint"
    """The checkpoint folder, below the run."""
    note: str = ""
    """What an extra case is about."""

    @property
    def dims(self) -> Dims:
        return KINDS[self.kind]

    @property
    def moe(self) -> bool:
        return self.dims.experts > 0

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())

    @property
    def fused_qkv(self) -> bool:
        """Whether the model trains one `wqkv`, the default of 0.3.0, which splits it on save: then wq, wk and wv are
        replicated, so one rank's file has them whole."""
        return (self.naming == "0.3" and self.mesh == "fsdp") or self.name == "fused_qkv"

    @property
    def known_tokens(self) -> int:
        """Length of the run's tokenizer. 0.3.0 takes it from hf_assets_path, which here has no added tokens."""
        return BASE_TOKENS if self.config == "0.3" else BASE_TOKENS + ADDED_TOKENS

    def run(self, out: Path) -> Path:
        return out / self.name

    def checkpoint(self, out: Path) -> Path:
        return self.run(out) / self.folder

    def step(self, out: Path, number: int | None = None) -> Path:
        """The step directory; without `number` the last one."""
        return self.checkpoint(out) / f"step-{self.steps[-1] if number is None else number}"

    def published(self, out: Path, number: int | None = None) -> Path:
        """Where `dcp2hf convert` publishes that step, by default."""
        step = self.step(out, number)
        return step.with_name(step.name + "-hf")

    def run_config(self, out: Path) -> Path:
        return self.run(out) / self.config_file

    def base_assets(self, out: Path) -> Path:
        return out / "assets" / f"{self.kind}-{self.assets}"

    def tokenizer(self, out: Path) -> Path:
        return self.base_assets(out) if self.config == "0.3" else out / "tokenizers" / self.assets


def _matrix() -> Iterator[Case]:
    """Every kind, naming, mesh and dtype; config styles and places, flavors and generations of assets spread over."""
    first = "checkpoint/config.json"  # five places and seven generations, so that no two columns move together
    places = cycle((first, "config.json", "checkpoint/job_config.json", "job_config.json", first))
    styles = {
        "0.2": cycle(("0.2", "0.2-figures", "0.2-figures", "0.2")),
        "between": cycle(("0.3", "0.2", "0.2-figures")),
        "0.3": cycle(("0.3",)),
    }
    generations = cycle(("hub", "transformers5", "transformers5", "hub", "hub", "transformers5", "hub"))
    for kind, naming, mesh, dtype in product(KINDS, NAMINGS, MESHES, DTYPES):
        stock = "debugmodel_moe" if kind == "moe" else "debugmodel"
        yield Case(
            name=f"{kind}-{naming}-{mesh}-{dtype}",
            kind=kind,
            naming=naming,
            mesh=mesh,
            dtype=dtype,
            config=next(styles[naming]),
            config_file=next(places),
            flavor=stock if naming == "0.3" and mesh == "fsdp" else "tiny",
            assets=next(generations),
        )


def _extra(name: str, note: str, kind: str = "dense_tied", **changes: Any) -> Case:
    config = "0.2" if changes.get("naming") in ("0.2", "between") else "0.3"
    plain = Case(name, kind, naming="0.3", mesh="fsdp", dtype="float32", config=config, note=note)
    return replace(plain, **changes)


CASES = tuple(_matrix())
"""The 36 that must convert, and match."""

EXTRA = (
    _extra("two_steps", "two full steps of one run", steps=(2, 4)),
    _extra(
        "model_only_last",
        "a bfloat16 run whose last step holds the model alone, in float32 (last_save_model_only, export_dtype)",
        dtype="bfloat16",
        steps=(2, 4),
    ),
    _extra("one_rank", "saved by a single process, plain tensors", mesh="one", naming="0.2"),
    _extra("moe_bias", "a balancing bias that is not zero", "moe", mesh="2x2"),
    _extra("moe_bias_old", "the same under its 0.2 name", "moe", naming="0.2"),
    _extra("dataloader_only", "what a fault-tolerant replica saves of its own", folder="checkpoint/ft-replicat-0"),
    _extra("optimizer_only", "optimizer and train state, no model", mesh="one"),
    _extra("lora", "lora_a and lora_b beside the frozen weights", naming="between"),
    _extra("fused_qkv", "attention.qkv_linear.wqkv.weight, as saved between 2026-04-16 and 06-19", naming="between"),
    _extra("untied_values", "a tied model whose head differs from its embedding in one element"),
    _extra("nan", "one NaN in one element of one tensor", "dense_untied", mesh="2x2"),
    _extra("inf", "one -Inf in one element of one expert", "moe", naming="0.2", dtype="bfloat16"),
    _extra("overflow", "3.4e38 in an unused row: finite in float32, infinite with --dtype bfloat16", "dense_untied"),
    _extra("unknown_tensor", "a top-level tensor that no Qwen3 has: vision_proj.weight", naming="0.2"),
    _extra(
        "torch_checkpointing", "another format (0.1.1): metadata.pkl, model_0.pt, …; it needs CUDA for more", mesh="one"
    ),
    _extra(
        "last_in_hf", "last_save_in_hf: sharded/, two files by the base assets' index, an index", assets="hub-indexed"
    ),
    _extra("last_in_hf_one_file", "last_save_in_hf, no index in the base assets", "dense_untied", dtype="bfloat16"),
    _extra("last_in_hf_moe", "the same of a MoE", "moe", mesh="2x2", dtype="bfloat16"),
    _extra("last_in_hf_corrupt", "the tied head as an entry without data (torchtitan #3764)", assets="hub-indexed"),
    _extra("crc_off", "saved with torch.serialization.set_crc32_options(False): CRC stored as 0", "moe"),
)
"""One speciality each: refused by name, reported, or converted all the same."""

ALL = CASES + EXTRA
BY_NAME = {case.name: case for case in ALL}
