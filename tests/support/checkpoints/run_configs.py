"""Owns the run configs as they really are on disk: users' 0.2 files, and those of a 0.3.0 trainer.

`data/job_config_0.2.2.json` was made once with torchtitan 0.2.2, unpacked from its wheel and put first on PYTHONPATH:
`ConfigManager().parse_args(["--job.config_file", …]).to_dict()`, where the TOML named a `job.custom_config_module` that
declares `molgen_data` and `molgen_run`, as users' runs do. Below, the fields that differ from run to run are set.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from examples.titan_model import trainer_config
from tests.support.checkpoints.cases import ADDED_TOKENS, BASE_TOKENS, SEQ_LEN, Case

_JOB_CONFIG = Path(__file__).parent / "data" / "job_config_0.2.2.json"


def job_config(
    *, dump_folder: Path, flavor: str, hf_assets: Path, tokenizer: Path, dtype: str, seq_len: int
) -> dict[str, Any]:
    """JobConfig.to_dict() of torchtitan 0.2.2, without the vocabulary figures that users' launcher leaves out of it."""
    config: dict[str, Any] = json.loads(_JOB_CONFIG.read_text())
    config["job"]["dump_folder"] = str(dump_folder)
    config["model"] |= {"flavor": flavor, "hf_assets_path": str(hf_assets)}
    config["molgen_data"]["tokenizer_override"] = str(tokenizer)
    config["training"] |= {"dtype": dtype, "seq_len": seq_len}
    return config


def figures(case: Case) -> dict[str, Any]:
    """What some launchers record in `model` besides: vocabulary figures, and dimensions in HF's words."""
    dims = case.dims
    recorded = {
        "tokenizer_base_vocab_size": BASE_TOKENS,
        "tokenizer_added_tokens": ADDED_TOKENS,
        "padded_vocab_size": dims.rows,
        "hidden_size": dims.dim,
        "num_hidden_layers": dims.layers,
        "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads,
        "head_dim": dims.head_dim,
        "tie_word_embeddings": dims.tied,
    }
    if not case.moe:
        return recorded | {"intermediate_size": dims.hidden}
    return recorded | {
        "moe_intermediate_size": dims.expert_hidden,
        "num_experts": dims.experts,
        "num_experts_per_tok": dims.top_k,
    }


def write(case: Case, out: Path, model: Any) -> None:
    """The case's run config at its place, as the launcher dumps it."""
    if case.config == "0.3":
        config = trainer_config(
            model,
            flavor=case.flavor,
            dump_folder=case.run(out),
            hf_assets=case.base_assets(out),
            dtype=case.dtype,
            seq_len=SEQ_LEN,
            keep_latest_k=4,
        )
    else:
        config = job_config(
            dump_folder=case.run(out),
            flavor=case.flavor,
            hf_assets=case.base_assets(out),
            tokenizer=case.tokenizer(out),
            dtype=case.dtype,
            seq_len=SEQ_LEN,
        )
        if case.config == "0.2-figures":
            config["model"] |= figures(case)
    with case.run_config(out).open("w") as file:
        json.dump(config, file, indent=2)
