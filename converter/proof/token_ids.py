"""Owns the proof of the tokenizer: transformers gives texts the ids that TorchTitan gave them.

Needs torchtitan 0.3.0, tokenizers and transformers. TorchTitan trains with `tokenizers.Tokenizer.from_file` and the special
tokens of `tokenizer_config.json`; a class of transformers may have a pre-tokenizer, a normalizer or tokens of its own
(5.x: Qwen2Tokenizer ignores the file's pre-tokenizer, transformers #45920).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from converter.common import errors
from converter.common.files import exists, parse_json, read_regular
from converter.run.path_permission import LIMIT

TEXTS = {
    "digits": "0 12 345 6789 1234567890 3.14159 1,000,000 1e-05 x86_64 2024-12-31 ½ ⅻ ٣٤٥ ６７８",
    "whitespace": "a  b   c    d\te\t\tf\n\n\ng\r\nh \n i\u00a0j\u3000k\u200bl \r m   ",
    "leading whitespace": "   lead\n  and\n\n\tmore\n    \n\t\t",
    "contractions": "I'm you're he'LL THEY'VE it's 'tis don't I'd we’re 's 'S 'T",
    "code": 'def f(x):\n    return {"a": [1, 2], \'b\': x**2 != 3}  # ok\n\n\nif (a&&b) { c->d++; }\n//////// <a href="#">&amp;</a>',
    "SMILES": "CC(=O)Oc1ccccc1C(=O)O [Na+].[Cl-] C/C=C\\C N#Cc1ccc2[nH]ccc2c1 [C@@H](N)O",
    "accents": "café cafe\u0301 A\u030a Å \u212b n\u0303 \u1100\u1161\u11a8 각 q\u0323\u0307 ﬁ ﬀ ² Ⅷ ㎏",
    "letter case": "HELLO Hello hELLO Straße İstanbul ǅ ΣΑΣ ЁЖ camelCase SNAKE_CASE",
    "scripts": "кошка ёж 你好，世界。日本語のテキスト 한국어 العربية שלום हिन्दी ไทย ελληνικά mixedкошка中文abc",
    "emoji": "🙂👍🏽👩‍👩‍👧🇩🇪 text🙂text ❤️ 1️⃣",
    "control characters": "".join(map(chr, range(0x20))) + "\x7f\x80\x9f\xad\u200e\u2028\u2029\ufeff\ufffd",
    "punctuation": 'Well... "quoted" — dashes–and-hyphens; (a) [b] {c} ¿qué? ¡sí! «x» “y” … 100% $5 €7 #tag @me a/b\\c ~^`|',
    "bytes": " ".join(map(chr, [*range(0x21, 0x250), *range(0x400, 0xD800, 997), *range(0x10000, 0x110000, 65521)])),
}
"""One for each kind of text that pre-tokenizers, normalizers and merges treat in their own ways."""
VOCABULARY, ADDED = "the vocabulary's own tokens", "added tokens"
_SAMPLED = 8192
"""Tokens of the vocabulary that are shown as texts, spread over all of it: a third of a second of 151,673."""
_TOGETHER = 8
"""Of them in one text, besides each alone."""
_PLAIN = '"tokenizer_class": "PreTrainedTokenizerFast"'
"""Makes every transformers tried (4.51, 4.57, 5.0, 5.23) follow tokenizer.json."""


class _Trained(HuggingFaceTokenizer):  # type: ignore[misc]
    """TorchTitan's tokenizer. Its chat template is not compiled: nothing here renders one."""

    def set_chat_template(self, template: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Trained:
    """What TorchTitan's tokenizer says of itself and of texts."""

    length: int
    """Of its vocabulary, added tokens included."""
    highest: int
    added: list[int]
    """Ids of its added tokens, ascending."""
    special: dict[str, int | None]
    """BOS and EOS."""
    texts: list[tuple[str, str]]
    """(kind, text)."""
    ids: list[list[int]]
    """Of each text, without special tokens put around it."""
    around: list[int]
    """Ids of a text as TorchTitan encodes it by default, with what is put around it."""
    splitting: dict[str, Any]
    """Its normalizer and pre-tokenizer."""


_A_TEXT = "a"


def as_trained(directory: Path) -> Trained:
    """TorchTitan's tokenizer of the files in `directory`. Raises whatever makes TorchTitan fail on them; of files that it
    does not read, FileNotFoundError."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:  # tokenizers' Rust takes no path that is not UTF-8
        loaded = _Trained(tokenizer_path=f"/proc/self/fd/{folder}")
    finally:
        os.close(folder)
    tokenizer = loaded.tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()  # a cut made for somebody's batch: the ids before it are what counts
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # a reader that keeps it gives other ids, and each time
    texts = _texts(tokenizer)
    encoded = tokenizer.encode_batch_fast([text for _, text in texts], add_special_tokens=False)
    return Trained(
        tokenizer.get_vocab_size(),
        max(tokenizer.get_vocab().values(), default=-1),
        sorted(tokenizer.get_added_tokens_decoder()),
        {"bos": loaded.bos_id, "eos": loaded.eos_id},
        texts,
        [encoding.ids for encoding in encoded],
        loaded.encode(_A_TEXT),
        _splitting(tokenizer),
    )


def _splitting(tokenizer: Tokenizer) -> dict[str, Any]:
    """What decides how a text is split before the vocabulary is asked, by kind; no text can show all of it."""
    parts = {"normalizer": tokenizer.normalizer, "pre-tokenizer": tokenizer.pre_tokenizer}
    return {
        kind: part and json.loads(part.__getstate__(), object_hook=_without_offsets) for kind, part in parts.items()
    }


def _without_offsets(said: dict[str, Any]) -> dict[str, Any]:
    """`trim_offsets` says where a token begins in its text, not which it is."""
    return {key: value for key, value in said.items() if key != "trim_offsets"}


def _texts(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """TEXTS, the added tokens between other text, and a sample of the vocabulary: each token alone, and side by side."""
    found = list(TEXTS.items())
    for token in tokenizer.get_added_tokens_decoder().values():
        word = token.content
        found.append((ADDED, f"a{word}b {word} c\n{word}\nd  {word}{word}  {word.upper()} {word.lower()}{word[:-1]}"))
    decoder = tokenizer.decoder or decoders.ByteLevel()
    size = tokenizer.get_vocab_size()
    tokens = (tokenizer.id_to_token(id_) for id_ in range(0, size, -(-size // _SAMPLED)))
    sample = list(dict.fromkeys(decoder.decode([token]) for token in tokens if token))
    apart = -(-len(sample) // _TOGETHER) or 1
    return found + [(VOCABULARY, text) for text in (*sample, *("".join(sample[i::apart]) for i in range(apart)))]


def kinds_that_differ(trained: Trained, reader: Any) -> list[str]:
    """The kinds of texts to which `reader`, a tokenizer of transformers, gives other ids; and what splits texts otherwise."""
    read = reader([text for _, text in trained.texts], add_special_tokens=False)["input_ids"]
    differs = (kind for (kind, _), ours, theirs in zip(trained.texts, trained.ids, read, strict=True) if ours != theirs)
    kinds = list(dict.fromkeys(differs))
    if (backend := getattr(reader, "backend_tokenizer", None)) is not None:
        read_as = _splitting(backend)
        kinds += [f"another {kind}" for kind, said in trained.splitting.items() if said != read_as[kind]]
    return kinds


def check_ids(trained: Trained, reader: Any, directory: Path, where: Path) -> None:
    """`reader`, made of the files in `directory` (copied from `where`), gives texts the ids they were trained with.
    Raises TokenizerMismatch."""
    if differs := kinds_that_differ(trained, reader):
        raise errors.TokenizerMismatch(
            f"transformers does not give the ids that TorchTitan trained with ({', '.join(differs)})",
            path=where,
            hint=_cure(trained, directory),
        )


def check_special(trained: Trained, reader: Any, where: Path) -> None:
    """BOS and EOS are those that TorchTitan put between texts, and no token is missing. Raises TokenizerMismatch."""
    read = {name: getattr(reader, f"{name}_token_id") for name in trained.special}
    differs = [
        f"{name.upper()}: TorchTitan {id_}, transformers {read[name]}"
        for name, id_ in trained.special.items()
        if id_ is not None and id_ != read[name]
    ]
    if len(reader) < trained.length:
        differs.append(f"length: TorchTitan {trained.length:,}, transformers {len(reader):,}")
    if differs:
        raise errors.TokenizerMismatch(
            f"transformers takes other special tokens than TorchTitan trained with ({'; '.join(differs)})",
            path=where,
            hint="let tokenizer_config.json and special_tokens_map.json name the same tokens, or take the latter away",
        )


def _cure(trained: Trained, directory: Path) -> str:
    """The setting with which transformers gives the ids; tried, but where there is no tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    if not exists(directory / "tokenizer.json"):
        return (
            'write the tokenizer.json that TorchTitan makes of these files: python -c "from torchtitan.components.tokenizer '
            "import HuggingFaceTokenizer as T; T(tokenizer_path='DIR').tokenizer.save('DIR/tokenizer.json')\", and set "
            f"{_PLAIN} in tokenizer_config.json"
        )
    if not kinds_that_differ(trained, PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)):
        return f"set {_PLAIN} in the tokenizer_config.json of this folder (or of a copy, and name it with --tokenizer)"
    return (
        f"set {_PLAIN} in tokenizer_config.json and take out of it what changes how texts are split (add_prefix_space, "
        "split_special_tokens …)"
    )


