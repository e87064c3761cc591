"""Owns the names of tensors that are TorchTitan's, whatever the family: wrapper parts, models that are stored in another
form, and tensors beside the model.

Uses only the standard library.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from converter.common import errors

WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""Parts that torch.compile, activation checkpointing and FSDP1 put into names; a plain state dict keeps them (torch 2.13.0)."""
_CONTAINERS = ("model", "module")
"""First parts of names where a script saved `{"model": model.state_dict()}`, or a DDP module; TorchTitan saves without."""
EMBEDDING, HEADS = "tok_embeddings.weight", ("output.weight", "lm_head.weight")
"""Of a decoder; the head by its name in 0.2.0 and in 0.3.0."""
_MODULES = frozenset({"layers", "tok_embeddings", "norm", "lm_head", "output"})
"""First parts of the names of a decoder's tensors, 0.2.0 to 0.3.0."""
_CACHES = re.compile(r"(?:.*\.)?(?:freqs_cis|rope_cache|rope\.cache|inv_freq|tokens_per_expert(?:_E)?)")
"""Buffers within those modules that hold nothing learned: TorchTitan makes them anew, and saves none of them itself."""
_LORA = "LoRA weights"
_REFUSED = (
    (re.compile(r"model\.(?:embed_tokens|layers\.\d+\.(?:self_attn|mlp|\w+_layernorm))\..*"), "tensors under HuggingFace's names", "save TorchTitan's own state dict, or let TorchTitan save its last step with checkpoint.last_save_in_hf"),
    (re.compile(r".*\.lora_[ab](\..*)?"), _LORA, "merge the adapter into the model before saving, or export it with TorchTitan"),
    (re.compile(r".*\.wqkv(\..*)?"), "a fused attention projection (TorchTitan between 2026-04-16 and 2026-06-19)", "load the step with that TorchTitan and save it with 0.3.0, which splits it"),
    (re.compile(r".*\.w13(\..*)?"), "a fused SwiGLU projection", "load the step with that TorchTitan and save it with 0.3.0, which splits it"),
)  # fmt: skip


def plain_names(fqns: Iterable[str]) -> dict[str, str]:
    """Name in the checkpoint -> the same without wrapper parts, and without the container that the whole model lies in."""
    plain = {fqn: ".".join(part for part in fqn.split(".") if part not in WRAPPERS) for fqn in fqns}
    names = {*plain.values()}
    whole = [f"{part}." for part in _CONTAINERS if f"{part}.{EMBEDDING}" in names and EMBEDDING not in names]
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


def check_supported(fqn: str, step: Path) -> None:
    """Raises UnsupportedModel for a name that is refused by name."""
    for pattern, what, hint in _REFUSED:
        if pattern.fullmatch(fqn):
            raise errors.UnsupportedModel(f"the checkpoint holds {what} ({fqn[:200]!r})", path=step, hint=hint)
