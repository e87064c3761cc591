"""What transformers makes of the published tokenizer gives the ids that TorchTitan trained with, or is refused or warned of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torchtitan.components.tokenizer import HuggingFaceTokenizer
from transformers import AutoTokenizer

from converter.common import errors
from converter.proof.client import Prover
from converter.run.base_assets import Search
from examples import small_tokenizer
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.by_threes import by_threes
from tests.unit.converter.editing import edit_json
from tests.unit.converter.running import Convert, Refused

CopyStep = Callable[..., Path]
CASE = BY_NAME["dense_tied-0.3-2x2-float32"]
"""638 rows; records no number of tokens."""
TEXT = "In 12345 steps, it's\n\n  <SMILES>CCO</SMILES> cafe\u0301"
CONFIG = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
CURE = '"tokenizer_class": "PreTrainedTokenizerFast"'


def write(folder: Path, tokenizer: Tokenizer, config: dict[str, Any] | None) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def trained(folder: Path) -> list[int]:
    """The ids that TorchTitan's own class gives."""
    return HuggingFaceTokenizer(tokenizer_path=str(folder)).encode(TEXT)


def read(folder: Path) -> list[int]:
    return list(AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"])


def without_class() -> dict[str, Any]:
    return {key: value for key, value in CONFIG.items() if key != "tokenizer_class"}


def test_a_normalizer_that_no_sample_text_shows_is_refused_with_the_setting_that_cures_it(
    copy_step: CopyStep, refused: Refused, convert: Convert, tmp_path: Path
) -> None:
    tokenizer = small_tokenizer.train(596)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("http://", "https://")])
    folder = write(tmp_path / "tokenizer", tokenizer, CONFIG)
    step, search = copy_step(CASE), Search(tokenizer=folder)

    error = refused(step, errors.TokenizerMismatch, search=search)

    assert "(another normalizer)" in error.what
    assert CURE in error.hint
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG | json.loads(f"{{{CURE}}}")))
    assert convert(step, search=search).check("token_ids")["verdict"] == "passed"


