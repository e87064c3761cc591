"""TorchTitan's own conversion, the steps of its scripts/checkpoint_conversion/convert_to_hf.py (0.3.0): no checks, no
config, no tokenizer.

    python -m bench.torchtitan_conversion STEP OUT --size 0.6B --dtype bfloat16
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torchtitan.components.checkpointer.base import ModelWrapper
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter

from tests.support.checkpoints.big import size_config


@torch.inference_mode()
def convert(step: Path, out: Path, size: str, assets: Path, dtype: torch.dtype) -> None:
    config = size_config(size, None)
    model = config.build()
    adapter = Qwen3StateDictAdapter(config, str(assets))
    state = ModelWrapper(model)._get_state_dict()
    dcp.load(state, checkpoint_id=str(step))
    exported = adapter.to_hf(state)
    if dtype != torch.float32:
        exported = {name: tensor.to(dtype) for name, tensor in exported.items()}
    dcp.save(
        exported,
        storage_writer=HuggingFaceStorageWriter(
            path=str(out),
            save_distributed=True,
            fqn_to_index_mapping=adapter.fqn_to_index_mapping,
            enable_consolidation=True,
            thread_count_consolidation=5,
        ),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", required=True)
    parser.add_argument("--dtype", required=True)
    options = parser.parse_args()
    base = options.step.parents[1] / "assets"
    convert(options.step, options.out, options.size, base, getattr(torch, options.dtype))
