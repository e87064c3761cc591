"""Owns the tokenizers made locally: a small byte-level BPE of Qwen's kind, and the files that hold one on disk.

Two generations of files exist in users' folders: those that transformers 4 wrote (and the hub holds), with the chat
template and the added tokens inside `tokenizer_config.json`, and those of transformers 5, shorter, with a
`chat_template.jinja`. Both must load with either version's AutoTokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Qwen's own: pad and document end, turn start, turn end."""

DOMAIN_TOKENS = ("<SMILES>", "</SMILES>", "<CONFORMER>", "</CONFORMER>")
"""What a run adds to the base model's tokens."""

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# The split of Qwen2's and Qwen3's tokenizer.json on the hub.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CORPUS = (
    "A checkpoint is what remains of a training run when the machine has gone home for the night.",
    "Each step holds the weights, the optimizer's moments, and where the data loader had been reading.",
    "The molecule aspirin is written CC(=O)Oc1ccccc1C(=O)O, and caffeine is Cn1cnc2c1c(=O)n(C)c(=O)n2C.",
    "Benzene is c1ccccc1; ethanol is CCO; paracetamol is CC(=O)Nc1ccc(O)cc1; glucose is OCC1OC(O)C(O)C(O)C1O.",
    "Numbers such as 0, 1, 2, 3.14159, 2048 and 151936 are split into single digits before they are merged.",
    "Attention reads every earlier token, weighs it, and passes on a mixture; the feed-forward layers remember.",
    "Expert networks are chosen by a router: two of six in a small model, eight of a hundred and twenty-eight later.",
    "Whoever converts a checkpoint should be able to say, afterwards, that nothing was lost on the way.",
    "def forward(self, tokens, positions): return self.lm_head(self.norm(self.layers(self.tok_embeddings(tokens))))",
    "Die Katze sitzt auf dem Dach; le chat est sur le toit; el gato está en el tejado; кошка сидит на крыше.",
    "The quick brown fox jumps over the lazy dog, while five boxing wizards jump quickly past the sleeping sphinx.",
    "Saving happens in the background: staged first, then written by every rank, and the metadata comes last of all.",
)
"""What the small tokenizer is trained on, and what the demonstration run learns."""


def assemble(model: models.BPE) -> Tokenizer:
    """`model` between Qwen's normalizer, pre-tokenizer and decoder, without special tokens yet."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def train(size: int) -> Tokenizer:
    """A tokenizer of exactly `size` tokens: 256 bytes, merges learnt from CORPUS, SPECIAL_TOKENS last.

    Raises:
        ValueError: CORPUS is too short for that many merges.
    """
    tokenizer = assemble(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    add(tokenizer, SPECIAL_TOKENS)
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, {size} were asked for")
    return tokenizer


def add(tokenizer: Tokenizer, tokens: Sequence[str]) -> None:
    """Append `tokens` as special tokens, in order, after all that `tokenizer` knows."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def extended(tokenizer: Tokenizer, tokens: Sequence[str] = DOMAIN_TOKENS) -> Tokenizer:
    """A copy of `tokenizer` that knows `tokens` besides: what a run trains with."""
    copy: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    add(copy, tokens)
    return copy


def write_hub(folder: Path, tokenizer: Tokenizer, *, maps: bool = True) -> None:
    """Exactly the files that transformers 4.51.3 saves of a Qwen2Tokenizer, the chat template inside the config.

    Without `maps` only the four that the hub's Qwen3 folders hold: no special_tokens_map.json, no added_tokens.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    added = tokenizer.get_added_tokens_decoder()
    further = [token.content for token in added.values() if token.content not in SPECIAL_TOKENS[:1]]
    end, turn_end = SPECIAL_TOKENS[0], SPECIAL_TOKENS[2]
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {str(i): _fields(token) for i, token in added.items()},
            "additional_special_tokens": further,
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": turn_end,
            "errors": "replace",
            "extra_special_tokens": {},
            "model_max_length": 131072,
            "pad_token": end,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    if not maps:
        return
    _write_json(folder / "added_tokens.json", {token.content: i for i, token in added.items()})
    one = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    special = {"eos_token": {"content": turn_end, **one}, "pad_token": {"content": end, **one}}
    _write_json(folder / "special_tokens_map.json", {"additional_special_tokens": further, **special})


def write_transformers5(folder: Path, hub: Path) -> None:
    """What the installed transformers saves of the tokenizer in `hub` (a folder of `write_hub`)."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(hub).save_pretrained(folder)


def _fields(token: AddedToken) -> dict[str, object]:
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
