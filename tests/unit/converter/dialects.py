"""Owns run configs as other versions of TorchTitan write them: a 0.3.0 record turned into that of its main branch.

What differs was read in TorchTitan's main branch of 2026-08-21 (`config/configs.py`, `models/common/rope.py`) and in its
pull request #4328 of 2026-08-26.
"""

from __future__ import annotations

from typing import Any


def to_main(said: dict[str, Any], *, in_spec: bool = False) -> None:
    """Renames the lengths of a `Trainer.Config.to_dict()` of 0.3.0 in place; `in_spec`: the run's stands in `model_spec`."""
    length = said["training"].pop("seq_len")
    (said["model_spec"] if in_spec else said["training"])["max_context_length"] = length
    for layer in said["model_spec"]["model"]["layers"]:
        rope = layer["attention"]["rope"]
        rope["max_context_length"] = rope.pop("max_seq_len")
