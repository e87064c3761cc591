"""Owns how saved names looked before torchtitan 0.3.0: its own names turned back, one rename at a time.

This is the writer's side only; `reference.renamed` goes the other way and shares nothing with it.
"""

from __future__ import annotations

from typing import Any


def older(fqn: str, naming: str, *, moe: bool) -> str:
    """What the tensor `fqn` of 0.3.0 was called at `naming`; optimizer keys contain such a name and go the same way.

    "between": a dense model has the new qkv_linear and the old head (both renamed on 2026-04-27, by two changes);
    a MoE has both new, the old bias, and experts between their two renames (from 2026-06-10 to 07-16).
    """
    if naming == "0.3":
        return fqn
    if naming == "0.2" or not moe:
        fqn = fqn.replace("lm_head.weight", "output.weight")
    if naming == "0.2":
        fqn = fqn.replace("attention.qkv_linear.", "attention.")
        for letters in ("w1_EFD", "w2_EDF", "w3_EFD"):
            fqn = fqn.replace(f"routed_experts.inner_experts.{letters}", f"experts.{letters[:2]}")
    fqn = fqn.replace("moe.routed_experts.inner_experts.", "moe.experts.")
    return fqn.replace("expert_bias_E", "expert_bias")


def older_states(states: dict[str, Any], naming: str, *, moe: bool) -> dict[str, Any]:
    """`states` (model FQNs and the other states' keys at the top) with the names of `naming`."""
    renamed = {older(key, naming, moe=moe): value for key, value in states.items()}
    if "optimizer" in renamed:
        flat = renamed["optimizer"]
        renamed["optimizer"] = {older(key, naming, moe=moe): value for key, value in flat.items()}
    return renamed
