"""Owns the runs that llama.cpp reads: tiny models with Qwen's own vocabulary, saved by four ranks.

    python -m tests.integration.readers.qwen_runs OUT ggml-vocab-qwen2.gguf      # with llama.cpp's gguf-py on PYTHONPATH

Each is the users' kind: 151,673 tokens in 151,936 rows, names of 0.2. llama.cpp's converter refuses a tokenizer whose pre-tokenizer it does not know, so a toy vocabulary will not do: this is
the one that llama.cpp's own tests carry. In a process of its own, because it forks the ranks.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from gguf import GGUFReader, TokenType
from tokenizers import Tokenizer, models

from examples import small_tokenizer
from tests.support.checkpoints.big import QWEN_SPECIAL_TOKENS, QWEN_TOKENS, write_big

SIZES = {"dense": "tiny", "moe": "moe-tiny"}
STD = 0.1
"""Of the weights: logits then spread as a trained model's do (standard deviation about 1), with 0.02 they are flat."""


def qwen_tokenizer(vocabulary: Path) -> Tokenizer:
    """Qwen3's 151,669 tokens: those of `vocabulary` (ggml-vocab-qwen2.gguf) and its merges, then the special ones."""
    fields = GGUFReader(vocabulary).fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    vocab = {token: i for i, token in enumerate(tokens) if kinds[i] == TokenType.NORMAL}
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in merges)]
    tokenizer = small_tokenizer.assemble(models.BPE(vocab=vocab, merges=pairs))
    small_tokenizer.add(tokenizer, QWEN_SPECIAL_TOKENS)
    assert tokenizer.get_vocab_size() == QWEN_TOKENS
    return tokenizer


def main(out: Path, vocabulary: Path) -> None:
    logging.disable(logging.WARNING)  # torchtitan's own, four times each
    base = qwen_tokenizer(vocabulary)
    for kind, size in SIZES.items():
        write_big(out / kind, size=size, naming="0.2", adam=False, base=base, std=STD)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
