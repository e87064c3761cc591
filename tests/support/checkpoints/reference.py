"""Owns what a converted step must equal: tensors by `dcp.load`, logits by TorchTitan's own model. Nothing of ours.

The forward pass is float32 throughout, with plain scaled dot product attention, and with expert products in the
weights' dtype (torchtitan 0.3.0's GroupedExperts multiplies in bfloat16 whatever its weights are).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torchtitan.models.common.moe import GroupedExperts
from torchtitan.models.qwen3 import Qwen3Model, Qwen3StateDictAdapter

from examples.titan_model import use_plain_attention
from tests.support.checkpoints.cases import Case, Dims
from tests.support.checkpoints.models import tiny_config

Weights = dict[str, torch.Tensor]

_OTHER_STATES = ("optimizer.", "lr_scheduler.", "dataloader.", "train_state.")


def load_source(step: Path) -> Weights:
    """The model's tensors of a step as they were saved, under their names there, whole."""
    reader = dcp.FileSystemReader(str(step))
    items = reader.read_metadata().state_dict_metadata
    source = {
        fqn: torch.empty(item.size, dtype=item.properties.dtype)
        for fqn, item in items.items()
        if isinstance(item, TensorStorageMetadata) and not fqn.startswith(_OTHER_STATES)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "torch.distributed is disabled": it is
        dcp.load(source, storage_reader=reader)
    return source


def renamed(fqn: str) -> str:
    """Any name that was in use between torchtitan 0.2.x and 0.3.0, as 0.3.0's."""
    fqn = re.sub(r"^output\.weight$", "lm_head.weight", fqn)
    fqn = re.sub(r"attention\.(w[qkv]\.weight)$", r"attention.qkv_linear.\1", fqn)
    fqn = re.sub(r"moe\.expert_bias$", "moe.expert_bias_E", fqn)
    expert = re.search(r"moe\.experts\.w([123])(_E[FD]{2})?$", fqn)
    if expert:
        axes = "EDF" if expert[1] == "2" else "EFD"
        fqn = f"{fqn[: expert.start()]}moe.routed_experts.inner_experts.w{expert[1]}_{axes}"
    return fqn


def split_qkv(weights: Weights, dims: Dims) -> Weights:
    """Fused `wqkv` ([kv_heads, heads per kv head + 2, head_dim] x dim) taken apart into wq, wk and wv."""
    result: Weights = {}
    for fqn, tensor in weights.items():
        if not fqn.endswith("wqkv.weight"):
            result[fqn] = tensor
            continue
        grouped = tensor.unflatten(0, (dims.kv_heads, -1, dims.head_dim))
        parts = {"wq": grouped[:, :-2], "wk": grouped[:, -2], "wv": grouped[:, -1]}
        for name, part in parts.items():
            result[fqn.replace("wqkv", name)] = part.reshape(-1, tensor.shape[1])
    return result


def weights(case: Case, step: Path) -> Weights:
    """`load_source` under 0.3.0's names, fused weights taken apart."""
    return split_qkv({renamed(fqn): tensor for fqn, tensor in load_source(step).items()}, case.dims)


def hf_weights(case: Case, source: Weights, dtype: torch.dtype | None = None) -> Weights:
    """What the HF directory must hold: TorchTitan's adapter over whole tensors, cast to `dtype` (the run's if None)."""
    target = getattr(torch, case.dtype) if dtype is None else dtype
    floating = {fqn: tensor for fqn, tensor in source.items() if not fqn.endswith("expert_bias_E")}
    adapter = Qwen3StateDictAdapter(tiny_config(case.dims, fuse_qkv=False), None)
    return {name: tensor.to(target) for name, tensor in adapter.to_hf(floating).items()}


class ExactExperts(GroupedExperts):  # type: ignore[misc]
    """GroupedExperts with its three products in the weights' dtype, one expert after the other."""

    def forward(self, x_RD: torch.Tensor, num_tokens_per_expert_E: torch.Tensor) -> torch.Tensor:
        outputs = []
        for expert, rows in enumerate(x_RD.split(num_tokens_per_expert_E.tolist())):
            gate = F.silu(rows @ self.w1_EFD[expert].T)
            outputs.append((gate * (rows @ self.w3_EFD[expert].T)) @ self.w2_EDF[expert].T)
        return torch.cat(outputs)


def float32_model(config: Qwen3Model.Config, source: Weights) -> Qwen3Model:
    """TorchTitan's model of `config` with `source` (0.3.0's names, any dtype) in float32, ready for a forward pass.

    Raises:
        RuntimeError: a tensor is missing, left over, or of another shape.
    """
    use_plain_attention(config)
    model: Qwen3Model = config.build()
    model.init_states(buffer_device=torch.device("cpu"))  # rope caches; the parameters come next
    model.load_state_dict({fqn: tensor.float() for fqn, tensor in source.items()}, strict=True)
    for layer in model.layers.values():
        if layer.moe_enabled:
            layer.moe.routed_experts.inner_experts.__class__ = ExactExperts
    return model.eval()


def titan_model(case: Case, source: Weights, dtype: torch.dtype | None = None) -> Qwen3Model:
    """The case's model as exported: `source` cast to `dtype` (the run's if None) and back to float32.

    The balancing bias, which no export holds, keeps its own dtype.
    """
    target = getattr(torch, case.dtype) if dtype is None else dtype
    cast = {fqn: tensor if fqn.endswith("expert_bias_E") else tensor.to(target) for fqn, tensor in source.items()}
    return float32_model(tiny_config(case.dims, fuse_qkv=False), cast)


@dataclass(frozen=True)
class Forward:
    """One forward pass of TorchTitan's model."""

    logits: torch.Tensor
    """[batch, length, rows], float32."""
    margins: torch.Tensor
    """[layers with experts, batch, length]: by how much the last expert chosen was ahead of the first one not chosen,
    in the scores that decide (softmax plus balancing bias)."""

    def clear(self, margin: float = 2e-6) -> torch.Tensor:
        """[batch, length], bool: tokens whose own routing, and that of every token before, is no near-tie.

        A token that may be routed otherwise changes all that attend to it.
        """
        near = (self.margins < margin).any(dim=0)
        return near.cumsum(dim=-1) == 0


def forward(model: Qwen3Model, tokens: torch.Tensor) -> Forward:
    """Logits of `tokens` ([batch, length], int64), and how clear each routing decision was."""
    margins: list[torch.Tensor] = []

    def note(router: Any, inputs: tuple[Any, ...], outputs: tuple[torch.Tensor, ...]) -> None:
        scores = outputs[2] if inputs[1] is None else outputs[2] + inputs[1]
        best = scores.topk(router.top_k + 1, dim=-1).values
        margins.append(best[..., -2] - best[..., -1])

    hooks = [layer.moe.router.register_forward_hook(note) for layer in model.layers.values() if layer.moe_enabled]
    try:
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        with torch.no_grad():
            logits = model(tokens, positions=positions)
    finally:
        for hook in hooks:
            hook.remove()
    return Forward(logits, torch.stack(margins) if margins else torch.empty(0, *tokens.shape))


def some_tokens(case: Case, length: int = 96, batch: int = 2) -> torch.Tensor:
    """[batch, length] seeded ids of the tokens that the run's tokenizer knows, the last (added) ones among them."""
    generator = torch.Generator().manual_seed(case.seed)
    tokens = torch.randint(0, case.known_tokens, (batch, length), generator=generator)
    tokens[0, 1:5] = torch.arange(case.known_tokens - 4, case.known_tokens)
    return tokens
