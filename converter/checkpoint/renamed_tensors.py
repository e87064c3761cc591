"""Owns the names of tensors: TorchTitan's older names and their names in the installed version (0.3.0), wrapper parts,
and tensors beside the model.

Uses only the standard library. Names changed one at a time between 0.2.2 and 0.3.0, and runs were written at every
point in between. So there is no switch by version. The months are those of 2026 in which TorchTitan's main branch
changed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from converter.common import errors

RENAMES = (
    (r"layers\.(\d+)\.attention\.w([qkv])\.weight", r"layers.\1.attention.qkv_linear.w\2.weight"),  # 04
    (r"output\.weight", r"lm_head.weight"),  # 04
    (r"layers\.(\d+)\.moe\.expert_bias", r"layers.\1.moe.expert_bias_E"),  # 05
    (r"layers\.(\d+)\.moe\.experts\.w([13])(?:_EFD)?", r"layers.\1.moe.routed_experts.inner_experts.w\2_EFD"),  # 06, 07
    (r"layers\.(\d+)\.moe\.experts\.w2(?:_EDF)?", r"layers.\1.moe.routed_experts.inner_experts.w2_EDF"),  # 06, 07
)
_TABLE = tuple((re.compile(old), new) for old, new in RENAMES)
WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""Parts that torch.compile, activation checkpointing and FSDP1 put into names; a plain state dict keeps them (torch 2.13.0)."""
_CONTAINERS = ("model", "module")
"""First parts of names where a script saved `{"model": model.state_dict()}`, or a DDP module; TorchTitan saves without."""
_EMBEDDING = "tok_embeddings.weight"
_MODULES = frozenset({"layers", "tok_embeddings", "norm", "lm_head", "output"})
"""First parts of the names of a Qwen3's tensors, 0.2.0 to 0.3.0."""
_CACHES = re.compile(r"(?:.*\.)?(?:freqs_cis|rope_cache|rope\.cache|inv_freq|tokens_per_expert(?:_E)?)")
"""Buffers within those modules that hold nothing learned: TorchTitan makes them anew, and saves none of them itself."""
_LORA = "LoRA weights"
_REFUSED = (
    (re.compile(r"model\.(?:embed_tokens|layers\.\d+\.(?:self_attn|mlp|\w+_layernorm))\..*"), "tensors under HuggingFace's names", "save TorchTitan's own state dict, or let TorchTitan save its last step with checkpoint.last_save_in_hf"),
    (re.compile(r".*\.lora_[ab](\..*)?"), _LORA, "merge the adapter into the model before saving, or export it with TorchTitan"),
    (re.compile(r".*\.wqkv(\..*)?"), "a fused attention projection (TorchTitan between 2026-04-16 and 2026-06-19)", "load the step with that TorchTitan and save it with 0.3.0, which splits it"),
    (re.compile(r".*\.w13(\..*)?"), "a fused SwiGLU projection", "load the step with that TorchTitan and save it with 0.3.0, which splits it"),
)  # fmt: skip


def installed_name(fqn: str) -> str:
    """The name that torchtitan 0.3.0 gives this tensor; a name it has already is its own."""
    for old, new in _TABLE:
        if match := old.fullmatch(fqn):
            return match.expand(new)
    return fqn


def plain_names(fqns: Iterable[str]) -> dict[str, str]:
    """Name in the checkpoint -> the same without wrapper parts, and without the container that the whole model lies in."""
    plain = {fqn: ".".join(part for part in fqn.split(".") if part not in WRAPPERS) for fqn in fqns}
    names = {*plain.values()}
    whole = [f"{part}." for part in _CONTAINERS if f"{part}.{_EMBEDDING}" in names and _EMBEDDING not in names]
    container = whole[0] if len(whole) == 1 else ""  # beside a model, `model.` holds another (a teacher)
    return {fqn: name.removeprefix(container) for fqn, name in plain.items()}


def taken_off(fqns: Iterable[str]) -> list[str]:
    """Every part that `plain_names` takes off one of these names, sorted."""
    changed = [(fqn.split("."), name.split(".")) for fqn, name in plain_names(fqns).items() if fqn != name]
    return sorted({part for parts, kept in changed for part in Counter(parts) - Counter(kept)})


def ignored(fqns: Iterable[str], patterns: Sequence[str], step: Path) -> list[str]:
    """The names of tensors beside the model that one of these shell patterns matches, sorted.

    Raises IgnoredModelTensor where a pattern matches a tensor of the model.
    """
    plain = plain_names(fqns)
    found = sorted(fqn for fqn in plain if any(fnmatchcase(fqn, pattern) for pattern in patterns))
    for fqn in found:
        check_beside(fqn, plain[fqn], step)
    return found


def check_beside(fqn: str, name: str, step: Path) -> None:
    """An ignored tensor lies beside the model: neither one of its modules' own, nor what changes them (LoRA), stored
    elsewhere. Raises IgnoredModelTensor, UnsupportedModel."""
    lora, what, hint = next(entry for entry in _REFUSED if entry[1] == _LORA)
    if lora.fullmatch(name):
        raise errors.UnsupportedModel(f"the checkpoint holds {what} ({fqn[:200]!r})", path=step, hint=hint)
    if name.partition(".")[0] in _MODULES and not _CACHES.fullmatch(name):
        raise errors.IgnoredModelTensor(
            f"a pattern of --ignore-tensors matches a tensor of the model ({fqn[:200]!r})",
            path=step,
            hint="narrow --ignore-tensors to what lies beside the model",
        )


def installed_names(fqns: Iterable[str], step: Path) -> dict[str, str]:
    """Installed name -> name in the checkpoint.

    Raises UnsupportedModel for names that are refused by name, UnknownTensor where two names are the same tensor.
    """
    found: dict[str, str] = {}
    for fqn, plain in plain_names(fqns).items():
        check_supported(plain, step)
        name = installed_name(plain)
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
