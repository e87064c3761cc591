"""What the run says of itself, and the assets it points to: where they are wrong, one clear error and nothing published."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.common import errors
from converter.run.base_assets import Search
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.editing import edit_json
from tests.unit.converter.running import Convert, Refused

CopyStep = Callable[..., Path]
OLD = BY_NAME["one_rank"]
"""A 0.2 run: base assets and tokenizer in two folders."""
NEW = BY_NAME["two_steps"]
"""A 0.3 run."""


def test_a_missing_run_config_is_named_with_the_places_looked_at(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(OLD)
    config = step.parent / "config.json"
    config.unlink()
    error = refused(step, errors.RunConfigMissing)
    assert str(config) in error.what
    assert "--run-config" in error.hint
    assert error.retry == errors.Retry.CONFIG


def test_a_hf_models_config_in_its_place_is_not_taken_for_one(
    copy_step: CopyStep, checkpoints: Path, refused: Refused, convert: Convert
) -> None:
    step = copy_step(OLD)
    own = step.parent / "config.json"
    own.rename(step.parent / "job_config.json")
    shutil.copy(OLD.base_assets(checkpoints) / "config.json", own)
    assert convert(step).manifest["step"] == 2
    shutil.rmtree(OLD.published(step.parents[2]))
    (step.parent / "job_config.json").unlink()
    refused(step, errors.RunConfigMissing)
    refused(step, errors.RunConfigUnreadable, run_config=own)


@pytest.mark.parametrize("payload", [b"", b"{", b'{"training": {"dtype": "bfl', b"\xff\xfe{}", b"[" * 100_000])
def test_a_half_written_run_config_is_waited_for_not_skipped(
    payload: bytes, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(OLD)
    shutil.copy(step.parent / "config.json", step.parent / "job_config.json")
    (step.parent / "config.json").write_bytes(payload)
    error = refused(step, errors.RunConfigUnreadable)
    assert error.path == str(step.parent / "config.json")
    assert error.retry == errors.Retry.CONFIG


@pytest.mark.parametrize(("key", "value"), [("dtype", "float8"), ("dtype", ["x"]), ("seq_len", 0), ("seq_len", "4096")])
def test_a_run_config_with_an_unusable_value_is_refused_by_its_name(
    key: str, value: object, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(OLD)
    edit_json(step.parent / "config.json", lambda said: said["training"].update({key: value}))
    assert f"training.{key}" in refused(step, errors.RunConfigUnreadable).what


@pytest.mark.parametrize(
    ("key", "value"), [("rope_theta", "high"), ("n_heads", 0), ("head_dim", -32), ("dim", [72]), ("norm_eps", {})]
)
def test_a_recorded_dimension_that_is_none_is_refused_and_stops_no_process(
    key: str, value: object, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(OLD)
    edit_json(step.parent / "config.json", lambda said: said["model"].update({key: value}))
    with pytest.raises(errors.ConversionError) as caught:
        refused.convert(step)
    assert not isinstance(caught.value, errors.MachineFailure)


@pytest.mark.parametrize("dump", ["dim", "layers", "vocab_size"])
def test_a_damaged_record_of_a_model_is_refused_and_stops_no_process(
    dump: str, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(NEW)
    edit_json(step.parent / "config.json", lambda said: said["model_spec"]["model"].update({dump: "many"}))
    with pytest.raises(errors.ConversionError) as caught:
        refused.convert(step)
    assert not isinstance(caught.value, errors.MachineFailure)


def record(step: Path, path: str | None) -> None:
    """Has the run config of a 0.2 run name other base assets; its tokenizer stays."""
    edit_json(step.parent / "config.json", lambda said: said["model"].update(hf_assets_path=path))


def test_assets_that_are_gone_are_named_with_the_places_tried(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(OLD)
    record(step, "/no/such/folder")
    error = refused(step, errors.AssetsMissing, search=Search(assets_roots=(step.parent,)))
    assert "/no/such/folder" in error.what
    assert str(step.parent / "no/such/folder") in error.what
    assert "--hf-assets" in error.hint


def test_assets_that_the_run_config_does_not_name_are_asked_for(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(OLD)
    record(step, None)
    assert "--hf-assets" in refused(step, errors.AssetsNotConfigured).hint


def test_relative_assets_are_found_below_the_run_folder_and_its_parents(
    copy_step: CopyStep,
    checkpoints: Path,
    tmp_path: Path,
    convert: Convert,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = copy_step(OLD)
    record(step, "./assets/hf/tiny")
    cwd = tmp_path / "cwd"
    shutil.copytree(OLD.base_assets(checkpoints), cwd / "assets/hf/tiny")
    monkeypatch.chdir(cwd)
    refused(step, errors.AssetsMissing)  # never below our own current directory
    for parent in (step.parent, step.parents[1], step.parents[2]):
        shutil.copytree(OLD.base_assets(checkpoints), parent / "assets/hf/tiny")
        shutil.rmtree(convert(step).published)
        shutil.rmtree(parent / "assets")


def test_assets_roots_and_path_map_lead_to_assets_that_moved(
    copy_step: CopyStep, checkpoints: Path, tmp_path: Path, convert: Convert
) -> None:
    step = copy_step(OLD)
    moved = tmp_path / "mount"
    shutil.copytree(OLD.base_assets(checkpoints), moved / "assets" / "tiny")
    record(step, "/lustre/assets/tiny")
    for search in (
        Search(assets_roots=(tmp_path / "nowhere", moved / "assets")),
        Search(path_map=(("/lustre", str(moved)),)),
        Search(path_map=(("/lustre/assets/tiny/", str(moved / "assets" / "tiny")),)),
        Search(hf_assets=moved / "assets" / "tiny"),
    ):
        shutil.rmtree(convert(step, search=search).published)


def test_a_tokenizer_that_is_gone_is_named(copy_step: CopyStep, refused: Refused, convert: Convert) -> None:
    step = copy_step(OLD)
    edit_json(
        step.parent / "config.json", lambda said: said["molgen_data"].update(tokenizer_override="/gone/tokenizer")
    )
    error = refused(step, errors.AssetsMissing)
    assert "recorded tokenizer '/gone/tokenizer'" in error.what
    assert "--tokenizer" in error.hint
    refused(step, errors.AssetsMissing, search=Search(tokenizer=step / "gone"))


@pytest.mark.parametrize(
    ("name", "payload", "kind"),
    [
        ("config.json", None, errors.AssetsMissing),
        ("config.json", b"{", errors.AssetsInvalid),
        ("config.json", b"[]", errors.AssetsInvalid),
        ("generation_config.json", b"{", errors.AssetsInvalid),
        ("tokenizer.json", b"{", errors.AssetsInvalid),
        ("tokenizer.json", b"{}", errors.AssetsInvalid),
        ("merges.txt", b"root:x:0:0:root:/root:/bin/bash", errors.AssetsInvalid),
        ("chat_template.jinja", b"\xff\xff", errors.AssetsInvalid),
        ("tokenizer_config.json", b'"secret"', errors.AssetsInvalid),
    ],
)
def test_an_asset_that_is_not_what_its_name_says_is_refused_and_not_quoted(
    name: str, payload: bytes | None, kind: type[errors.ConversionError], copy_step: CopyStep, checkpoints: Path,
    tmp_path: Path, refused: Refused,
) -> None:  # fmt: skip
    step = copy_step(NEW)
    folder = tmp_path / "changed"
    shutil.copytree(NEW.base_assets(checkpoints), folder)
    (folder / name).unlink(missing_ok=True)
    if payload is not None:
        (folder / name).write_bytes(payload)
    error = refused(step, kind, search=Search(hf_assets=folder, tokenizer=folder))
    assert "root" not in error.what
    assert "secret" not in error.what
    assert str(folder) in error.path


def test_a_pipe_in_the_place_of_an_asset_does_not_hang(
    copy_step: CopyStep, checkpoints: Path, tmp_path: Path, refused: Refused
) -> None:
    step = copy_step(OLD)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        folder = tmp_path / f"pipe-{name}"
        shutil.copytree(OLD.tokenizer(checkpoints), folder)
        shutil.copytree(OLD.base_assets(checkpoints), folder, dirs_exist_ok=True)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(step, errors.AssetsInvalid, search=Search(hf_assets=folder, tokenizer=folder))


def test_two_run_configs_that_differ_are_reported_and_both_recorded(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(OLD)
    said = json.loads((step.parent / "config.json").read_text())
    said["training"]["seq_len"] *= 2
    (step.parent / "job_config.json").write_text(json.dumps(said))
    converted = convert(step)
    conflict = next(fields for event, fields in converted.events if event == "run_config_conflict")
    assert conflict["differs"] == ["seq_len"]
    assert conflict["used"] == str(step.parent / "config.json")
    assert converted.manifest["run_config_conflict_sha256"] != converted.manifest["run_config_sha256"]
