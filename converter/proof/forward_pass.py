"""Owns the forward check: TorchTitan's model and HF's, both whole and both in float32, on the same tokens.

Needs torch. Weights are streamed: each linear layer computes with blocks of rows as they are read, experts come one at
a time, the embedding row by row, so that memory is a block whatever the model's size. TorchTitan's side reads the DCP,
puts its chunks together and casts with torch; HF's reads config, index and HF shards as they stand on disk. The two
share what finds an item's payload, and nothing else. What 16 tokens may not reach (experts, rows of the embedding) is
shown a fixed vector.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from converter.checkpoint import hf_step
from converter.checkpoint.tensor_reader import Shards
from converter.checkpoint.tensors import TensorItems
from converter.common import errors
from converter.common.files import exists, parse_json
from converter.common.io_pacing import Traffic
from converter.common.names_on_disk import INDEX
from converter.families.family import Experts, FamilyModel
from converter.proof.compare_logits import TIE_MARGIN, Pass, routing_margin
from converter.proof.streamed_layers import (
    DCPSource,
    Expert,
    HFExperts,
    HFSource,
    Note,
    Scratch,
    StackedSource,
    TitanExperts,
    WeightSource,
    fill,
    linear,
)

Progress = Callable[[int, int], None]
STRIDE = 8
"""Between two tokens' positions: at position 120, theta 1e6 and head_dim 128, three fifths of rope's pairs have turned by
more than 0.03 rad, and at theta 1e4 (the commonest wrong value) nine tenths."""


def titan_forward(
    family: FamilyModel,
    config: Any,
    tensors: Mapping[str, list[TensorItems]],
    shards: Shards,
    token_ids: list[int],
    dtype: str,
    progress: Progress,
) -> Pass:
    """TorchTitan's model over the checkpoint's tensors (installed name -> items), cast to `dtype` as the export is."""
    model = family.titan_model(config, STRIDE * len(token_ids))
    found = Pass(len(token_ids))
    margins: list[Tensor] = []
    changed: list[Tensor] = []
    with torch.inference_mode():
        sources: dict[str, WeightSource] = {}
        scratch = Scratch()
        for name, items in tensors.items():
            cast = "float32" if family.SPEC.must_be_zero(name) else dtype
            parts = [DCPSource(shards, part, cast, scratch) for part in items]
            sources[name] = parts[0] if len(parts) == 1 else StackedSource(parts)
        _fill_titan(family, model, sources, config, found, shards.step)
        modules = family.modules(len(model.layers))
        for hf_name, name in modules.items():
            _watch(model, name, hf_name, found)
        for done, (index, layer) in enumerate(model.layers.items(), 1):
            layer.register_forward_hook(_tell(progress, done, len(model.layers)))
            if routing := family.routing(index, layer):
                hook = _watch_routing(sources.get(routing.bias), margins, changed)
                routing.router.register_forward_hook(hook)
        found.logits = model(torch.tensor([token_ids]), positions=positions(len(token_ids)))[0]
        for hf_name, name in modules.items():
            if f"{name}.weight" in sources and _is_partly_used(family, hf_name, tied=config.enable_weight_tying):
                _show(sources[f"{name}.weight"], hf_name, found)
        sure = torch.ones(len(token_ids), dtype=torch.bool)
        for margin in margins:
            sure &= margin > TIE_MARGIN
        # Attention carries an unsure token's difference on to all later ones.
        found.sure = sure.cumprod(0).bool()
        found.drift = float(torch.stack(changed).float().mean()) if changed else None
        return found


def positions(count: int) -> Tensor:
    """[1, count], int64: of the check's tokens."""
    return torch.arange(0, STRIDE * count, STRIDE)[None]


def hf_forward(
    family: FamilyModel, config: Any, staging: Path, token_ids: list[int], progress: Progress, traffic: Traffic
) -> Pass:
    """HF's model over the files just written, found as transformers finds them.

    Raises ForwardMismatch where they lack a tensor of the model, or hold another.
    """
    model = family.hf_model(config)
    found = Pass(len(token_ids))
    with torch.inference_mode(), _opened(staging, traffic) as sources:
        used: set[str] = set()

        def weight(name: str) -> WeightSource:
            if name not in sources:
                raise errors.ForwardMismatch(
                    f"HF's model has {name}, the files do not", path=staging, hint="report this; nothing was published"
                )
            used.add(name)
            return sources[name]

        _fill_hf(family, model, weight, config, found, staging)
        layers = model.model.layers
        modules = family.modules(len(layers))
        for name in modules:
            _watch(model, name, name, found)
        for done, layer in enumerate(layers, 1):
            layer.register_forward_hook(_tell(progress, done, len(layers)))
        ids, where = torch.tensor([token_ids]), positions(len(token_ids))
        # With a mask of its own, so that it takes the gaps between positions for no border between two texts.
        got = model(input_ids=ids, position_ids=where, attention_mask=torch.ones_like(ids), use_cache=False)
        found.logits = got.logits[0]
        for name in modules:
            if f"{name}.weight" in sources and _is_partly_used(family, name, tied=config.tie_word_embeddings):
                _show(weight(f"{name}.weight"), name, found)
        if strange := sorted(sources.keys() - used):
            raise errors.ForwardMismatch(
                f"the files hold {strange[0]}, HF's model does not",
                path=staging,
                hint="report this; nothing was published",
            )
        return found


