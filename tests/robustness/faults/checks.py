"""Owns the list of checks, by the manifest's names, and how each is replaced by a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from converter import convert
from converter.checkpoint import hf_step, item, metadata_checks, tensor_names, tensor_reader
from converter.common import errors
from converter.export import exporter, provisional_plan, read_back
from converter.families import renamed_tensors
from converter.families.qwen3 import model, recorded
from converter.proof import adapter_plan, compare_logits, session, token_ids
from converter.run import step_source, tokenizer_fit

Pass = Callable[..., Any]


def nothing(*_args: object, **_named: object) -> None:
    """A check that raises nothing and answers nothing."""


@dataclass(frozen=True)
class Check:
    """One check: its promise, and a replacement for each function that makes it."""

    promise: str
    replaced: tuple[tuple[Any, str, Pass], ...]
    """(module, function, its replacement)."""

    def leave_out(self, patch: pytest.MonkeyPatch) -> None:
        for module, name, instead in self.replaced:
            assert hasattr(module, name), f"{module.__name__}.{name} is no check any more"
            patch.setattr(module, name, instead)


def _functions(module: Any, *functions: str) -> tuple[tuple[Any, str, Pass], ...]:
    return tuple((module, function, nothing) for function in functions)


_TOKENIZER = session.ProofSession.tokenizer


def _any_tokenizer(self: session.ProofSession, directory: str, where: str) -> dict[str, Any]:
    """What the tokenizer says of itself, or a made-up answer where it does not load."""
    try:
        return _TOKENIZER(self, directory, where)
    except errors.AssetsInvalid:
        special = {"bos": None, "eos": None, "pad": None}
        return {
            "length": 500,
            "added": [],
            "highest": 499,
            "special": special,
            "invented": [],
            "warnings": [],
            "mismatch": None,
        }


CHECKS = {
    "complete": Check(
        "Every DCP shard exists and is as long as the storage metadata says. None is newer than `.metadata`",
        ((step_source, "completeness", lambda *_: ("complete", "")),),
    ),
    "storage_metadata": Check(
        "Every chunk is one item. No two items share bytes. No item went through a transform",
        _functions(
            metadata_checks,
            "check_files",
            "check_transforms",
            "check_once",
            "check_disjoint",
            "check_chunks",
            "check_sizes",
            "check_dtypes",
        ),
    ),
    "items": Check(
        "An item is a plain zip. Values that it stores twice are equal. It contains the chunk that the storage metadata "
        "describes",
        _functions(item, "check_uncompressed", "check_plain", "check_archive", "check_description"),
    ),
    "checksums": Check(
        "The CRC32 of every payload and every description is right",
        (*_functions(item, "check_description_checksum"), *_functions(tensor_reader, "check_payload_checksum")),
    ),
    "chunks": Check(
        "The chunks of a tensor cover it exactly once", _functions(tensor_reader, "check_volume", "check_disjoint")
    ),
    "headers": Check(
        "For a step in HF form: the length of each entry fits its dtype and shape, and the entries fill their file",
        _functions(hf_step, "check_entry", "check_tiled", "check_once"),
    ),
    "names": Check(
        "Every model tensor has a place in TorchTitan's adapter, and none has two names",
        (
            *_functions(tensor_names, "check_supported", "check_beside"),
            *_functions(renamed_tensors, "check_one_name"),
            *_functions(adapter_plan, "check_known"),
        ),
    ),
    "architecture": Check(
        "Run record, tensor shapes and base assets describe the same model",
        (
            *_functions(recorded, "check_record", "check_alike", "check_rope", "check_window"),
            (session, "check_architecture", lambda *_: []),
        ),
    ),
    "plan": Check(
        "TorchTitan's own adapter exports every element once, and exactly the tensors that transformers saves",
        (
            *_functions(adapter_plan, "check_covered", "check_saved", "check_held"),
            (provisional_plan, "same", lambda *_: True),
        ),
    ),
    "config": Check(
        "The written config.json describes the run's model to transformers 4 and 5", _functions(model, "check_written")
    ),
    "vocabulary": Check(
        "Embedding rows, recorded figures and tokenizer fit together",
        (*_functions(tokenizer_fit, "check_vocabulary"), *_functions(recorded, "check_rows")),
    ),
    "tokenizer": Check(
        "The tokenizer loads",
        ((session.ProofSession, "tokenizer", _any_tokenizer), *_functions(tokenizer_fit, "check_there")),
    ),
    "token_ids": Check(
        "transformers gives texts the same ids as TorchTitan",
        _functions(token_ids, "check_ids", "check_special"),
    ),
    "finite": Check("The weights contain no NaN and no infinity", _functions(exporter, "check_finite")),
    "cast_range": Check("Finite values stay finite in the export's dtype", _functions(exporter, "check_range")),
    "tied_weights": Check("Embedding and head are equal if the model ties them", _functions(exporter, "check_tied")),
    "balancing_bias": Check(
        "The MoE's balancing bias, for which HF has no place, is zero", _functions(convert, "check_bias")
    ),
    "forward": Check(
        "TorchTitan's logits equal HF's, computed from the files on disk",
        _functions(compare_logits, "check_forward"),
    ),
    "read_back": Check(
        "Every byte of every file was written once, and the same bytes are read back",
        _functions(read_back, "check_same"),
    ),
    "source_unchanged": Check("The checkpoint is still the save that was read", _functions(convert, "check_unchanged")),
}
"""By the names that the manifest gives them."""

READING = "(reading)"
"""Stands for no check: the form itself cannot be read, whatever is left out."""


def alone(name: str, patch: pytest.MonkeyPatch) -> None:
    """Replaces every check but one by a pass; for READING, every one."""
    assert name in CHECKS or name == READING
    for other, check in CHECKS.items():
        if other != name:
            check.leave_out(patch)