@pytest.mark.parametrize(
    "config",
    [CONFIG, CONFIG | {"tokenizer_class": "Qwen2TokenizerFast"}, without_class(), None],
    ids=["Qwen2Tokenizer", "Qwen2TokenizerFast", "no class", "no tokenizer_config.json"],
)
def test_a_class_that_ignores_the_files_pre_tokenizer_is_refused_with_the_setting_that_cures_it(
    config: dict[str, Any] | None, copy_step: CopyStep, refused: Refused, convert: Convert, tmp_path: Path
) -> None:
    folder = write(tmp_path / "tokenizer", by_threes(), config)
    step, search = copy_step(CASE), Search(tokenizer=folder)

    error = refused(step, errors.TokenizerMismatch, search=search)

    assert "digits" in error.what
    assert "the vocabulary's own tokens" in error.what
    assert error.path == str(folder)
    assert CURE in error.hint

    (folder / "tokenizer_config.json").write_text(json.dumps({**(config or {}), **json.loads(f"{{{CURE}}}")}))
    done = convert(step, search=search)
    assert done.check("token_ids")["verdict"] == "passed"
    assert read(done.published) == trained(folder)
    assert (done.published / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


Change = Callable[[dict[str, Any]], Any]


FAULTS: dict[str, tuple[str, Change, str]] = {
    "another normalizer": ("tokenizer.json", lambda said: said.update(normalizer=None), "accents"),
    "a normalizer that lowers": (
        "tokenizer.json",
        lambda said: said.update(normalizer={"type": "Lowercase"}),
        "letter case",
    ),
    "a prefix space": (
        "tokenizer.json",
        lambda said: said["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        "digits",
    ),
    "special tokens that are split": (
        "tokenizer_config.json",
        lambda said: said.update(split_special_tokens=True),
        "added tokens",
    ),
    "an added token that takes the space beside it": (
        "tokenizer_config.json",
        lambda said: said["added_tokens_decoder"]["594"].update(rstrip=True),
        "added tokens",
    ),
    "a class with another normalizer": (
        "tokenizer_config.json",
        lambda said: said.update(tokenizer_class="GPT2Tokenizer"),
        "accents",
    ),
}


@pytest.mark.parametrize(("name", "change", "kind"), FAULTS.values(), ids=FAULTS)
def test_what_else_gives_other_ids_is_refused_with_the_kinds_of_texts(
    name: str, change: Change, kind: str, copy_step: CopyStep, checkpoints: Path, refused: Refused, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(CASE.tokenizer(checkpoints), folder)
    edit_json(folder / name, change)

    error = refused(copy_step(CASE), errors.TokenizerMismatch, search=Search(tokenizer=folder))

    assert kind in error.what
    assert '"tokenizer_class"' in error.hint


def test_a_class_that_the_smaller_imports_lack_is_read_with_all_of_them(tmp_path: Path, checkpoints: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(CASE.tokenizer(checkpoints), folder)
    edit_json(folder / "tokenizer_config.json", lambda said: said.update(tokenizer_class="GPT2Tokenizer"))

    with Prover() as prover:
        said = prover.ask("tokenizer", directory=str(folder), where=str(folder))

    assert "accents" in said["mismatch"]["what"]


def test_a_token_that_transformers_makes_up_is_warned_of_and_does_not_count(
    copy_step: CopyStep, convert: Convert, tmp_path: Path
) -> None:
    tokenizer = small_tokenizer.assemble(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=636, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(small_tokenizer.CORPUS, trainer)
    small_tokenizer.add(tokenizer, ("<eos>", "<pad>"))
    config = {"eos_token": "<eos>", "pad_token": "<pad>", "tokenizer_class": "Qwen2Tokenizer"}
    folder = write(tmp_path / "tokenizer", tokenizer, config)
    assert tokenizer.get_vocab_size() == 638
    assert len(AutoTokenizer.from_pretrained(folder)) == 639

    done = convert(copy_step(CASE), search=Search(tokenizer=folder))

    (told,) = (text for text in done.warnings() if "transformers adds" in text)
    assert "adds 1 special tokens (638)" in told
    assert "no row" in told
    assert CURE in told
    assert done.check("vocabulary")["verdict"] == done.check("token_ids")["verdict"] == "passed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer_class": "OurTokenizer"}, "tokenizer_class OurTokenizer is not in transformers"),
        ({"auto_map": {"AutoTokenizer": ["ours.OurTokenizer", None]}}, "names code (auto_map), which is not published"),
        (
            {"add_bos_token": True, "bos_token": "<|im_start|>"},
            "around a text TorchTitan's tokenizer puts other special",
        ),
    ],
    ids=["a class of nobody's", "code", "BOS"],
)
def test_what_some_reader_cannot_load_or_does_otherwise_is_warned_of_by_name_with_the_setting(
    change: dict[str, Any], said: str, copy_step: CopyStep, checkpoints: Path, convert: Convert, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(CASE.tokenizer(checkpoints), folder)
    edit_json(folder / "tokenizer_config.json", lambda config: config.update(change))

    done = convert(copy_step(CASE), search=Search(tokenizer=folder))

    (told,) = (text for text in done.warnings() if said in text)
    assert "tokenizer_config.json" in told
    assert done.check("token_ids")["verdict"] == "passed"


def test_other_special_tokens_than_torchtitans_are_refused(
    copy_step: CopyStep, checkpoints: Path, refused: Refused, tmp_path: Path
) -> None:
    case = BY_NAME["one_rank"]
    folder = tmp_path / "tokenizer"
    shutil.copytree(case.tokenizer(checkpoints), folder)
    edit_json(folder / "tokenizer_config.json", lambda config: config.pop("added_tokens_decoder"))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')

    error = refused(copy_step(case), errors.TokenizerMismatch, search=Search(tokenizer=folder))

    assert "EOS: TorchTitan 595, transformers 593" in error.what
    assert "special_tokens_map.json" in error.hint


def test_merges_that_are_dropped_by_chance_are_refused_where_a_reader_drops_them_too(
    copy_step: CopyStep, checkpoints: Path, refused: Refused, convert: Convert, tmp_path: Path
) -> None:
    """Training may drop them; a reader that does gives other ids each time. Qwen2Tokenizer does not."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(CASE.tokenizer(checkpoints), folder)
    edit_json(folder / "tokenizer.json", lambda said: said["model"].update(dropout=0.5))
    step, search = copy_step(CASE), Search(tokenizer=folder)
    assert convert(step, search=search).check("token_ids")["verdict"] == "passed"

    edit_json(folder / "tokenizer_config.json", lambda said: said.update(tokenizer_class="PreTrainedTokenizerFast"))
    refused(step, errors.TokenizerMismatch, search=search, force=True)


@pytest.mark.parametrize(
    "whole", [pytest.param(True, id="all imports"), pytest.param(False, id="a process", marks=pytest.mark.slow)]
)
def test_a_tokenizer_that_panics_is_refused_and_no_failure_of_the_machine(
    whole: bool, copy_step: CopyStep, checkpoints: Path, refused: Refused, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(CASE.tokenizer(checkpoints), folder)
    edit_json(folder / "tokenizer.json", lambda said: said["model"].update(continuing_subword_prefix="##"))
    if not whole:
        with Prover() as prover, pytest.raises(errors.AssetsInvalid, match="PanicException"):
            prover.ask("tokenizer", directory=str(folder), where=str(folder))
        return
    assert "does not load" in refused(copy_step(CASE), errors.AssetsInvalid, search=Search(tokenizer=folder)).what


def test_files_of_the_first_kind_are_read_once_there_is_the_tokenizer_json_that_the_hint_writes(
    copy_step: CopyStep, checkpoints: Path, refused: Refused, convert: Convert, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(CASE.tokenizer(checkpoints), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "tokenizer.json").unlink()
    tokenizer.model.save(str(folder))
    step, search = copy_step(CASE), Search(tokenizer=folder)

    error = refused(step, errors.TokenizerMismatch, search=search)

    command = error.hint.partition("python -c ")[2].partition('", and')[0].strip('"').replace("DIR", str(folder))
    subprocess.run([sys.executable, "-c", command], check=True)
    edit_json(folder / "tokenizer_config.json", lambda said: said.update(tokenizer_class="PreTrainedTokenizerFast"))
    done = convert(step, search=search)
    assert read(done.published) == trained(folder)
