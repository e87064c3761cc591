"""Promises that transformers 4.51, 4.57, 5.0 and the installed one read the same model and tokenizer from an export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.run import base_assets
from tests.integration.readers.conftest import Figures
from tests.integration.readers.environments import TRANSFORMERS, make
from tests.support.checkpoints import reference
from tests.support.checkpoints.cases import BY_NAME, ROPE_THETA, SEQ_LEN
from tests.unit.converter.running import Convert

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first one makes the environments

INSTALLED = "installed"
READERS = (*TRANSFORMERS, INSTALLED)
BEFORE_5 = ("4.51.3", "4.57.6")

EXPORTS = {
    "dense_tied-float32": ("dense_tied-0.2-fsdp-float32", {}),
    "dense_tied-bfloat16": ("dense_tied-0.2-fsdp-bfloat16", {}),
    "dense_untied-float32": ("dense_untied-0.2-2x2-float32", {}),
    "dense_untied-bfloat16": ("dense_untied-between-2x2-bfloat16", {"max_shard_size": 200_000}),
    "moe-float32": ("moe-between-2x2-float32", {"max_shard_size": 200_000}),
    "moe-bfloat16": ("moe-0.2-fsdp-bfloat16", {}),
}
"""Name of a case and options of its conversion: both generations of tokenizer files, one file of weights and many."""
BACKEND = "tokenizers-backend"
"""dense_tied-float32 once more, with a tokenizer whose class exists in transformers 5 only."""
WITHOUT = {
    "rope_theta": "dense_tied-float32",
    "torch_dtype": "dense_tied-bfloat16",
    "num_experts": "moe-float32",
}
"""Key taken out of a copy's config.json, and the export that was copied."""

TEXTS = (
    "Benzene is <SMILES>c1ccccc1</SMILES>, 12345.678 in all!\r\n\n  It's  HE'LL\t<CONFORMER>\n",
    "<|im_start|>user\nкошка naïve cafe\u0301 \U0001f999 3.14159<|im_end|> <|endoftext|></CONFORMER> ",
)
"""Special and added tokens, digits, runs of spaces, CRLF, a decomposed accent, letters beyond ASCII."""

LIST_ERROR = "AttributeError: 'list' object has no attribute 'keys'"
CLASS_ERROR = "ValueError: Tokenizer class TokenizersBackend does not exist or is not currently imported."


@dataclass(frozen=True)
class Reading:
    """What one reader made of one directory."""

    said: dict[str, Any]
    """As `read_transformers.read` gives it."""
    logits_file: Path

    @property
    def logits(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        assert "error" not in self.said["model"], self.said["model"]
        return np.asarray(np.load(self.logits_file))


@dataclass(frozen=True)
class Exported:
    path: Path
    warnings: list[str]


def read_all(python: Path, jobs: dict[str, dict[str, Any]], folder: Path) -> tuple[dict[str, Reading], dict[str, Any]]:
    """One process of that Python reads all directories: readings by job name, and its versions and times."""
    folder.mkdir()
    files = {name: folder / f"{name}.npy" for name in jobs}
    ended = subprocess.run(
        [python, "-I", Path(__file__).with_name("read_transformers.py")],
        input=json.dumps([{**job, "logits": str(files[name])} for name, job in jobs.items()]),
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))},
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    readings = zip(jobs, said["read"], strict=True)
    return {name: Reading(read, files[name]) for name, read in readings}, said["versions"]


