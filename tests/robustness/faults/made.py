"""Owns checkpoints that only the fault suite needs: square matrices, where queries are as large as keys, and many experts.

Written by DCP in this process, once a session; run config, base assets and tokenizer as the other cases have them.
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from tests.support.checkpoints.cases import Case, Dims

_DIMS = {
    "square": Dims(tied=False, dim=64, layers=3, heads=4, kv_heads=4, head_dim=16, hidden=64),
    "square_tied": Dims(tied=True, dim=64, layers=2, heads=4, kv_heads=4, head_dim=16, hidden=64),
    "many_experts": Dims(
        tied=False, dim=32, layers=2, heads=2, kv_heads=1, head_dim=16, hidden=32, experts=64, top_k=2, expert_hidden=32
    ),
    "a3b": Dims(
        tied=False,
        dim=64,
        layers=4,
        heads=8,
        kv_heads=1,
        head_dim=16,
        hidden=64,
        experts=128,
        top_k=8,
        expert_hidden=24,
    ),
}
"""The last one is 30B-A3B's structure: 128 experts, 8 a token, 8 query heads for each of keys, head and embedding apart."""


@dataclass(frozen=True)
class MadeCase(Case):
    """A case with dimensions of its own, saved by a single process."""

    @property
    def dims(self) -> Dims:
        return _DIMS[self.name]

    @property
    def fused_qkv(self) -> bool:
        return False

    def base_assets(self, out: Path) -> Path:
        return out / "assets" / self.name


MADE = {
    "square": MadeCase("square", "dense_untied", naming="0.3", mesh="one", dtype="bfloat16", config="0.3"),
    "square_tied": MadeCase(
        "square_tied", "dense_tied", naming="0.2", mesh="one", dtype="float32", config="0.2-figures"
    ),
    "many_experts": MadeCase("many_experts", "moe", naming="between", mesh="one", dtype="float32", config="0.3"),
    "a3b": MadeCase("a3b", "moe", naming="0.3", mesh="one", dtype="bfloat16", config="0.3"),
}


def write(case: MadeCase, checkpoints: Path, out: Path) -> None:
    """One step of the case below `out`, with assets made from those of `checkpoints`."""
    import torch.distributed.checkpoint as dcp

    from tests.support.checkpoints import run_configs
    from tests.support.checkpoints.models import Training
    from tests.support.checkpoints.naming import older_states

    training = Training(case, 0, 1)
    training.advance(case.steps[-1])
    states = older_states(training.model_state() | training.other_state(), case.naming, moe=case.moe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "torch.distributed is disabled": it is
        dcp.save(states, checkpoint_id=str(case.step(out)))
    folder, dims = case.base_assets(out), case.dims
    shutil.copytree(checkpoints / "assets" / f"{case.kind}-hub", folder)
    said = json.loads((folder / "config.json").read_text()) | {
        "hidden_size": dims.dim, "num_hidden_layers": dims.layers, "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads, "head_dim": dims.head_dim, "intermediate_size": dims.hidden,
    }  # fmt: skip
    if case.moe:
        said |= {
            "num_experts": dims.experts,
            "num_experts_per_tok": dims.top_k,
            "moe_intermediate_size": dims.expert_hidden,
        }
    (folder / "config.json").write_text(json.dumps(said))
    tokenizer = case.tokenizer(out)
    if not tokenizer.exists():
        shutil.copytree(checkpoints / "tokenizers" / case.assets, tokenizer)
    run_configs.write(case, out, training.config)
