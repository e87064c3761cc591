"""Owns how a tensor is spread over four ranks: TorchTitan's placements on a 1-D and on a 2 x 2 mesh.

DCP stores one chunk per rank (offsets, sizes), so placements decide what is in which `.distcp`. Measured with torch
2.13: a rank that gets nothing (6 rows over 4) writes an item of size 0 all the same; replicated dims are written once.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Placement, _StridedShard

_ROWS_OF_ROWS = (_StridedShard(0, split_factor=2), Shard(0))
"""Tensor parallel on dim 0, then FSDP within: how TorchTitan's FSDP2 lays over colwise weights."""

_TWO_BY_TWO: tuple[tuple[str, tuple[Placement, Placement]], ...] = (
    (r"w[13]_EFD$", (Shard(1), Shard(0))),  # expert parallel on dim 0, and the hidden dimension
    (r"w2_EDF$", (Shard(2), Shard(0))),
    (r"wo\.weight$", (Replicate(), Shard(1))),  # replicated data parallel: dim 1 only
    (r"w2\.weight$", (Shard(0), Shard(1))),
    (r"(norm|gate)\.weight$", (Shard(0), Replicate())),
    (r"", _ROWS_OF_ROWS),
)


def placements(fqn: str, mesh: str, *, fused_qkv: bool) -> tuple[Placement, ...]:
    """Where 0.3.0's tensor `fqn` lies on `mesh`, "fsdp" or "2x2"."""
    if fused_qkv and re.search(r"qkv_linear\.w[qkv]\.weight$", fqn):
        return (Replicate(),)  # 0.3.0 gathers the fused weight before it splits it for saving
    if mesh == "fsdp":
        return (Shard(0),)
    return next(where for pattern, where in _TWO_BY_TWO if re.search(pattern, fqn))


def spread(full: torch.Tensor, mesh: DeviceMesh, where: tuple[Placement, ...]) -> DTensor:
    """This rank's part of `full` (the same on every rank) as a DTensor; no communication."""
    sizes, offsets = compute_local_shape_and_global_offset(full.shape, mesh, where)
    local = full[tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))].contiguous()
    return DTensor.from_local(local, mesh, where, run_check=False, shape=full.shape, stride=full.stride())


def spread_states(states: dict[str, Any], mesh: DeviceMesh | None, name: str, *, fused_qkv: bool) -> dict[str, Any]:
    """Model and optimizer tensors of `states` (0.3.0's names) spread over `mesh`; scalars and buffers as they are.

    TorchTitan's balancing bias is a buffer: no DTensor, one copy in the checkpoint.
    """
    if mesh is None:
        return states

    def placed(key: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or key.endswith("expert_bias_E"):
            return value
        fqn = re.sub(r"^state\.|\.exp_avg(_sq)?$", "", key)
        return spread(value.detach(), mesh, placements(fqn, name, fused_qkv=fused_qkv))

    return {
        key: {k: placed(k, v) for k, v in value.items()} if key == "optimizer" else placed(key, value)
        for key, value in states.items()
    }
