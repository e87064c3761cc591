"""Owns the list of checks, by the manifest's names, and how each is replaced by a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from converter import (
    chunks,
    convert,
    errors,
    export,
    hf_step,
    items,
    judge,
    names,
    placement,
    plan,
    proving,
    qwen3,
    qwen3_record,
    sinks,
    source,
    standin,
    token_ids,
    vocabulary,
)

Pass = Callable[..., Any]


def nothing(*_args: object, **_named: object) -> None:
    """A check that raises nothing and answers nothing."""


@dataclass(frozen=True)
class Check:
    """One check: what it promises, and what takes the place of each function that makes it."""

    promise: str
    replaced: tuple[tuple[Any, str, Pass], ...]
    """(module, function, its replacement)."""

    def leave_out(self, patch: pytest.MonkeyPatch) -> None:
        for module, name, instead in self.replaced:
            assert hasattr(module, name), f"{module.__name__}.{name} is no check any more"
            patch.setattr(module, name, instead)


def _functions(module: Any, *functions: str) -> tuple[tuple[Any, str, Pass], ...]:
    return tuple((module, function, nothing) for function in functions)


_TOKENIZER = proving.Prover.tokenizer


def _any_tokenizer(self: proving.Prover, directory: str, where: str) -> dict[str, Any]:
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
        "every shard is there, as long as storage metadata says, and none is newer than it",
        ((source, "completeness", lambda *_: ("complete", "")),),
    ),
    "storage_metadata": Check(
        "every chunk is one item, no two items share bytes, none went through a transform",
        _functions(
            placement,
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
        "an item is a plain zip that says twice what it says, and holds the chunk that storage metadata speaks of",
        _functions(items, "check_uncompressed", "check_plain", "check_archive", "check_description"),
    ),
    "checksums": Check(
        "CRC32 of every payload and every description",
        (*_functions(items, "check_description_checksum"), *_functions(chunks, "check_payload_checksum")),
    ),
    "chunks": Check(
        "the chunks of a tensor cover it exactly once", _functions(chunks, "check_volume", "check_disjoint")
    ),
    "headers": Check(
        "of a step in HF form: entries are as long as dtype and shape say, and tile their file",
        _functions(hf_step, "check_entry", "check_tiled", "check_once"),
    ),
    "names": Check(
        "every model tensor is somebody's, and nobody's twice",
        (*_functions(names, "check_supported", "check_beside", "check_one_name"), *_functions(plan, "check_known")),
    ),
    "architecture": Check(
        "run record, tensor shapes and base assets describe one model",
        (
            *_functions(qwen3_record, "check_record", "check_alike", "check_rope", "check_window"),
            (proving, "check_architecture", lambda *_: []),
        ),
    ),
    "plan": Check(
        "TorchTitan's own adapter exports every element once, and just what transformers saves",
        (*_functions(plan, "check_covered", "check_saved", "check_held"), (standin, "same", lambda *_: True)),
    ),
    "config": Check(
        "config.json as written says the run's model, to transformers 4 and 5", _functions(qwen3, "check_written")
    ),
    "vocabulary": Check(
        "embedding rows, recorded figures and tokenizer fit together",
        (*_functions(vocabulary, "check_vocabulary"), *_functions(qwen3_record, "check_rows")),
    ),
    "tokenizer": Check(
        "the tokenizer loads",
        ((proving.Prover, "tokenizer", _any_tokenizer), *_functions(vocabulary, "check_there")),
    ),
    "token_ids": Check(
        "transformers gives texts the ids that TorchTitan gave them",
        _functions(token_ids, "check_ids", "check_special"),
    ),
    "finite": Check("no NaN, no infinity", _functions(export, "check_finite")),
    "cast_range": Check("finite values stay finite in the export's dtype", _functions(export, "check_range")),
    "tied_weights": Check("embedding and head are equal where the model ties them", _functions(export, "check_tied")),
    "balancing_bias": Check(
        "the MoE balancing bias, for which HF has no place, is zero", _functions(convert, "check_bias")
    ),
    "forward": Check(
        "TorchTitan's logits are HF's, from the files as they stand on disk", _functions(judge, "check_forward")
    ),
    "read_back": Check(
        "every byte of every file was written once, and reads back as it was written", _functions(sinks, "check_same")
    ),
    "source_unchanged": Check("the checkpoint is still the save that was read", _functions(convert, "check_unchanged")),
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
