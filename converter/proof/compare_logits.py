"""Owns the verdict on two forward passes: what is compared, within which tolerance, and where they first diverge.

Needs torch.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from converter.common import errors

TOLERANCE = 1e-4
"""Largest difference of logits. fp32 on both sides, products of the same blocks: 0.0 was seen on 28 layers; swapping
q_norm and k_norm in one layer moves them by 0.008."""
TIE_MARGIN = 1e-6
"""Router probabilities of the k-th and the next expert nearer than this may be ordered either way by rounding."""
COMPARED_AT_LEAST = 8
"""Positions, however near to ties the others are."""
CHANNELS = 64
"""Of a module's output, about so many are kept, to tell where two passes diverge."""


@dataclass
class Pass:
    """One side's forward pass."""

    positions: int
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    """[positions, vocabulary]"""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """HF's name of each module that holds weights -> some channels of its output, in the order of the pass."""
    whole: dict[str, Tensor] = field(default_factory=dict)
    """Weights that the tokens may not have reached, by HF's name: each expert's answer to a fixed vector, and the products
    of it with every row of a router, and of an embedding that is not the head's."""
    sure: Tensor | None = None
    """[positions], bool: no routing before or at a position is a near-tie. TorchTitan's side only."""
    drift: float | None = None
    """Share of (position, layer) whose experts the balancing bias changes; None without one."""

    def keep(self, name: str, out: Tensor) -> None:
        """Remembers a module's output."""
        flat = out.reshape(self.positions, -1)
        self.outputs[name] = flat[:, :: max(1, flat.shape[1] // CHANNELS)].clone()


@dataclass(frozen=True)
class Fidelity:
    """What the check found: figures for log and events; the verdict is in not having raised."""

    max_abs_difference: float
    kl_divergence: float
    top1_agreement: float
    positions: int
    near_ties: int
    """Positions at or behind a near-tie of routing: where they differ, they are not compared."""


def judge(expected: Pass, got: Pass, staging: Path) -> Fidelity:
    """Compares TorchTitan's pass with HF's. Raises ForwardMismatch with the first module that diverges."""
    x, y, sure = expected.logits, got.logits, expected.sure
    assert sure is not None
    assert x.shape == y.shape
    # Row by row: six copies of whole logits were the peak of all the memory.
    rows = list(zip(x, y, strict=True))
    apart = torch.stack([(a - b).abs().max() for a, b in rows])
    counted = sure | (apart <= TOLERANCE)  # a NaN is no number below the tolerance
    kl = torch.stack(
        [F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="sum") for a, b in rows]
    )
    found = Fidelity(
        max_abs_difference=_largest(apart[counted]), kl_divergence=float(kl[counted].mean()),
        top1_agreement=float((x.argmax(-1) == y.argmax(-1)).float().mean()), positions=len(sure), near_ties=int((~sure).sum()),
    )  # fmt: skip
    unlike = [name for name, one in expected.whole.items() if not _alike(one, got.whole.get(name))]
    enough = int(counted.sum()) >= min(COMPARED_AT_LEAST, len(sure))
    within = bool((apart[counted] <= TOLERANCE).all()) and enough
    check_forward(expected, got, found, staging, unlike=unlike, within=within)
    return found


def check_forward(
    expected: Pass, got: Pass, found: Fidelity, staging: Path, *, unlike: list[str], within: bool
) -> None:
    """Raises ForwardMismatch unless logits are within the tolerance and no weight is another one."""
    if within and not unlike:
        return
    rows = expected.sure if expected.sure is not None and expected.sure.any() else slice(None)
    first = next(
        (name for name, out in got.outputs.items() if name in expected.outputs and not _alike(expected.outputs[name][rows], out[rows])),
        unlike[0] if unlike else "the logits",
    )  # fmt: skip
    raise errors.ForwardMismatch(
        f"TorchTitan's logits and HF's differ by {_largest((expected.logits - got.logits).abs()):.3g} (at most {TOLERANCE:g}), first in {first}"
        + (f"; {len(unlike)} experts, routers or embeddings are others, first {unlike[0]}" if unlike else ""),
        path=staging, hint="the directory was not published; see docs for what each figure means", figures=vars(found) | {"first": first},
    )  # fmt: skip


def _alike(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= TOLERANCE * one.abs().max())


def _largest(apart: Tensor) -> float:
    return float(apart.max()) if apart.numel() else 0.0


def routing_margin(scores: Tensor, top_k: int) -> Tensor:
    """Distance between the k-th and the next expert's score, per position."""
    best = scores.topk(min(top_k + 1, scores.shape[-1]), -1).values
    return best[..., top_k - 1] - best[..., -1] if best.shape[-1] > top_k else torch.ones(scores.shape[:-1])
