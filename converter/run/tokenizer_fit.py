"""Owns the comparison of a tokenizer's ids with an embedding's rows, and the choice of ids for the forward check.

Uses only the standard library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.common import errors
from converter.run.run_config import RunConfig

TRAINED_WITH = frozenset({"tokenizer.json", "vocab.json", "vocab.txt"})
"""Of a tokenizer's files those, of which TorchTitan 0.2.0 to 0.3.0 needs one; it does not read `tokenizer.model`."""


@dataclass(frozen=True)
class AddedRows:
    """The rows of an embedding that belong to added tokens, and by which rule they are that."""

    rule: str
    """`past_base_vocab`: ids from the base config's `vocab_size` on; `added_tokens`: those of the tokenizer's added tokens
    that are past its model's vocabulary, where the base config has rows for all ids."""
    ids: Sequence[int]
    """Ascending; a range where it is one, since nobody has looked yet at how many rows there really are."""


def added_ids(said: Any) -> tuple[int, ...]:
    """Of a `tokenizer.json`, the ids of added tokens past its model's vocabulary; none of what has none."""
    try:
        vocab = said["model"]["vocab"]
        last = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
        return tuple(sorted({int(token["id"]) for token in said.get("added_tokens") or [] if token["id"] > last}))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # an id may be 1e400, infinity
        return ()


def added_rows(base_rows: int, highest: int, added: Sequence[int], rows: int) -> AddedRows | None:
    """Which of an embedding's `rows` belong to added tokens: `base_rows` are the base config's, `highest` is the
    tokenizer's highest id, `added` are its `added_ids`. None where there are none."""
    if past := range(base_rows, min(highest + 1, rows)):
        return AddedRows("past_base_vocab", past)
    ids = tuple(id_ for id_ in added if id_ < rows)
    return AddedRows("added_tokens", ids) if ids else None


def highest_id(said: Any) -> int:
    """Of a `tokenizer.json`; -1 of what has none.

    transformers 5 takes added tokens from `tokenizer_config.json` alone, 4.x these as well.
    """
    try:
        vocab = said["model"]["vocab"]
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        return int(max([-1, *ids, *(token["id"] for token in said.get("added_tokens") or [])]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # an id may be 1e400, infinity
        return -1


def check_there(names: Sequence[str], highest: int, where: Path) -> None:
    """Raises AssetsInvalid for a vocabulary without ids: transformers 5 makes an empty tokenizer of it."""
    if {"tokenizer.json", "vocab.json"} & {*names} and highest < 0:
        raise errors.AssetsInvalid(
            "the tokenizer has no vocabulary", path=where, hint="name the right folder with --tokenizer"
        )


def check_vocabulary(run: RunConfig, rows: int, length: int, highest: int, where: Path) -> None:
    """Raises VocabularyMismatch unless embedding rows, recorded figures and tokenizer fit together."""
    hint = "is this the tokenizer the run was trained with? name it with --tokenizer"
    if run.padded_vocab_size is not None and run.padded_vocab_size != rows:
        raise errors.VocabularyMismatch(
            f"the run recorded {run.padded_vocab_size:,} rows, the embedding has {rows:,}",
            path=run.path,
            hint="is this the run config of this checkpoint?",
        )
    if length > rows or highest >= rows:
        raise errors.VocabularyMismatch(
            f"the tokenizer knows {max(length, highest + 1):,} tokens, the embedding has {rows:,} rows",
            path=where,
            hint=hint,
        )
    if run.known_tokens is not None and run.known_tokens != length:
        raise errors.VocabularyMismatch(
            f"the run recorded {run.known_tokens:,} tokens, the tokenizer knows {length:,}", path=where, hint=hint
        )


def invented_tokens(ids: Sequence[int], rows: int) -> list[str]:
    """A warning of the `ids` that transformers gives out beside those that the run was trained with, if there are any."""
    if not ids:
        return []
    past = f" The embedding has no row for them (of {rows:,}): a model fails on them." if ids[-1] >= rows else ""
    which = f"{ids[0]:,}" if len(ids) == 1 else f"{ids[0]:,} to {ids[-1]:,}"
    return [
        f"transformers adds {len(ids):,} special tokens ({which}) that the run was not trained with, for padding or for "
        f'texts that spell them.{past} Set "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json'
    ]


def check_padding(pad: object, rows: int, where: Path) -> None:
    """PAD is a row of the embedding: of another, HF's model cannot be made. Raises VocabularyMismatch."""
    if type(pad) is int and not -rows <= pad < rows:
        raise errors.VocabularyMismatch(
            f"the base assets' pad_token_id is {pad:,}, the embedding has {rows:,} rows",
            path=where,
            hint="set pad_token_id in the base assets' config.json to the run's own token, or to null",
        )


def check_tokens(length: int, added: Sequence[int], count: int) -> list[int]:
    """The tokens of the forward check: always the same for a tokenizer, spread over its ids, added ones last."""
    special = list(added)[-count // 4 :] if added else []
    spread = count - len(special)
    return [(7 + i * length // spread) % length for i in range(spread)] + special
