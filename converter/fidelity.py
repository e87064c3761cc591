"""Owns the forward check: TorchTitan's model and HF's, both whole and both in float32, on the same tokens.

Needs torch. Weights are streamed: each linear layer computes with blocks of rows as they are read, experts come one at
a time, the embedding row by row, so that memory is a block whatever the model's size. TorchTitan's side reads the DCP
and casts with torch; HF's reads the files just written: the two share no code but the readers.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converter import errors, qwen3
from converter.chunks import Shards
from converter.exports import HFShard
from converter.storage import TensorItems
from converter.streamed import DCPSource, HFExperts, HFSource, Source, StackedSource, TitanExperts, fill, linear

POSITIONS = 32
"""Tokens of the check: rope's slowest angle that matters at theta 1e6 has turned by then."""
TOLERANCE = 1e-4
"""Largest difference of logits. fp32 on both sides, products of the same blocks: 0.0 was seen on 28 layers; swapping
q_norm and k_norm in one layer moves them by 0.008."""
LEAST_SURE = 16
"""Positions that must be compared: with fewer, a wrong rope could hide behind a near-tie."""
TIE_MARGIN = 1e-6
"""Router probabilities of the k-th and the next expert nearer than this may be ordered either way by rounding."""


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fidelity:
    """What the check found: figures for log and events; the verdict is in not having raised."""

    max_abs_difference: float
    kl_divergence: float
    top1_agreement: float
    positions: int
    """Positions compared."""
    near_ties: int
    """Positions at or after one whose routing is a near-tie in some layer."""


@dataclass
class Pass:
    """One side's forward pass: logits (positions x vocabulary), what each part put out, and which positions are sure."""

    logits: Tensor
    trace: dict[str, Tensor]
    """ "layer 3 attention", "layer 3 feed-forward", "layer 3", … in the order of the pass -> positions x hidden."""
    sure: Tensor | None = None
    drift: float | None = None
    """Share of (position, layer) whose experts the balancing bias changes; None without one."""


def titan_forward(
    config: Any,
    tensors: Mapping[str, list[TensorItems]],
    shards: Shards,
    token_ids: list[int],
    dtype: str,
    progress: Progress,
) -> Pass:
    """TorchTitan's model over the checkpoint's tensors (installed name -> items), cast to `dtype` as the export is."""
    model = qwen3.titan_model(config, len(token_ids))
    margins: list[Tensor] = []
    changed: list[Tensor] = []
    trace: dict[str, Tensor] = {}
    with torch.inference_mode():
        sources: dict[str, Source] = {}
        for name, items in tensors.items():
            cast = "float32" if name.endswith(qwen3.BIAS) else dtype
            parts = [DCPSource(shards, part, cast) for part in items]
            sources[name] = parts[0] if len(parts) == 1 else StackedSource(parts)
        _fill_titan(model, sources, config)
        for index, layer in model.layers.items():
            feed_forward = layer.moe if layer.moe_enabled else layer.feed_forward
            _follow(trace, int(index), (layer.attention, feed_forward, layer), len(model.layers), progress)
            if layer.moe_enabled:
                bias = sources.get(f"layers.{index}{qwen3.BIAS}")
                layer.moe.router.register_forward_hook(_watch_routing(bias, margins, changed))
        logits = model(torch.tensor([token_ids]), positions=torch.arange(len(token_ids))[None])[0]
        sure = torch.ones(len(token_ids), dtype=torch.bool)
        for margin in margins:
            sure &= margin > TIE_MARGIN
        # Attention carries an unsure token's difference on to all later ones.
        drift = float(torch.stack(changed).float().mean()) if changed else None
        return Pass(logits, trace, sure.cumprod(0).bool(), drift)


def hf_forward(
    config: Any, staging: Path, files: list[HFShard], tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    token_ids: list[int], progress: Progress,
) -> Pass:  # fmt: skip
    """HF's model over the files just written. `tensors`: HF name -> (dtype, shape) in the file."""
    model = qwen3.hf_model(config)
    trace: dict[str, Tensor] = {}
    with torch.inference_mode(), _HFFiles(staging, files) as fds:
        sources = {
            name: HFSource(fds[shard.name], position, tensors[name][1], tensors[name][0])
            for shard in files
            for name, position in shard.positions.items()
        }
        _fill_hf(model, sources, config)
        for index, layer in enumerate(model.model.layers):
            _follow(trace, index, (layer.self_attn, layer.mlp, layer), len(model.model.layers), progress)
        return Pass(model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0], trace)


def _follow(
    trace: dict[str, Tensor], index: int, parts: tuple[nn.Module, ...], layers: int, progress: Progress
) -> None:
    """Keeps what a layer's attention, its feed-forward and itself put out."""

    def keep(name: str, out: Any) -> None:
        trace[name] = (out[0] if isinstance(out, tuple) else out)[0]

    names = (f"layer {index} attention", f"layer {index} feed-forward", f"layer {index}")
    for name, part in zip(names, parts, strict=True):
        part.register_forward_hook(lambda _module, _args, out, name=name: keep(name, out))
    parts[-1].register_forward_hook(lambda *_: progress(index + 1, layers))