def warnings(trained: Trained | None, reader: Any, directory: Path) -> list[str]:
    """What some reader may do otherwise with the files in `directory`, each with the setting that cures it."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    found, config = [], _config(directory)
    kind = config.get("tokenizer_class")
    if isinstance(kind, str) and all(tokenizer_class_from_name(k) is None for k in (kind, kind.removesuffix("Fast"))):
        what = kind if kind.isidentifier() and len(kind) < 100 else "(no class's name)"
        found.append(
            f"tokenizer_class {what} is not in transformers: 4.x readers cannot load this tokenizer; set {_PLAIN} in "
            "tokenizer_config.json"
        )
    if config.get("auto_map") is not None:
        found.append(
            "tokenizer_config.json names code (auto_map), which is not published: readers that trust remote code fail; take "
            "auto_map out of it"
        )
    if trained is not None and trained.around != (read := reader(_A_TEXT)["input_ids"]):
        found.append(
            f"around a text TorchTitan's tokenizer puts other special tokens than transformers ({trained.around} and "
            f"{read} for {_A_TEXT!r}): set add_bos_token, add_eos_token and tokenizer_class in tokenizer_config.json"
        )
    return found


def _config(directory: Path) -> dict[str, Any]:
    """Of `tokenizer_config.json`; empty where there is none, or no object."""
    try:
        said = parse_json(read_regular(directory / "tokenizer_config.json", limit=LIMIT))
    except (FileNotFoundError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def invented(trained: Trained, reader: Any) -> list[int]:
    """Ids past TorchTitan's that transformers gives out, ascending."""
    if len(reader) == trained.length:
        return []
    return sorted(id_ for id_ in reader.get_vocab().values() if id_ > trained.highest)
