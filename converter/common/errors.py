"""Owns the tree of expected failures: each says what happened, to which path, and what to do.

Standard library only: the daemon imports it too. Exit codes are `converter.cli.main`'s alone.
"""

import errno
import os
from enum import StrEnum
from typing import Any, ClassVar


class Retry(StrEnum):
    """What a caller that tries again should expect; the daemon's queue is driven by it."""

    NEVER = "never"
    """The same input gives the same refusal: quarantined at once."""
    BACKOFF = "backoff"
    """The machine or the file system failed, or what is asked for is not there: later may go better."""
    SPACE = "space"
    """No room: pause the queue, burn no attempt."""
    CONFIG = "config"
    """The run config is missing or half-written: waited for within `config_grace`."""
    VANISHED = "vanished"
    """The step is gone, or another save of it came: look again."""
    INCOMPLETE = "incomplete"
    """The checkpoint is still being written."""
    SUSPECT = "suspect"
    """All bytes are there, but a copy and a save that died look the same."""
    UNSUPPORTED = "unsupported"
    """Nothing of this run can be converted: said once per run."""
    FOREIGN = "foreign"
    """The published name belongs to somebody else."""


_LONGEST = 2000
"""Characters of a message: what it quotes was written by other people."""


class ConversionError(Exception):
    """Base of every expected failure. `str(error)` is one sentence with the path in it."""

    retry: ClassVar[Retry] = Retry.NEVER

    def __init__(self, what: str, *, path: str | os.PathLike[str], hint: str, figures: dict[str, Any] | None = None):
        self.what = brief(what)
        super().__init__(f"{self.what}: {printable(os.fspath(path))}")
        self.path = os.fspath(path)
        self.hint = hint
        self.figures = figures or {}

    def as_event(self) -> dict[str, Any]:
        """The fields of a `conversion_failed` event, all JSON."""
        return {
            "error": type(self).__name__,
            "message": self.what,
            "path": self.path,
            "hint": self.hint,
            "retry": str(self.retry),
            **({"figures": self.figures} if self.figures else {}),
        }


def printable(text: str) -> str:
    """`text` without line breaks or terminal escapes: names of files and tensors come from other people."""
    return text if text.isprintable() else ascii(text)[1:-1]


