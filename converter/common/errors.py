"""Owns the classes of expected failures. Each states what happened, to which path, and what to do.

Uses only the standard library, because the daemon imports it too. Exit codes are in `converter.cli.main`.
"""

import errno
import os
from enum import StrEnum
from typing import Any, ClassVar


class Retry(StrEnum):
    """Retry policy of an error. The daemon's queue follows it."""

    NEVER = "never"
    """The same input gives the same error. The step is quarantined at once."""
    BACKOFF = "backoff"
    """The machine or the file system failed, or assets are missing. A retry may succeed."""
    SPACE = "space"
    """Not enough space. The queue pauses, and no attempt counts."""
    CONFIG = "config"
    """The run config is missing or half-written. The daemon waits for it for `config_grace`."""
    VANISHED = "vanished"
    """The step is gone, or was saved again. The daemon rescans it."""
    INCOMPLETE = "incomplete"
    """The checkpoint is still being written."""
    SUSPECT = "suspect"
    """All bytes are there, but a copy cannot be distinguished from a save that died."""
    UNSUPPORTED = "unsupported"
    """Nothing of this run can be converted. This is reported once per run."""
    FOREIGN = "foreign"
    """The published name is taken by somebody else."""


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
    """`.metadata` or a DCP shard is missing or short. The save is not finished."""

    retry = Retry.INCOMPLETE


class StepSuspect(ConversionError):
    """The files of a step may be of two saves: a copy, a save that died over an older one, or a partial mirror."""

    retry = Retry.SUSPECT


class StepVanished(ConversionError):
    """The step was purged, or saved again, while it was being read."""

    retry = Retry.VANISHED


class StepDamaged(ConversionError):
    """The content of the storage metadata or of a DCP shard is not that of a checkpoint."""


class HostileCheckpoint(ConversionError):
    """Something in the checkpoint would run code, or refers to a path outside its directory."""


class UnknownObject(ConversionError):
    """The checkpoint asks for an object that TorchTitan's checkpoints do not contain. None of it was run."""


class MetadataLimit(ConversionError):
    """Reading `.metadata` took more memory or time than is allowed for its size."""


class NoModelInStep(ConversionError):
    """The checkpoint holds no model tensors (optimizer or dataloader only)."""


class UnsupportedFormat(ConversionError):
    """This version does not read this form: `torch_checkpointing`, links in a step, stream transforms."""

    retry = Retry.UNSUPPORTED


class UnsupportedModel(ConversionError):
    """HF cannot express this model as it is stored: LoRA, fused names, or another model family."""

    retry = Retry.UNSUPPORTED


class RoutingDrift(ConversionError):
    """A balancing bias is not zero. HF's model would route tokens differently."""

    retry = Retry.UNSUPPORTED


class IgnoredModelTensor(ConversionError):
    """A pattern of `ignore_tensors` matches a tensor of the model."""

    retry = Retry.UNSUPPORTED


# What the run says of itself
class RunConfigMissing(ConversionError):
    """No run config was found in any of the places that are searched."""

    retry = Retry.CONFIG


class RunConfigUnreadable(ConversionError):
    """The run config is half-written, is some other JSON, or is too large."""

    retry = Retry.CONFIG


class AssetsMissing(ConversionError):
    """Base assets or tokenizer are not where the run config says."""

    retry = Retry.BACKOFF


class AssetsNotConfigured(ConversionError):
    """The run config names no base assets or tokenizer, or `restrict_assets` does not allow those it names."""


class AssetsInvalid(ConversionError):
    """Base assets or tokenizer cannot be parsed, or belong to another architecture."""


class ArchitectureMismatch(ConversionError):
    """Base assets, run record and tensors do not describe the same model."""


class VocabularyMismatch(ConversionError):
    """Embedding rows, recorded vocabulary and tokenizer do not fit together."""


class TokenizerMismatch(ConversionError):
    """From the tokenizer's files, transformers makes other ids or special tokens than TorchTitan trained with."""


# The tensors
class UnknownTensor(ConversionError):
    """No rename and no adapter knows this tensor."""

    retry = Retry.UNSUPPORTED


class PlanMismatch(ConversionError):
    """The plan omits, repeats or reshapes a tensor that transformers saves."""


class TiedWeightsDiffer(ConversionError):
    """The model ties embedding and head, but their tensors differ."""


class NonFiniteTensor(ConversionError):
    """An exported tensor contains NaN or infinity."""


class CastOverflow(ConversionError):
    """The export's dtype cannot hold some finite values."""


class PayloadCorrupt(ConversionError):
    """A DCP item's bytes do not match its own checksum or description."""


class ForwardMismatch(ConversionError):
    """TorchTitan's model and HF's give different logits for the same tokens."""


class ExportMismatch(ConversionError):
    """The data that was read back is not the data that was written."""


# The machine
class NoSpace(ConversionError):
    """The output's file system has not enough space (or quota)."""

    retry = Retry.SPACE


class MachineFailure(ConversionError):
    """The file system or one of our processes failed. A retry may succeed."""

    retry = Retry.BACKOFF


class OutputForeign(ConversionError):
    """The output name holds a person's files, another run's export or (for the daemon) one without our manifest."""

    retry = Retry.FOREIGN


class HookFailed(ConversionError):
    """A hook that runs before publishing failed, hung, or broke a rule for hooks."""

    retry = Retry.BACKOFF


class LockLost(ConversionError):
    """Another owner took this step over during the conversion."""

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
