"""The same save gives the same bytes wherever, whenever and with however many threads; HF shards are transformers' own."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from converter.run.base_assets import Search
from tests.support.checkpoints.cases import BY_NAME, Case
from tests.unit.converter.editing import edit_json
from tests.unit.converter.running import Convert

CopyStep = Callable[..., Path]
TIED, MOE = BY_NAME["dense_tied-0.2-2x2-bfloat16"], BY_NAME["moe-0.3-2x2-float32"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", [TIED, MOE, BY_NAME["crc_off"]], ids=lambda case: case.name)
def test_converting_twice_in_other_places_with_other_threads_gives_the_same_directory(
    case: Case, copy_run: CopyStep, checkpoints: Path, tmp_path: Path, convert: Convert
) -> None:
    (tmp_path / "output").mkdir()
    one = convert(case.step(checkpoints), output=tmp_path / "output", threads=1).published
    other = convert(case.step(copy_run(case)), threads=4).published
    assert one != other
    assert contents(one) == contents(other)


def test_nothing_of_the_place_or_the_machine_stands_in_the_manifest(
    checkpoints: Path, tmp_path: Path, convert: Convert
) -> None:
    text = (convert(TIED.step(checkpoints), output=tmp_path).published / "conversion.json").read_text()
    for private in (str(tmp_path), str(checkpoints), TIED.name, os.uname().nodename):
        assert private not in text


@pytest.mark.parametrize("size", [200_000, 60_000, 30_000, 1])
@pytest.mark.parametrize("case", [TIED, MOE], ids=lambda case: case.name)
def test_hf_shards_and_index_are_those_of_save_pretrained(
    case: Case, size: int, checkpoints: Path, tmp_path: Path, convert: Convert
) -> None:
    (tmp_path / "output").mkdir()
    converted = convert(case.step(checkpoints), output=tmp_path / "output", max_shard_size=size)
    model = AutoModelForCausalLM.from_pretrained(converted.published, dtype="auto")
    model.save_pretrained(tmp_path / "saved", max_shard_size=size)
    weights = {name: blob for name, blob in contents(tmp_path / "saved").items() if name.startswith("model")}
    found = {name: blob for name, blob in contents(converted.published).items() if name.startswith("model")}
    assert found.keys() == weights.keys()
    assert found["model.safetensors.index.json"] == weights["model.safetensors.index.json"]
    assert found == weights


def test_an_export_with_an_index_is_made_where_no_trainer_takes_it_for_a_checkpoint(
    copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(TIED)
    published = convert(step, max_shard_size=200_000).published
    assert published == step.parent / "hf" / "step-2-hf"


@pytest.mark.parametrize(("keep", "folder"), [(2, "hf"), (3, "."), (None, ".")])
def test_a_run_that_keeps_two_checkpoints_gets_no_siblings(
    keep: int | None, folder: str, copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(TIED)
    edit_json(TIED.run_config(step.parents[2]), lambda said: said["checkpoint"].update(keep_latest_k=keep))
    assert convert(step).published == step.parent / folder / "step-2-hf"


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_modes_follow_another_umask(umask: int, checkpoints: Path, tmp_path: Path, convert: Convert) -> None:
    before = os.umask(umask)
    try:
        published = convert(TIED.step(checkpoints), output=tmp_path).published
    finally:
        os.umask(before)
    assert stat.S_IMODE(published.stat().st_mode) == 0o777 & ~umask
    assert {stat.S_IMODE(path.stat().st_mode) for path in published.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_another_dtype_is_exported_when_asked_for(
    dtype: str, checkpoints: Path, tmp_path: Path, convert: Convert
) -> None:
    published = convert(MOE.step(checkpoints), output=tmp_path, dtype=dtype).published
    config = json.loads((published / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == dtype
    model = AutoModelForCausalLM.from_pretrained(published, dtype="auto")
    assert str(model.dtype) == f"torch.{dtype}"
    model.save_pretrained(tmp_path / "saved")
    assert contents(tmp_path / "saved")["model.safetensors"] == contents(published)["model.safetensors"]


def test_templates_in_their_own_folder_are_copied_and_other_files_are_not(
    copy_step: CopyStep, checkpoints: Path, tmp_path: Path, convert: Convert
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(TIED.tokenizer(checkpoints), folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates" / "notes.txt").write_text("mine")
    (folder / "model.safetensors").write_text("not copied")
    (folder / "tokenization_custom.py").write_text("raise SystemExit")
    converted = convert(copy_step(TIED), search=Search(tokenizer=folder))
    names = set(contents(converted.published))
    assert "additional_chat_templates/rag.jinja" in names
    assert "additional_chat_templates/rag.jinja" in converted.manifest["files"]
    assert not {"additional_chat_templates/notes.txt", "tokenization_custom.py", "metadata.json"} & names


def test_a_generation_config_is_made_from_the_config_where_the_base_has_none(
    copy_step: CopyStep, base_assets: Callable[..., Path], convert: Convert
) -> None:
    base = base_assets(TIED)
    (base / "generation_config.json").unlink()
    published = convert(copy_step(TIED), search=Search(hf_assets=base)).published
    made = json.loads((published / "generation_config.json").read_text())
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(published))
    assert made == json.loads(model.generation_config.to_json_string())