def _watch_routing(bias: Source | None, margins: list[Tensor], changed: list[Tensor]) -> Callable[..., None]:
    """Notes how near a tie each position's routing is, and whether the balancing bias would change it."""

    def hook(module: Any, _args: object, out: tuple[Tensor, Tensor, Tensor]) -> None:
        scores = out[2][0]
        margins.append(_margin(scores, module.top_k))
        if bias is not None:
            offsets = bias.read(0, bias.rows)[:, 0]
            plain = scores.topk(module.top_k, -1).indices.sort(-1).values
            biased = (scores + offsets).topk(module.top_k, -1).indices.sort(-1).values
            changed.append((plain != biased).any(-1))

    return hook


def _margin(scores: Tensor, top_k: int) -> Tensor:
    """Distance between the k-th and the next expert's score, per position."""
    best = scores.topk(min(top_k + 1, scores.shape[-1]), -1).values
    return best[..., top_k - 1] - best[..., -1] if best.shape[-1] > top_k else torch.ones(scores.shape[:-1])


def judge(expected: Pass, got: Pass, staging: Path) -> Fidelity:
    """Compares the two passes. Raises ForwardMismatch with the first part that diverges.

    Positions from the first near-tie in routing on may differ; all before it (at least LEAST_SURE) may not.
    """
    x, y, sure = expected.logits, got.logits, expected.sure
    assert sure is not None
    difference = (x - y).abs().amax(-1)
    near = difference <= TOLERANCE  # a NaN is not
    compared = torch.ones_like(sure) if near.all() else sure
    kl = F.kl_div(y.log_softmax(-1), x.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    found = Fidelity(
        max_abs_difference=float(difference[compared].max()) if compared.any() else float("nan"),
        kl_divergence=float(kl[compared].mean()), positions=int(compared.sum()), near_ties=int((~sure).sum()),
        top1_agreement=float((x.argmax(-1) == y.argmax(-1))[compared].float().mean()),
    )  # fmt: skip
    if int(compared.sum()) < min(LEAST_SURE, len(sure)) or not near[compared].all():
        where, by = _first_divergence(expected.trace, got.trace, compared)
        raise errors.ForwardMismatch(
            f"TorchTitan's logits and HF's differ by {float(difference.max()):.3g} (at most {TOLERANCE:g}); first in {where}, by {by:.3g}",
            path=staging, hint="the directory was not published; docs/checks.md says what each figure means",
            figures=vars(found) | {"diverges_in": where},
        )  # fmt: skip
    return found


def _first_divergence(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], compared: Tensor) -> tuple[str, float]:
    """The first part whose output differs, and by how much, relative to its largest value."""
    for name, one in expected.items():
        largest = (one - got[name])[compared].abs().max() if compared.any() else torch.tensor(0.0)
        relative = largest / one.abs().max().clamp(min=1.0)
        if not relative <= TOLERANCE / 10:
            return name, float(relative)
    return "the head", float("nan")


def _fill_titan(model: nn.Module, sources: Mapping[str, Source], config: Any) -> None:
    """Gives TorchTitan's meta model its weights; whatever stays on meta would fail the forward pass."""

    def experts(prefix: str, module: Any) -> TitanExperts:
        names = {"gate": f"{prefix}.w1_EFD", "down": f"{prefix}.w2_EDF", "up": f"{prefix}.w3_EFD"}
        return TitanExperts(lambda part, expert, x: linear(x, sources[names[part]], expert), module.num_experts)

    def weight(name: str) -> Source:
        tied = config.enable_weight_tying and name == qwen3.HEAD and name not in sources
        return sources[qwen3.EMBEDDING if tied else name]

    fill(model, weight, lambda name, module: experts(name, module) if name.endswith(".inner_experts") else None)
    for name, module in model.named_modules():
        if name.endswith(".rope"):
            module._init_self_buffers(buffer_device=torch.device("cpu"))
            module.cache = module._precompute_cache()
        elif name.endswith(".moe"):
            module._init_self_buffers(buffer_device=torch.device("cpu"))


def _fill_hf(model: nn.Module, sources: Mapping[str, Source], config: Any) -> None:
    """Gives HF's meta model its weights and a rotary embedding made anew on the CPU."""

    def experts(prefix: str) -> HFExperts:
        return HFExperts(lambda part, expert, x: linear(x, sources[f"{prefix}.{expert}.{part}_proj.weight"]))

    def weight(name: str) -> Source:
        return sources["model.embed_tokens.weight" if config.tie_word_embeddings and name == "lm_head.weight" else name]

    fill(model, weight, lambda name, module: experts(name) if name.endswith(".mlp.experts") else None)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)


class _HFFiles(AbstractContextManager[dict[str, int]]):
    """The HF shards just written, open for reading."""

    def __init__(self, staging: Path, files: list[HFShard]):
        self._paths = {shard.name: staging / shard.name for shard in files}

    def __enter__(self) -> dict[str, int]:
        self._fds = {name: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for name, path in self._paths.items()}
        return self._fds

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)
