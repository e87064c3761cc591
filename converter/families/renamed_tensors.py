"""Owns the step from a family's older tensor names to those of the installed torchtitan (0.3.0), one by one.

Uses only the standard library. Names changed one at a time between 0.2.2 and 0.3.0, and runs were written at every
point in between. So there is no switch by version.
"""

import re
from pathlib import Path

from converter.checkpoint import tensor_names
from converter.checkpoint.tensors import StorageMetadata
from converter.common import errors
from converter.families.family import FamilySpec


def installed_name(family: FamilySpec, name: str) -> str:
    """The name that torchtitan 0.3.0 gives this tensor; a name it has already is its own."""
    for old, new in family.renames:
        if match := re.fullmatch(old, name):
            return match.expand(new)
    return name


def source_names(family: FamilySpec, metadata: StorageMetadata, step: Path) -> dict[str, str]:
    """Installed name -> name in the checkpoint; a step in HF form has HF's names already.

    Raises UnknownTensor where two names are the same tensor.
    """
    if metadata.form == "hf":
        return {name: name for name in metadata.tensors}
    found: dict[str, str] = {}
    for fqn, plain in tensor_names.plain_names(metadata.tensors).items():
        name = installed_name(family, plain)
        if name in found:
            check_one_name(fqn, found[name], step)
        found[name] = fqn
    return found


def check_one_name(fqn: str, other: str, step: Path) -> None:
    """Called for two names of one tensor: raises UnknownTensor."""
    raise errors.UnknownTensor(
        f"{fqn[:200]!r} and {other[:200]!r} are the same tensor", path=step, hint="find out which one the trainer uses"
    )