def brief(text: str) -> str:
    """`text` as messages have it: printable, and not without end."""
    return printable(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …")


# The step itself
class StepIncomplete(ConversionError):
    """`.metadata` or a DCP shard is missing or short: the save is not finished."""

    retry = Retry.INCOMPLETE


class StepSuspect(ConversionError):
    """The files of a step may be of two saves: a copy, a save that died over an older one, or a mirror in parts."""

    retry = Retry.SUSPECT


class StepVanished(ConversionError):
    """The step was purged, or saved again, while it was being read."""

    retry = Retry.VANISHED


class StepDamaged(ConversionError):
    """Storage metadata or a DCP shard does not say what a checkpoint says."""


class HostileCheckpoint(ConversionError):
    """Something in the checkpoint would run code, or leave its directory."""


class UnknownObject(ConversionError):
    """The checkpoint asks for an object that TorchTitan's do not hold; nothing of it was run."""


class MetadataLimit(ConversionError):
    """Reading `.metadata` took more memory or time than is allowed for its size."""


class NoModelInStep(ConversionError):
    """The checkpoint holds no model tensors (optimizer or dataloader only)."""


class UnsupportedFormat(ConversionError):
    """A checkpoint form this version does not read: `torch_checkpointing`, links in a step, stream transforms."""

    retry = Retry.UNSUPPORTED


class UnsupportedModel(ConversionError):
    """LoRA, fused names, or another family: HF cannot be given this model as it is stored."""

    retry = Retry.UNSUPPORTED


class RoutingDrift(ConversionError):
    """A balancing bias is not zero: HF's model would route tokens otherwise."""

    retry = Retry.UNSUPPORTED


class IgnoredModelTensor(ConversionError):
    """A pattern of `ignore_tensors` matches a tensor of the model."""

    retry = Retry.UNSUPPORTED


# What the run says of itself
class RunConfigMissing(ConversionError):
    """No run config in any of the places where one is looked for."""

    retry = Retry.CONFIG


class RunConfigUnreadable(ConversionError):
    """A run config that is half-written, some other JSON, or too large."""

    retry = Retry.CONFIG


class AssetsMissing(ConversionError):
    """Base assets or tokenizer are not where the run config says."""

    retry = Retry.BACKOFF


class AssetsNotConfigured(ConversionError):
    """The run config names no base assets or tokenizer, or `restrict_assets` does not allow those it names."""


class AssetsInvalid(ConversionError):
    """Base assets or tokenizer do not parse, or are another architecture's."""


class ArchitectureMismatch(ConversionError):
    """Base assets, run record and tensors do not describe the same model."""


class VocabularyMismatch(ConversionError):
    """Embedding rows, recorded vocabulary and tokenizer do not fit together."""


class TokenizerMismatch(ConversionError):
    """transformers makes other ids or special tokens of the tokenizer's files than TorchTitan trained with."""


# The tensors
class UnknownTensor(ConversionError):
    """A tensor that no rename and no adapter accounts for."""

    retry = Retry.UNSUPPORTED


class PlanMismatch(ConversionError):
    """The plan lacks, repeats or reshapes a tensor that transformers saves."""


class TiedWeightsDiffer(ConversionError):
    """The model ties embedding and head, but their tensors differ."""


class NonFiniteTensor(ConversionError):
    """NaN or infinity in an exported tensor."""


class CastOverflow(ConversionError):
    """Finite values that the export's dtype cannot hold."""


class PayloadCorrupt(ConversionError):
    """A DCP item's bytes do not match its own checksum or description."""


class ForwardMismatch(ConversionError):
    """TorchTitan's model and HF's give different logits for the same tokens."""


class ExportMismatch(ConversionError):
    """What was read back is not what was written."""


# The machine
class NoSpace(ConversionError):
    """Not enough room (or quota) on the output's file system."""

    retry = Retry.SPACE


class MachineFailure(ConversionError):
    """The file system or a process of ours failed; later may go better."""

    retry = Retry.BACKOFF


class OutputForeign(ConversionError):
    """The published name is taken: somebody's files, another run's export, or (for the daemon) one without our manifest."""

    retry = Retry.FOREIGN


class HookFailed(ConversionError):
    """A command of the operator's, run before publishing, failed, hung, or did what it must not."""

    retry = Retry.BACKOFF


class LockLost(ConversionError):
    """Another owner took this step over while it was being converted."""

    retry = Retry.BACKOFF


ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""What the system says of a name behind which there is nothing. Any other error says nothing of what is there."""
DENIED = frozenset({errno.EACCES, errno.EPERM})


def from_oserror(error: OSError, path: str | os.PathLike[str] | None = None) -> ConversionError:
    """The expected failure that an operating system error amounts to: the errno alone decides, whoever met it.

    `path` is named where the error names none of its own.
    """
    where = error.filename if isinstance(error.filename, str | os.PathLike) else path or "(no path)"
    said = f"{errno.errorcode.get(error.errno or 0, 'OSError')}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"no room to write ({said})", path=where, hint="free space or raise the quota of this file system"
        )
    if error.errno == errno.EROFS:
        return MachineFailure(
            f"read-only here ({said})",
            path=where,
            hint="a read-only mount, or a folder that ReadWritePaths= of the service's unit does not name",
        )
    if error.errno in DENIED:
        return MachineFailure(
            f"not allowed ({said})",
            path=where,
            hint="this user lacks the rights: its groups, the modes of file and folders (docs/operators.md, Rights)",
        )
    return MachineFailure(
        f"the file system failed ({said})", path=where, hint="look at the mount and its server; it is tried again"
    )
