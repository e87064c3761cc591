"""Owns a tokenizer with a pre-tokenizer of its own, which Qwen2Tokenizer of transformers 5 ignores."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from examples import small_tokenizer


def by_threes(end: str = "<|endoftext|>", size: int = 600) -> Tokenizer:
    """A tokenizer of its own pre-tokenizer: digits by threes, as Llama 3's, and words up to the next space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\p{N}\s]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size - 3, initial_alphabet=alphabet, show_progress=False)
    squares = " ".join(str(number * number) for number in range(1000))
    tokenizer.train_from_iterator([*small_tokenizer.CORPUS, squares], trainer)
    small_tokenizer.add(tokenizer, (end, "<|im_start|>", "<|im_end|>"))
    return tokenizer
