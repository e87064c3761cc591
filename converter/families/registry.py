"""Owns which families there are, and which of them a model is: by the names of its tensors and by the run's word.

Uses only the standard library until a family's model is asked for.
"""

import importlib
from pathlib import Path
from typing import Any

from converter.checkpoint import tensor_names
from converter.checkpoint.tensors import StorageMetadata
from converter.common import errors
from converter.families.family import FamilyModel, FamilySpec
from converter.families.qwen3 import spec as qwen3
from converter.families.renamed_tensors import installed_name
from converter.run.run_config import RunConfig

FAMILIES: tuple[FamilySpec, ...] = (qwen3.SPEC,)


def family_of(metadata: StorageMetadata, run: RunConfig, step: Path) -> FamilySpec:
    """The family of a step's model. Where the names are those of several, it is the one that the run recorded.

    Raises UnsupportedModel where it is no family's, and for names that are refused by name.
    """
    names = [*metadata.tensors]
    if metadata.form == "dcp":
        names = [*tensor_names.plain_names(names).values()]
        for name in names:
            tensor_names.check_supported(name, step)
    owners = [family for family in FAMILIES if family.owns(installed_name(family, name) for name in names)]
    if not owners:
        some = ", ".join(sorted(metadata.tensors)[:3])
        raise errors.UnsupportedModel(
            f"this is another model than {' or '.join(family.title for family in FAMILIES)}, "
            f"by the names of its tensors ({some}, …)",
            path=step,
            hint=f"what is converted: TorchTitan's {'; '.join(family.models for family in FAMILIES)}, "
            "under TorchTitan's names",
        )
    return min(owners, key=lambda family: family.name != run.model_name)


def model_of(family: FamilySpec) -> FamilyModel:
    """The family's model module; imports torch, torchtitan and transformers."""
    module: Any = importlib.import_module(f"converter.families.{family.name}.model")
    found: FamilyModel = module
    return found
