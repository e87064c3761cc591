"""Owns layers whose weights are read as they are used: linear by blocks of rows, experts one at a time, embedding by rows.

Needs torch. Everything around them (attention, norms, rope, routing, wiring) stays TorchTitan's or transformers' own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converter.checkpoint.tensor_reader import Shards, boxes
from converter.checkpoint.tensors import Chunk, TensorItems
from converter.common import errors
from converter.common.dtypes import SAFETENSORS
from converter.common.files import read_into
from converter.common.io_pacing import Traffic

BLOCK = 1 << 20
"""Bytes of float32 rows that a linear layer holds at a time."""


class WeightSource(Protocol):
    """Rows of one weight in float32: the DCP's on one side, the HF file's on the other."""

    rows: int
    columns: int

    def read(self, first: int, last: int, matrix: int = 0) -> Tensor:
        """Rows `first` to `last` (one past) of a matrix, float32; valid until the next read with the same Scratch."""


class Scratch:
    """The memory that one pass reads all its rows into, held until the pass is over.

    Were it freed and asked for again, what the pass keeps in between (outputs, experts' answers) would be cut out of it, and the
    next block need memory of its own: 1.5 GB for 640 experts. Not for two threads.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, use: str, size: int) -> Tensor:
        """`size` bytes, uint8; what `use` was given before is overwritten."""
        held = self._held.get(use)
        if held is None or held.numel() < size:
            held = self._held[use] = torch.empty(max(size, BLOCK), dtype=torch.uint8)
        return held[:size]

    def cast(self, values: Tensor, dtype: torch.dtype, use: str) -> Tensor:
        """The values in another dtype, or as they are."""
        if values.dtype == dtype:
            return values
        return self.take(use, values.numel() * dtype.itemsize).view(dtype).view(values.shape).copy_(values)


class DCPSource:
    """Rows of a tensor as the checkpoint holds them, put together and cast to the export's dtype by torch."""

    def __init__(self, shards: Shards, tensor: TensorItems, cast: str, scratch: Scratch):
        self._shards, self._dtype, self._cast = shards, getattr(torch, tensor.dtype), getattr(torch, cast)
        self._scratch = scratch
        self._stacked = len(tensor.shape) == 3
        shape = tensor.shape[1:] if self._stacked else tensor.shape
        self.rows, self.columns = shape if len(shape) == 2 else (shape[0], 1)
        located = boxes(shards, tensor)
        self._chunks = [
            (self._begins(chunk), self._ends(chunk), box.payload)
            for chunk, box in zip(tensor.chunks, located, strict=True)
        ]

    def read(self, first: int, last: int, matrix: int = 0) -> Tensor:
        shape = (last - first, self.columns)
        out: Tensor | None = None
        for (slab, top, left), (behind, bottom, right), payload in self._chunks:
            low, high, width = max(first, top), min(last, bottom), right - left
            if not slab <= matrix < behind or low >= high:
                continue
            before = (matrix - slab) * (bottom - top) + low - top
            size = width * self._dtype.itemsize
            raw = self._scratch.take("raw", (high - low) * size)
            self._shards.pread_into(payload.file, raw.numpy(), payload.position + before * size)
            part = raw.view(self._dtype).view(high - low, width)
            if part.shape == shape:
                out = part
                break
            if out is None:
                whole = self._scratch.take("whole", shape[0] * shape[1] * self._dtype.itemsize)
                out = whole.view(self._dtype).view(shape)
            out[low - first : high - first, left:right] = part
        assert out is not None
        return self._scratch.cast(self._scratch.cast(out, self._cast, "cast"), torch.float32, "wide")

    def _begins(self, chunk: Chunk) -> tuple[int, ...]:
        """(matrix, row, column) of a chunk's first element."""
        return self._in_rows(chunk.offsets, 0)

    def _ends(self, chunk: Chunk) -> tuple[int, ...]:
        return self._in_rows(tuple(o + n for o, n in zip(chunk.offsets, chunk.sizes, strict=True)), 1)

    def _in_rows(self, numbers: tuple[int, ...], missing: int) -> tuple[int, ...]:
        stacked = numbers if self._stacked else (missing, *numbers)
        return stacked if len(stacked) == 3 else (*stacked, missing)


class StackedSource:
    """Matrices that are tensors of their own, as a step in HF form holds experts."""

    def __init__(self, parts: list[DCPSource]):
        self._parts = parts
        self.rows, self.columns = parts[0].rows, parts[0].columns

    def read(self, first: int, last: int, matrix: int = 0) -> Tensor:
        return self._parts[matrix].read(first, last)


