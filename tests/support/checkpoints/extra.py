"""Owns what is special in each case of `cases.EXTRA`: a change to the states before they are saved, or another writer.

A change takes the whole states (0.3.0's names, full tensors, the same on every rank) and gives those to save.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torchtitan.components.checkpointer import AsyncMode, CheckpointManager
from torchtitan.models.qwen3 import Qwen3StateDictAdapter

from tests.support.checkpoints.models import Training
from tests.support.checkpoints.placement import spread_states

States = dict[str, Any]
Change = Callable[[Training, States], States]
Writer = Callable[[Training, Path, Path, DeviceMesh | None], None]
"""Arguments: the training, base assets, step directory, mesh. Called on every rank."""

OTHER_STATES = ("optimizer", "lr_scheduler", "dataloader", "train_state")


def _with(states: States, fqn: str, index: tuple[int, ...], value: float) -> States:
    """`states` with one element of one tensor replaced; the tensor is a copy."""
    tensor = states[fqn].detach().clone()
    tensor[index] = value
    return states | {fqn: tensor}


def _model_only_last(training: Training, states: States) -> States:
    if training.number != training.case.steps[-1]:
        return states
    # CheckpointManager._save_last_step of torchtitan 0.3.0, export_dtype float32
    return {fqn: tensor.to(torch.float32) for fqn, tensor in states.items() if fqn not in OTHER_STATES}


def _bias(training: Training, states: States) -> States:
    bias = torch.linspace(-0.4, 0.5, training.case.dims.experts)
    return {fqn: bias.roll(1) if fqn.endswith("expert_bias_E") else tensor for fqn, tensor in states.items()}


def _lora(training: Training, states: States) -> States:
    dim, rank = training.case.dims.dim, 4
    added = {}
    for fqn in [fqn for fqn in states if fqn.endswith("qkv_linear.wq.weight")]:
        rows = states[fqn].shape[0]
        added[fqn.replace(".weight", ".lora_a.weight")] = torch.randn(rank, dim)
        added[fqn.replace(".weight", ".lora_b.weight")] = torch.randn(rows, rank)
    return states | added


def _fused_qkv(training: Training, states: States) -> States:
    """The fused parameter as it is, without the hook that splits it on save (added to TorchTitan on 2026-06-19)."""
    split = [fqn for fqn in states if ".qkv_linear.w" in fqn]
    fused = {fqn: p for fqn, p in training.model.named_parameters() if fqn.endswith("wqkv.weight")}
    return {fqn: value for fqn, value in states.items() if fqn not in split} | fused


CHANGES: dict[str, Change] = {
    "model_only_last": _model_only_last,
    "moe_bias": _bias,
    "moe_bias_old": _bias,
    "dataloader_only": lambda _, states: {"dataloader": states["dataloader"]},
    "optimizer_only": lambda _, states: {key: states[key] for key in OTHER_STATES},
    "lora": _lora,
    "fused_qkv": _fused_qkv,
    "untied_values": lambda _, states: _with(states, "lm_head.weight", (17, 3), 0.125),
    "nan": lambda _, states: _with(states, "layers.1.feed_forward.w2.weight", (40, 61), float("nan")),
    "inf": lambda _, states: _with(
        states, "layers.2.moe.routed_experts.inner_experts.w3_EFD", (4, 30, 9), float("-inf")
    ),
    "overflow": lambda _, states: _with(states, "tok_embeddings.weight", (630, 5), 3.4e38),
    "unknown_tensor": lambda _, states: states | {"vision_proj.weight": torch.randn(24, 8)},
}


class _AdapterBefore3764(Qwen3StateDictAdapter):  # type: ignore[misc]
    """Leaves the tied head in the index, as adapters did before 2026-06 (torchtitan #3764): no data for it is saved."""

    fqn_to_index_mapping: dict[str, int]

    def to_hf(self, state_dict: States) -> States:
        mapping = dict(self.fqn_to_index_mapping)
        converted: States = super().to_hf(state_dict)
        self.fqn_to_index_mapping = mapping
        return converted


def _last_in_hf(training: Training, assets: Path, step: Path, mesh: DeviceMesh | None) -> None:
    """TorchTitan's own CheckpointManager saves the model in HF's names, as for `checkpoint.last_save_in_hf`."""
    adapter = _AdapterBefore3764 if training.case.name == "last_in_hf_corrupt" else Qwen3StateDictAdapter
    manager = CheckpointManager(
        CheckpointManager.Config(enable=True, last_save_in_hf=True, keep_latest_k=0),
        dataloader=None,
        model_parts=[training.model],
        optimizers=training.optimizers,
        lr_schedulers=training.lr_schedulers,
        states={},
        sd_adapter=adapter(training.config, str(assets)),
    )
    # spread here, for the model itself is whole on every rank; CheckpointManager._save_last_step casts likewise
    states = {fqn: tensor.to(torch.float32) for fqn, tensor in training.model_state().items()}
    states = spread_states(states, mesh, training.case.mesh, fused_qkv=training.case.fused_qkv)
    manager.dcp_save(states, checkpoint_id=str(step), async_mode=AsyncMode.DISABLED, to_hf=True)


def _torch_checkpointing(training: Training, assets: Path, step: Path, mesh: DeviceMesh | None) -> None:
    """torch_checkpointing's own manager (0.1.1), with the items of TorchTitan's TorchCheckpointingManager.

    That class itself is no use: in torchtitan 0.3.0 it saves nothing yet, and cannot be imported beside 0.1.1.
    """
    from torch_checkpointing.checkpoint_manager import CheckpointManager as Manager
    from torch_checkpointing.config import SyncCheckpointSaverConfig
    from torch_checkpointing.default_resharder import DefaultResharder
    from torch_checkpointing.schema import ItemSpec
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    specs = {key: ItemSpec(resharder=DefaultResharder(), required=False) for key in ("model", "optimizer")}
    storage = LocalFileSystemStorageConfig(use_direct_io=False)
    manager = Manager(Manager.Config(items=specs, save=SyncCheckpointSaverConfig(), storage_config=storage))
    states = training.model_state() | training.other_state()
    states = spread_states(states, mesh, training.case.mesh, fused_qkv=training.case.fused_qkv)
    model = {key: value for key, value in states.items() if key not in OTHER_STATES}
    manager.save(str(step), {"model": model, **{key: states[key] for key in OTHER_STATES}})
    manager.close()


WRITERS: dict[str, Writer] = {
    "last_in_hf": _last_in_hf,
    "last_in_hf_one_file": _last_in_hf,
    "last_in_hf_moe": _last_in_hf,
    "last_in_hf_corrupt": _last_in_hf,
    "torch_checkpointing": _torch_checkpointing,
}
