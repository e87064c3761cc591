"""Owns TorchTitan's older names: a table of renames, one by one, to those of the installed version (0.3.0).

Standard library only. Between 0.2.2 and 0.3.0 names changed one at a time and runs were written at every point
between, so there is no switch by version. The months are those of 2026 in which TorchTitan's main branch changed.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from converter import errors

RENAMES = (
    (r"layers\.(\d+)\.attention\.w([qkv])\.weight", r"layers.\1.attention.qkv_linear.w\2.weight"),  # 04
    (r"output\.weight", r"lm_head.weight"),  # 04
    (r"layers\.(\d+)\.moe\.expert_bias", r"layers.\1.moe.expert_bias_E"),  # 05
    (r"layers\.(\d+)\.moe\.experts\.w([13])(?:_EFD)?", r"layers.\1.moe.routed_experts.inner_experts.w\2_EFD"),  # 06, 07
    (r"layers\.(\d+)\.moe\.experts\.w2(?:_EDF)?", r"layers.\1.moe.routed_experts.inner_experts.w2_EDF"),  # 06, 07
)
_TABLE = tuple((re.compile(old), new) for old, new in RENAMES)
_REFUSED = (
    (re.compile(r".*\.lora_[ab](\..*)?"), "LoRA weights", "merge the adapter into the model before saving, or export it with TorchTitan"),
    (re.compile(r".*\.wqkv(\..*)?"), "a fused attention projection (TorchTitan between 2026-04-16 and 2026-06-19)", "load the step with that TorchTitan and save it with 0.3.0, which splits it"),
    (re.compile(r".*\.w13(\..*)?"), "a fused SwiGLU projection", "load the step with that TorchTitan and save it with 0.3.0, which splits it"),
)  # fmt: skip


def installed_name(fqn: str) -> str:
    """The name that torchtitan 0.3.0 gives this tensor; a name it has already is its own."""
    for old, new in _TABLE:
        if match := old.fullmatch(fqn):
            return match.expand(new)
    return fqn


def installed_names(fqns: Iterable[str], step: Path) -> dict[str, str]:
    """Installed name -> name in the checkpoint.

    Raises UnsupportedModel for names that are refused by name, UnknownTensor where two names are the same tensor.
    """
    found: dict[str, str] = {}
    for fqn in fqns:
        check_supported(fqn, step)
        name = installed_name(fqn)
        if name in found:
            check_one_name(fqn, found[name], step)
        found[name] = fqn
    return found


def check_supported(fqn: str, step: Path) -> None:
    """Raises UnsupportedModel for a name that is refused by name."""
    for pattern, what, hint in _REFUSED:
        if pattern.fullmatch(fqn):
            raise errors.UnsupportedModel(f"the checkpoint holds {what} ({fqn[:200]!r})", path=step, hint=hint)


def check_one_name(fqn: str, other: str, step: Path) -> None:
    """Called for two names of one tensor: raises UnknownTensor."""
    raise errors.UnknownTensor(
        f"{fqn[:200]!r} and {other[:200]!r} are the same tensor", path=step, hint="find out which one the trainer uses"
    )
