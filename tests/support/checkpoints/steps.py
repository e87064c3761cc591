"""Owns the writing of cases: four ranks save what a trainer holds, as TorchTitan's CheckpointManager does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tests.support.checkpoints import extra, run_configs
from tests.support.checkpoints.cases import ALL, Case
from tests.support.checkpoints.launch import run_ranks
from tests.support.checkpoints.models import Training
from tests.support.checkpoints.naming import older_states
from tests.support.checkpoints.placement import spread_states

RANKS = 4


def write_case(case: Case, out: Path, mesh: DeviceMesh | None) -> None:
    """All steps of one case and its run config, written after the first step as the launcher does. Collective."""
    rank = dist.get_rank()
    training = Training(case, rank, dist.get_world_size())
    for number in case.steps:
        training.advance(number)
        step = case.step(out, number)
        if case.name in extra.WRITERS:
            extra.WRITERS[case.name](training, case.base_assets(out), step, mesh)
        else:
            _save(_states(training, mesh), step, crc=case.name != "crc_off")
        if rank == 0 and not case.run_config(out).exists():
            run_configs.write(case, out, training.config)


def _states(training: Training, mesh: DeviceMesh | None) -> dict[str, Any]:
    case = training.case
    states = training.model_state() | training.other_state()
    if case.name in extra.CHANGES:
        states = extra.CHANGES[case.name](training, states)
    states = spread_states(states, mesh, case.mesh, fused_qkv=case.fused_qkv)
    return older_states(states, case.naming, moe=case.moe)


def _save(states: dict[str, Any], step: Path, *, crc: bool) -> None:
    """`CheckpointManager.dcp_save` of torchtitan 0.3.0 with async_mode "disabled": dcp.save with its default writer."""
    torch.serialization.set_crc32_options(crc)
    try:
        dcp.save(states, checkpoint_id=str(step))
    finally:
        torch.serialization.set_crc32_options(True)


def write_all(out: Path) -> None:
    """Every case below `out`: those of four ranks in one launch, then those of a single process."""

    def four(_: int) -> None:
        flat = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("fsdp",))
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
        for case in ALL:
            if case.mesh != "one":
                write_case(case, out, square if case.mesh == "2x2" else flat)

    def one(_: int) -> None:
        for case in ALL:
            if case.mesh == "one":
                write_case(case, out, None)

    run_ranks(RANKS, four)
    run_ranks(1, one)
