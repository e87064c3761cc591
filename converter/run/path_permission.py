"""Owns the decision which files named in a run config may be read: only those that the checkpoint's owner could read.

Uses only the standard library. We may be able to read more than the author of a checkpoint. An export must not reveal
any of that.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.common import errors
from converter.common.errors import DENIED
from converter.common.files import REFUSED, Refused, read_regular

LIMIT = 200 << 20
"""Bytes of one asset."""


@dataclass(frozen=True)
class Recorded:
    """A folder that a run config names, and what of it may be read."""

    writer: os.stat_result
    """Of the step's directory: whoever wrote it."""
    allowed: Sequence[Path] | None
    """Real paths lie below one of these; None allows any."""

    def refuse(self, real: Path, facts: os.stat_result) -> str | None:
        """Why a file, at its real path, is not read."""
        if self.allowed is not None and not is_below(real, self.allowed):
            return "its link leads outside what restrict_assets allows"
        theirs = facts.st_uid == self.writer.st_uid
        theirs |= facts.st_gid == self.writer.st_gid and bool(facts.st_mode & stat.S_IRGRP)
        return None if theirs or facts.st_mode & stat.S_IROTH else "the owner of the step may not read it"


def is_below(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a path lies below one of these folders, all links resolved."""
    real = path.resolve()
    return any(real.is_relative_to(root.resolve()) for root in roots)


def read_asset(path: Path, recorded: Recorded | None) -> bytes | None:
    """An asset's bytes, None where its folder lists none: on NFS a name that is looked for may seem not to be there.

    A link may lead to it (hub caches); `recorded` is None where a person named the folder. Raises AssetsInvalid for what
    is not read, OSError where the file system failed.
    """
    if path.name not in os.listdir(path.parent):
        return None
    try:
        return read_regular(path, limit=LIMIT, follow=True, refuse=recorded.refuse if recorded else None)
    except FileNotFoundError:
        raise errors.MachineFailure(
            "an asset that its folder lists is not there",
            path=path,
            hint="is it a link that leads nowhere, or is the folder being changed? it is tried again",
        ) from None
    except OSError as error:
        if error.errno in DENIED and not isinstance(error, Refused):
            raise unreadable("an asset", path, "--hf-assets, --tokenizer") from None
        if error.errno not in REFUSED and not isinstance(error, Refused):
            raise
        raise errors.AssetsInvalid(
            f"an asset is not read ({error.strerror})",
            path=path,
            hint="assets are regular files up to 200 MB that the step's owner may read, too; or say --hf-assets, --tokenizer",
        ) from None


def unreadable(what: str, path: Path, flag: str) -> errors.MachineFailure:
    """This user may not read an asset: rights may come, so it is tried again."""
    return errors.MachineFailure(
        f"this user may not read {what} (EACCES)",
        path=path,
        hint=f"let this user read it (docs/operators.md, Rights), or copy it to where it may, and say {flag}",
    )
