"""Owns layers whose weights are read as they are used: linear by blocks of rows, experts one at a time, embedding by rows.

Needs torch. Everything around them (attention, norms, rope, routing, wiring) stays TorchTitan's or transformers' own.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converter.chunks import Band, Shards, boxes
from converter.exports import SAFETENSORS
from converter.storage import TensorItems

BLOCK = 8 << 20
"""Bytes of float32 rows that a linear layer holds at a time."""


class Source(Protocol):
    """Rows of one weight in float32: the DCP's on one side, the HF file's on the other."""

    rows: int
    columns: int

    def read(self, first: int, last: int, matrix: int = 0) -> Tensor:
        """Rows `first` to `last` (one past) of a matrix, float32."""


def _to_tensor(raw: np.ndarray[Any, np.dtype[np.uint8]], dtype: str) -> Tensor:
    return torch.from_numpy(raw).view(getattr(torch, dtype))


class DCPSource:
    """Rows of a tensor as the checkpoint holds them, cast to the export's dtype by torch."""

    def __init__(self, shards: Shards, tensor: TensorItems, cast: str):
        self._band = Band(shards, tensor, boxes(shards, tensor))
        self._dtype, self._cast = tensor.dtype, cast
        self.rows, self.columns = self._band.rows, self._band.columns

    def read(self, first: int, last: int, matrix: int = 0) -> Tensor:
        raw = np.empty((last - first) * self.columns * self._band.item_bytes, np.uint8)
        self._band.fill(matrix, first, raw)
        tensor = _to_tensor(raw, self._dtype)
        return tensor.to(getattr(torch, self._cast)).float().view(-1, self.columns)


class StackedSource:
    """Matrices that are tensors of their own, as a step in HF form holds experts."""

    def __init__(self, parts: list[DCPSource]):
        self._parts = parts
        self.rows, self.columns = parts[0].rows, parts[0].columns

    def read(self, first: int, last: int, matrix: int = 0) -> Tensor:
        return self._parts[matrix].read(first, last)


class HFSource:
    """Rows of a tensor as the HF shard just written holds them."""

    def __init__(self, fd: int, position: int, shape: tuple[int, ...], dtype: str):
        self._fd, self._position, self._dtype = fd, position, dtype
        self.rows, self.columns = shape[0], shape[1] if len(shape) > 1 else 1
        self._item = SAFETENSORS[dtype][1]

    def read(self, first: int, last: int, matrix: int = 0) -> Tensor:
        raw = np.empty((last - first) * self.columns * self._item, np.uint8)
        at = self._position + first * self.columns * self._item
        if os.preadv(self._fd, [raw.data], at) != raw.size:
            raise OSError("a HF shard is shorter than its header says")
        return _to_tensor(raw, self._dtype).float().view(-1, self.columns)


def linear(x: Tensor, source: Source, matrix: int = 0) -> Tensor:
    """x @ W.T with W in blocks of rows."""
    step = max(1, BLOCK // (4 * source.columns))
    parts = [F.linear(x, source.read(row, min(row + step, source.rows), matrix)) for row in range(0, source.rows, step)]
    return torch.cat(parts, -1)


class StreamedLinear(nn.Module):
    """A linear layer whose weight is read as it is used."""

    def __init__(self, source: Source):
        super().__init__()
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.source)


class StreamedEmbedding(nn.Module):
    """An embedding of which only the rows asked for are read."""

    def __init__(self, source: Source):
        super().__init__()
        self.source = source

    def forward(self, ids: Tensor) -> Tensor:
        rows = [self.source.read(int(i), int(i) + 1) for i in ids.flatten()]
        return torch.cat(rows).view(*ids.shape, -1)


Expert = Callable[[str, int, Tensor], Tensor]
"""(projection "gate" | "up" | "down", expert, x) -> x @ W.T"""


def _expert(project: Expert, expert: int, x: Tensor) -> Tensor:
    return project("down", expert, F.silu(project("gate", expert, x)) * project("up", expert, x))


class TitanExperts(nn.Module):
    """TorchTitan's GroupedExperts with products in float32: 0.3.0 multiplies in bfloat16 whatever the weights' dtype."""

    def __init__(self, project: Expert, num_experts: int):
        super().__init__()
        self.project, self.num_experts = project, num_experts

    def forward(self, x_RD: Tensor, num_tokens_per_expert_E: Tensor) -> Tensor:
        counts = [int(n) for n in num_tokens_per_expert_E]
        parts = [_expert(self.project, e, x) if len(x) else x for e, x in enumerate(x_RD.split(counts))]
        return torch.cat(parts)


class HFExperts(nn.Module):
    """transformers' experts (5.23, the plain implementation), one at a time."""

    def __init__(self, project: Expert):
        super().__init__()
        self.project = project

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            token, slot = torch.where(top_k_index == expert)
            part = _expert(self.project, expert, hidden_states[token]) * top_k_weights[token, slot, None]
            out.index_add_(0, token, part)
        return out


def fill(
    model: nn.Module, weight: Callable[[str], Source], special: Callable[[str, nn.Module], nn.Module | None]
) -> None:
    for name, module in list(model.named_modules()):
        parent = model.get_submodule(name.rpartition(".")[0]) if name else model
        leaf = name.rpartition(".")[2]
        if replaced := special(name, module):
            setattr(parent, leaf, replaced)
        elif isinstance(module, nn.Linear):
            setattr(parent, leaf, StreamedLinear(weight(f"{name}.weight")))
        elif isinstance(module, nn.Embedding):
            setattr(parent, leaf, StreamedEmbedding(weight(f"{name}.weight")))
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            source = weight(f"{name}.weight")
            values = source.read(0, source.rows)
            module.weight = nn.Parameter(values if module.weight.dim() == 2 else values[:, 0], requires_grad=False)