def _tell(progress: Progress, done: int, total: int) -> Callable[..., None]:
    return lambda *_: progress(done, total)


def _watch(model: nn.Module, name: str, hf_name: str, found: Pass) -> None:
    """Keeps the output of a module, if the model has it."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return
    module.register_forward_hook(lambda _m, _a, out: found.keep(hf_name, out[0] if isinstance(out, tuple) else out))


def _is_partly_used(family: FamilyModel, hf_name: str, *, tied: bool) -> bool:
    """Whether logits may not depend on every row: an embedding that is not the head, and a router, whose rows of experts
    that are not chosen cancel out."""
    return family.is_router(hf_name) or (f"{hf_name}.weight" == family.SPEC.hf_embedding and not tied)


def _show(source: WeightSource, name: str, found: Pass) -> None:
    """The product of every row with the fixed vector: rows that no token asked for are seen all the same."""
    found.whole[name] = linear(fixed_vector(source.columns), source)[0]


def fixed_vector(columns: int) -> Tensor:
    """[1, columns], no two elements alike."""
    return torch.sin(torch.arange(1, columns + 1, dtype=torch.float32))[None]


def _watch_routing(bias: WeightSource | None, margins: list[Tensor], changed: list[Tensor]) -> Callable[..., None]:
    """Notes how near a tie each position's routing is, and whether the balancing bias would change it."""

    def hook(module: Any, _args: object, out: tuple[Tensor, Tensor, Tensor]) -> None:
        scores = out[2][0]
        margins.append(routing_margin(scores, module.top_k))
        if bias is not None:
            offsets = bias.read(0, bias.rows)[:, 0]
            plain = scores.topk(module.top_k, -1).indices.sort(-1).values
            biased = (scores + offsets).topk(module.top_k, -1).indices.sort(-1).values
            changed.append((plain != biased).any(-1))

    return hook


def _fill_titan(
    family: FamilyModel, model: nn.Module, sources: Mapping[str, WeightSource], config: Any, found: Pass, step: Path
) -> None:
    """Gives TorchTitan's meta model its weights; whatever stays on meta would fail the forward pass."""
    spec = family.SPEC

    def experts(name: str, module: Any) -> TitanExperts | None:
        if (held := family.titan_experts(name)) is None:
            return None
        project = _projections(held, module.num_experts, sources.__getitem__)
        return TitanExperts(project, module.num_experts, fixed_vector(config.dim), _note(held, found))

    def weight(name: str) -> WeightSource:
        tied = config.enable_weight_tying and name == spec.head and name not in sources
        return sources[spec.embedding if tied else name]

    fill(model, weight, experts, step)
    family.titan_buffers(model)


def _fill_hf(
    family: FamilyModel,
    model: nn.Module,
    source: Callable[[str], WeightSource],
    config: Any,
    found: Pass,
    staging: Path,
) -> None:
    """Gives HF's meta model its weights and buffers."""
    spec = family.SPEC

    def experts(name: str, module: Any) -> HFExperts | None:
        if (held := family.hf_experts(name)) is None:
            return None
        project = _projections(held, module.num_experts, source)
        fixed = fixed_vector(config.hidden_size)
        return HFExperts(project, module.num_experts, module.act_fn, fixed, _note(held, found))

    def weight(name: str) -> WeightSource:
        return source(spec.hf_embedding if config.tie_word_embeddings and name == spec.hf_head else name)

    fill(model, weight, experts, staging)
    family.hf_buffers(model, config)


def _projections(experts: Experts, count: int, source: Callable[[str], WeightSource]) -> Expert:
    held: dict[tuple[str, int], tuple[WeightSource, int]] = {}
    for projection in ("gate", "up", "down"):
        for expert in range(count):
            name, matrix = experts.weight(projection, expert)
            held[projection, expert] = source(name), matrix

    def project(projection: str, expert: int, x: Tensor) -> Tensor:
        weights, matrix = held[projection, expert]
        return linear(x, weights, matrix)

    return project


def _note(experts: Experts, found: Pass) -> Note:
    def note(expert: int, out: Tensor) -> None:
        found.whole[f"{experts.hf_name}.{expert}"] = out

    return note


@contextmanager
def _opened(staging: Path, traffic: Traffic) -> Iterator[dict[str, WeightSource]]:
    """HF name -> its tensor in the HF shards just written, by their own headers and index."""
    index = staging / INDEX
    where = parse_json(index.read_bytes())["weight_map"] if exists(index) else None
    names = sorted(set(where.values())) if where is not None else ["model.safetensors"]
    scratch = Scratch()
    fds = {name: os.open(staging / name, os.O_RDONLY | os.O_CLOEXEC) for name in names}
    try:
        entries = [entry for name in names for entry in hf_step.header(staging / name)[0]]
        yield {
            entry.name: HFSource(fds[entry.file], entry.position, entry.shape, entry.dtype, traffic, scratch)
            for entry in entries
            if where is None or where.get(entry.name) == entry.file
        }
    finally:
        for fd in fds.values():
            os.close(fd)
