"""Owns the tiny models and what a trainer holds of them: TorchTitan 0.3.0's Qwen3, seeded, with AdamW's state.

Nothing here is symmetric: each parameter is perturbed after TorchTitan's own initialisation, norm weights too, so that
swapping any two tensors of equal shape moves the logits visibly (see `tests/support/checkpoints/test_fixtures.py`).
"""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torchtitan.components.checkpointer import ModelWrapper
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, default_adamw
from torchtitan.models.qwen3 import Qwen3Model

from examples.titan_model import model_config
from tests.support.checkpoints.cases import Case, Dims
from tests.support.checkpoints.folders import architecture

_CPU = torch.device("cpu")
_SPREAD = {"norm.weight": 0.3, "tok_embeddings.weight": 0.3, "lm_head.weight": 0.3, "gate.weight": 0.3}
"""Standard deviation of the perturbation by the end of the name; 0.15 where none fits."""


def tiny_config(dims: Dims, *, fuse_qkv: bool) -> Qwen3Model.Config:
    return model_config(architecture(dims, dims.rows), fuse_qkv=fuse_qkv)


def seeded_model(config: Qwen3Model.Config, seed: int, dtype: torch.dtype) -> Qwen3Model:
    """The model with its parameters in `dtype` (buffers as TorchTitan makes them), the same in every process."""
    torch.manual_seed(seed)
    model: Qwen3Model = config.build()
    model.init_states(buffer_device=_CPU)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = next((value for end, value in _SPREAD.items() if name.endswith(end)), 0.15)
            parameter.add_(torch.randn_like(parameter) * spread)
            parameter.data = parameter.data.to(dtype)
    return model


class Training:
    """A model in training, as TorchTitan's CheckpointManager sees it: the states it saves, step by step."""

    def __init__(self, case: Case, rank: int, ranks: int) -> None:
        self.case = case
        self.number = 0
        self.config = tiny_config(case.dims, fuse_qkv=case.fused_qkv)
        self.model = seeded_model(self.config, case.seed, getattr(torch, case.dtype))
        adamw = default_adamw(lr=1e-3)
        adamw.implementation = "for-loop"
        self.optimizers: OptimizersContainer[Any] = adamw.build(model_parts=[self.model])
        schedule = LRSchedulersContainer.Config(warmup_steps=2)
        self.lr_schedulers: LRSchedulersContainer = schedule.build(optimizers=self.optimizers, training_steps=1000)
        self._wrapper = ModelWrapper(self.model)
        self._rank, self._ranks = rank, ranks

    def advance(self, number: int) -> None:
        """Train up to step `number`, with seeded gradients in place of data."""
        while self.number < number:
            self.number += 1
            for parameter in self.model.parameters():
                parameter.grad = torch.randn_like(parameter) * 0.01
            self.optimizers.step()
            self.lr_schedulers.step()

    def model_state(self) -> dict[str, Any]:
        """FQN to tensor, tied models with both names, by TorchTitan's own ModelWrapper."""
        return dict(self._wrapper.state_dict())

    def other_state(self) -> dict[str, Any]:
        """All that a step holds besides the model, under the CheckpointManager's keys."""
        if self.case.naming == "0.2":  # 0.2.x saved the first scheduler's whole state
            schedule = dict(self.lr_schedulers.schedulers[0].state_dict())
        else:
            schedule = self.lr_schedulers.state_dict()
        return {
            "optimizer": self.optimizers.state_dict(),
            "lr_scheduler": schedule,
            "dataloader": self.dataloader_state(),
            "train_state": {"step": self.number, "ntokens_seen": self.number * 4096},
        }

    def dataloader_state(self) -> dict[str, Any]:
        """As ParallelAwareDataloader.state_dict: a pickle of each data-parallel rank, and how many there are."""
        position = {"_snapshot": {"_snapshot_step": self.number, "_main_snapshot": {"sample_idx": 7 * self.number}}}
        return {f"dp_rank_{self._rank}": pickle.dumps(position), "world_size": self._ranks}