class HFSource:
    """Rows of a tensor as the HF shard just written holds them."""

    def __init__(self, fd: int, position: int, shape: tuple[int, ...], dtype: str, traffic: Traffic, scratch: Scratch):
        self._traffic, self._scratch = traffic, scratch
        self._fd, self._position, self._dtype = fd, position, getattr(torch, dtype)
        self.rows, self.columns = shape[0], shape[1] if len(shape) > 1 else 1
        self._item = SAFETENSORS[dtype][1]

    def read(self, first: int, last: int, matrix: int = 0) -> Tensor:
        raw = self._scratch.take("raw", (last - first) * self.columns * self._item)
        at = self._position + first * self.columns * self._item
        if read_into(self._fd, raw.numpy().data, at) != raw.numel():
            raise OSError("a HF shard is shorter than its header says")
        self._traffic(self._fd, at, raw.numel())
        return self._scratch.cast(raw.view(self._dtype), torch.float32, "wide").view(-1, self.columns)


def linear(x: Tensor, source: WeightSource, matrix: int = 0) -> Tensor:
    """x @ W.T with W in blocks of rows."""
    step = max(1, BLOCK // (4 * source.columns))
    out = x.new_empty(*x.shape[:-1], source.rows)  # parts that stayed between the blocks would split the heap: 600 MB
    for row in range(0, source.rows, step):
        last = min(row + step, source.rows)
        out[..., row:last] = F.linear(x, source.read(row, last, matrix))
    return out


class StreamedLinear(nn.Module):
    """Takes the place of the linear layer `name` of a model that `where` holds; its weight is read as it is used.

    Raises UnsupportedModel where the layer has a bias, which would be left out.
    """

    def __init__(self, layer: nn.Linear, source: WeightSource, name: str, where: Path):
        super().__init__()
        if layer.bias is not None:
            raise errors.UnsupportedModel(
                f"{name} has a bias, which the forward check does not compute",
                path=where,
                hint="a model with biases on its linear layers is not converted",
            )
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.source)


class StreamedEmbedding(nn.Module):
    """An embedding of which only the rows asked for are read."""

    def __init__(self, source: WeightSource):
        super().__init__()
        self.source = source

    def forward(self, ids: Tensor) -> Tensor:
        rows = [self.source.read(int(i), int(i) + 1).clone() for i in ids.flatten()]
        return torch.cat(rows).view(*ids.shape, -1)


Expert = Callable[[str, int, Tensor], Tensor]
"""(projection "gate" | "up" | "down", expert, x) -> x @ W.T"""


Note = Callable[[int, Tensor], None]
"""expert, its answer to the fixed vector"""


class TitanExperts(nn.Module):
    """TorchTitan's GroupedExperts with products in float32: 0.3.0 multiplies in bfloat16 whatever the weights' dtype.

    Each expert is shown the vector `fixed` as well: tokens may reach none of it.
    """

    def __init__(self, project: Expert, num_experts: int, fixed: Tensor, note: Note):
        super().__init__()
        self.project, self.num_experts, self.fixed, self.note = project, num_experts, fixed, note

    def forward(self, x_RD: Tensor, num_tokens_per_expert_E: Tensor) -> Tensor:
        parts = []
        for expert, rows in enumerate(x_RD.split([int(n) for n in num_tokens_per_expert_E])):
            x = torch.cat([rows, self.fixed])
            gate, up = self.project("gate", expert, x), self.project("up", expert, x)
            out = self.project("down", expert, F.silu(gate) * up)
            self.note(expert, out[-1].clone())
            parts.append(out[:-1])
        return torch.cat(parts)


class HFExperts(nn.Module):
    """transformers' experts (5.23, the plain implementation), one at a time; each is shown the vector `fixed` as well."""

    def __init__(
        self, project: Expert, num_experts: int, act_fn: Callable[[Tensor], Tensor], fixed: Tensor, note: Note
    ):
        super().__init__()
        self.project, self.num_experts, self.act_fn, self.fixed, self.note = project, num_experts, act_fn, fixed, note

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            token, slot = torch.where(top_k_index == expert)
            x = torch.cat([hidden_states[token], self.fixed])
            out = self.project(
                "down", expert, self.act_fn(self.project("gate", expert, x)) * self.project("up", expert, x)
            )
            self.note(expert, out[-1].clone())
            result.index_add_(0, token, out[:-1] * top_k_weights[token, slot, None])
        return result


def fill(
    model: nn.Module,
    weight: Callable[[str], WeightSource],
    special: Callable[[str, nn.Module], nn.Module | None],
    where: Path,
) -> None:
    """Gives every module of a meta model its weights, which `where` holds: `weight` has them by name, `special` makes
    the modules that are none of torch's. Raises UnsupportedModel where a linear layer has a bias."""
    for name, module in list(model.named_modules()):
        parent = model.get_submodule(name.rpartition(".")[0]) if name else model
        leaf = name.rpartition(".")[2]
        if replaced := special(name, module):
            setattr(parent, leaf, replaced)
        elif isinstance(module, nn.Linear):
            setattr(parent, leaf, StreamedLinear(module, weight(f"{name}.weight"), name, where))
        elif isinstance(module, nn.Embedding):
            setattr(parent, leaf, StreamedEmbedding(weight(f"{name}.weight")))
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            source = weight(f"{name}.weight")
            values = source.read(0, source.rows).clone()
            module.weight = nn.Parameter(values if module.weight.dim() == 2 else values[:, 0], requires_grad=False)
