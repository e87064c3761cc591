"""Owns the decision whose a published name is: nobody's, ours, an export without our manifest, or a person's work.

Uses only the standard library.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from converter.checkpoint import hf_step
from converter.common.files import CONFIG_LIMIT, parse_json, read_regular
from converter.publish import manifest

Whose = Literal["nobody", "ours", "export", "foreign", "no directory"]
WORDS = {"ours": "our export", "export": "an export without our manifest", "foreign": "somebody's files"}


@dataclass(frozen=True)
class Existing:
    """What has the published name. "nobody" is an empty directory, "export" one of another script."""

    whose: Whose
    dtype: str | None = None
    """Of an export; None where it cannot be told."""
    foreign: tuple[str, ...] = ()
    """Names that no export has; of a directory with our manifest, that it does not list."""
    made: manifest.Manifest | None = field(default=None, repr=False, compare=False)
    """Our manifest of it."""

    def __str__(self) -> str:
        return f"{WORDS[self.whose]} ({self.dtype or 'unknown dtype'})"

    def as_event(self) -> dict[str, str | None]:
        """Field `replaced` of an event."""
        return {"whose": self.whose, "dtype": self.dtype}


def look_at_output(path: Path) -> Existing | None:
    """What is at `path`; None where nothing is. Raises OSError."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return Existing("no directory")
        if manifest.is_empty(path):
            return Existing("nobody")
        made, foreign = manifest.read(path), manifest.foreign_files(path)
    except FileNotFoundError:
        return None
    dtype = made.dtype if made is not None else _dtype(path)
    return Existing("foreign" if foreign else "ours" if made is not None else "export", dtype, tuple(foreign), made)


def _dtype(directory: Path) -> str | None:
    """Of the tensors, by the HF shards' own headers; else what config.json says."""
    try:
        shards = [path for path in sorted(directory.iterdir()) if path.name.endswith(".safetensors")]
        found = {entry.dtype for path in shards for entry in hf_step.header(path)[0]}
        if found:
            return ", ".join(sorted(found))
        config = parse_json(read_regular(directory / "config.json", limit=CONFIG_LIMIT))
        said = config.get("dtype") or config.get("torch_dtype")
    except (OSError, ValueError, AttributeError):
        return None
    return said if isinstance(said, str) and said.isprintable() else None