@pytest.fixture(scope="session")
def exported(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    out = tmp_path_factory.mktemp("exported")
    convert = Convert()

    def one(name: str, case_name: str, **options: Any) -> Exported:
        (out / name).mkdir()
        done = convert(BY_NAME[case_name].step(checkpoints), output=out / name, **options)
        return Exported(done.published, done.warnings())

    all_of_them = {name: one(name, case_name, **options) for name, (case_name, options) in EXPORTS.items()}
    case_name = EXPORTS["dense_tied-float32"][0]
    backend = backend_tokenizer(BY_NAME[case_name].tokenizer(checkpoints), out / "tokenizer")
    all_of_them[BACKEND] = one(BACKEND, case_name, search=base_assets.Search(tokenizer=backend))
    return all_of_them


def backend_tokenizer(source: Path, folder: Path) -> Path:
    """What the installed transformers saves of a tokenizer of no class in particular, as people make them."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    return folder


@pytest.fixture(scope="session")
def without_key(exported: dict[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of exports with one key less in config.json, by that key."""
    out = tmp_path_factory.mktemp("without")
    for key, name in WITHOUT.items():
        shutil.copytree(exported[name].path, out / key)
        config = json.loads((out / key / "config.json").read_text())
        config.pop(key, None)
        (out / key / "config.json").write_text(json.dumps(config))
    return {key: out / key for key in WITHOUT}


Readings = dict[str, dict[str, Reading]]


@pytest.fixture(scope="session")
def readings(
    exported: dict[str, Exported],
    without_key: dict[str, Path],
    place: Path,
    figures: Figures,
    tmp_path_factory: pytest.TempPathFactory,
) -> Readings:
    """By reader, then by export or by the key that is missing."""

    def job(path: Path, export: str) -> dict[str, Any]:
        case_name = EXPORTS["dense_tied-float32" if export == BACKEND else export][0]
        tokens = reference.some_tokens(BY_NAME[case_name])
        return {"path": str(path), "tokens": tokens.tolist(), "texts": TEXTS}

    jobs = {name: job(export.path, name) for name, export in exported.items()}
    jobs |= {key: job(path, WITHOUT[key]) for key, path in without_key.items()}
    out = tmp_path_factory.mktemp("readings")
    found: Readings = {}
    for reader in READERS:
        python = Path(sys.executable) if reader == INSTALLED else make(TRANSFORMERS[reader], place)
        found[reader], versions = read_all(python, jobs, out / reader)
        assert versions["transformers"] == reader or reader == INSTALLED
        figures.setdefault("versions", {})[f"transformers {reader}"] = versions
    return found


def difference(reading: Reading, other: Reading) -> float:
    return float(np.abs(reading.logits - other.logits).max())


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("reader", TRANSFORMERS)
def test_an_older_reader_computes_the_same_logits(readings: Readings, figures: Figures, reader: str, name: str) -> None:
    """Dense models: 1e-5. Measured 0.0: the same float32 operations of the same torch in the same order; the room is
    for a version or processor that adds up in another order (float32 rounds logits of 13 at 1e-6).

    MoE: 1e-5 of the largest logit. 4.x adds up the experts' outputs in another order than 5.x; measured 8.4e-6.
    """
    ours, theirs = readings[INSTALLED][name], readings[reader][name]
    apart = difference(ours, theirs)
    largest = float(np.abs(ours.logits).max())
    figures.setdefault("logits", {}).setdefault(name, {})[reader] = {"apart": apart, "largest": largest}
    assert ours.logits.shape == theirs.logits.shape
    assert largest > 1
    assert apart <= (1e-5 * largest if name.startswith("moe") else 1e-5)


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_takes_the_same_facts(readings: Readings, reader: str, name: str) -> None:
    case = BY_NAME[EXPORTS[name][0]]
    said = readings[reader][name].said
    model, installed = said["model"], readings[INSTALLED][name].said["model"]
    assert model["theta"] == pytest.approx(ROPE_THETA, rel=1e-6)  # from float32 frequencies
    assert model["dtype"] == model["config_dtype"] == case.dtype
    assert model["dtypes"] == [case.dtype]
    assert model["tied"] is case.dims.tied
    assert model["positions"] == SEQ_LEN
    assert said["config"] == {"dtype": case.dtype, "experts": case.dims.experts or None}
    assert {key: model[key] for key in ("parameters", "eos")} == {key: installed[key] for key in ("parameters", "eos")}


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_tokenizes_the_same_or_dcp2hf_has_warned_of_it(
    readings: Readings, exported: dict[str, Exported], reader: str, name: str
) -> None:
    case = BY_NAME[EXPORTS[name][0]]
    said, installed = readings[reader][name].said, readings[INSTALLED][name].said["tokenizer"]
    warned = any("extra_special_tokens is a list" in warning for warning in exported[name].warnings)
    assert warned is (case.assets == "transformers5")
    read = said["tokenizer"]
    if warned and reader in BEFORE_5:
        assert read == {"error": LIST_ERROR}
        read = said["way_round"]
    for key in ("length", "ids", "texts", "special", "chat"):
        assert read[key] == installed[key], key
    assert installed["length"] == case.known_tokens
    added = range(case.known_tokens - 4, case.known_tokens)
    assert case.config == "0.3" or set(added) <= set().union(*installed["ids"])


@pytest.mark.parametrize("reader", READERS)
def test_a_tokenizer_class_of_transformers_5_is_warned_of_and_has_a_way_round(
    readings: Readings, exported: dict[str, Exported], reader: str
) -> None:
    said, installed = readings[reader][BACKEND].said, readings[INSTALLED][BACKEND].said["tokenizer"]
    assert any("tokenizer_class TokenizersBackend" in warning for warning in exported[BACKEND].warnings)
    read = said["tokenizer"]
    if reader in BEFORE_5:
        assert read == {"error": CLASS_ERROR}
        read = said["way_round"]
    for key in ("length", "ids", "texts"):
        assert read[key] == installed[key], key
    assert installed["ids"] == readings[INSTALLED]["dense_tied-float32"].said["tokenizer"]["ids"]
    assert difference(readings[reader][BACKEND], readings[INSTALLED]["dense_tied-float32"]) <= 1e-5


@pytest.mark.parametrize("reader", TRANSFORMERS)
def test_without_rope_theta_4x_computes_another_function(readings: Readings, figures: Figures, reader: str) -> None:
    reading, installed = readings[reader]["rope_theta"], readings[INSTALLED]["rope_theta"]
    apart = difference(reading, installed)
    figures.setdefault("without_rope_theta", {})[reader] = apart
    theta = reading.said["model"]["theta"]
    if reader in BEFORE_5:
        assert theta == pytest.approx(10_000, rel=1e-6)
        assert apart > 1
    else:
        assert theta == pytest.approx(ROPE_THETA, rel=1e-6)
        assert apart <= 1e-5
    assert difference(installed, readings[INSTALLED][WITHOUT["rope_theta"]]) == 0


@pytest.mark.parametrize("reader", READERS)
def test_without_torch_dtype_451_finds_no_dtype_in_the_config(readings: Readings, reader: str) -> None:
    """Its from_pretrained then takes the first weight's; whoever asks the config takes float32."""
    said = readings[reader]["torch_dtype"].said
    expected = "None" if reader == "4.51.3" else "bfloat16"
    assert said["config"]["dtype"] == said["model"]["config_dtype"] == expected
    assert said["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("reader", READERS)
def test_without_num_experts_only_the_installed_reader_loads_a_moe(readings: Readings, reader: str) -> None:
    """The others expect 128 experts, the default."""
    said = readings[reader]["num_experts"].said
    if reader == INSTALLED:
        assert said["config"]["experts"] == BY_NAME[EXPORTS["moe-float32"][0]].dims.experts
        assert "error" not in said["model"]
    else:
        assert said["config"]["experts"] == 128
        assert said["model"]["error"].startswith("RuntimeError: ")
