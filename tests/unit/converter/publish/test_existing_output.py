"""What lies under the published name already: replaced if it is an export, left if it is somebody's, kept if all fails."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint import probe
from converter.common import errors, names_on_disk
from converter.publish import swap
from converter.publish.lock import Lock
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.editing import edit_json, edit_metadata, flip
from tests.unit.converter.running import Convert, Refused, ours, tree

CopyStep = Callable[..., Path]
CASE = BY_NAME["one_rank"]


@pytest.fixture
def step(copy_step: CopyStep) -> Path:
    return copy_step(CASE)


def old_export(step: Path, *others: str) -> Path:
    """What a user's old script left: HF files without our manifest, and `others`."""
    folder = step.with_name(step.name + "-hf")
    folder.mkdir()
    for name in (
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        *others,
    ):
        (folder / name).write_text("old")
    return folder


def test_an_old_scripts_export_is_replaced_whole(step: Path, convert: Convert) -> None:
    folder = old_export(step)
    assert convert(step).published == folder
    assert not (folder / "model-00001-of-00001.safetensors").exists()
    assert not (folder / "model.safetensors.index.json").exists()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"


def test_a_directory_with_somebodys_files_is_refused_by_their_name_unless_forced(
    step: Path, refused: Refused, convert: Convert
) -> None:
    folder = old_export(step, "thesis.tex")
    error = refused(step, errors.OutputForeign)
    assert "thesis.tex" in error.what
    assert "--force" in error.hint
    assert error.retry == errors.Retry.FOREIGN
    convert(step, force=True)
    assert not (folder / "thesis.tex").exists()


def test_with_skip_a_foreign_directory_is_left_and_said(step: Path, convert: Convert) -> None:
    folder = old_export(step)
    before = tree(folder, times=True)
    converted = convert(step, if_exists="skip")
    assert converted.events == [("conversion_skipped", converted.events[0][1])]
    assert converted.result["reason"] == "foreign"
    assert tree(folder, times=True) == before


def test_a_directory_with_somebodys_files_that_appears_during_the_export_is_kept(
    step: Path, refused: Refused, convert: Convert
) -> None:
    published = step.with_name("step-2-hf")

    def appear(event: str) -> None:
        if event == "conversion_started":
            published.mkdir()
            (published / "notes.txt").write_text("mine")

    convert.on_event = appear
    with pytest.raises(errors.OutputForeign, match="notes"):
        convert(step)
    assert [path.name for path in published.iterdir()] == ["notes.txt"]
    assert ours(step.parent) == []


def test_with_skip_another_scripts_export_that_appears_during_the_export_is_kept(step: Path, convert: Convert) -> None:
    convert.on_event = lambda event: old_export(step) and None if event == "conversion_started" else None
    with pytest.raises(errors.OutputForeign, match="without our manifest"):
        convert(step, if_exists="skip")
    assert (step.with_name("step-2-hf") / "config.json").read_text() == "old"
    assert ours(step.parent) == []


def test_with_ours_only_an_export_without_our_manifest_is_kept_also_where_ours_would_be_overwritten(
    step: Path, refused: Refused, convert: Convert
) -> None:
    published = convert(step).published
    convert(step, ours_only=True)
    (published / names_on_disk.MANIFEST).unlink()
    before = tree(published, times=True)

    assert "an export without our manifest" in refused(step, errors.OutputForeign, ours_only=True).what
    assert tree(published, times=True) == before


@pytest.mark.parametrize("name", ["model-ema-best.safetensors", "chat_template.jinja", "vocab.txt"])
def test_in_our_directory_what_the_manifest_does_not_list_is_somebodys_whatever_its_name(
    name: str, step: Path, convert: Convert, refused: Refused
) -> None:
    published = convert(step).published
    assert not (published / name).exists()
    (published / name).write_text("mine")
    assert name in refused(step, errors.OutputForeign).what
    edit_metadata(step, lambda metadata: setattr(metadata.storage_meta, "save_id", "second"))
    assert convert(step, if_exists="skip").result["reason"] == "foreign"
    assert (published / name).read_text() == "mine"


def test_what_is_replaced_is_said_whose_it_was_and_in_which_dtype(step: Path, convert: Convert) -> None:
    assert "replaced" not in convert(step, dtype="float32").result
    assert convert(step, dtype="bfloat16").result["replaced"] == {"whose": "ours", "dtype": "float32"}
    published = step.with_name("step-2-hf")
    (published / names_on_disk.MANIFEST).unlink()
    assert convert(step, dtype="float32").result["replaced"] == {"whose": "export", "dtype": "bfloat16"}
    (published / "thesis.tex").touch()
    assert convert(step, force=True).result["replaced"] == {"whose": "foreign", "dtype": "float32"}


def test_an_edited_file_of_a_replaced_export_is_kept_and_its_place_is_told(step: Path, convert: Convert) -> None:
    edited = convert(step).published / "generation_config.json"
    edited.write_text('{"do_sample": false}')
    converted = convert(step)
    (name,) = ours(step.parent)
    assert (step.parent / name / edited.name).read_text() == '{"do_sample": false}'
    assert edited.read_text() != '{"do_sample": false}'
    (told,) = (text for text in converted.warnings() if name in text)
    assert edited.name in told


def test_what_a_dead_attempt_had_of_a_person_is_kept_and_its_place_is_told(step: Path, convert: Convert) -> None:
    left = step.parent / names_on_disk.staging_name(2, "0123456789abcdef")
    left.mkdir()
    (left / "notes.md").write_text("mine")
    converted = convert(step)
    (name,) = ours(step.parent)
    assert (step.parent / name / "notes.md").read_text() == "mine"
    assert any(str(step.parent / name) in text for text in converted.warnings())


def test_an_export_of_another_runs_step_is_not_replaced_unless_forced(
    copy_run: Callable[..., Path], step: Path, tmp_path: Path, convert: Convert, refused: Refused
) -> None:
    output = tmp_path / "exports"
    output.mkdir()
    convert(step, output=output)
    second = copy_run(CASE, to=tmp_path / "second")
    other = CASE.step(second)
    edit_metadata(other, lambda metadata: setattr(metadata.storage_meta, "save_id", "second"))
    before = tree(output, times=True)
    convert(step, output=output)
    convert(other, output=output)  # the same run config: the step was saved again
    edit_json(CASE.run_config(second), lambda said: said.setdefault("metrics", {}).update(prefix="another"))
    convert(step, output=output, force=True)
    error = refused(other, errors.OutputForeign, output=output)
    assert "another run" in error.what
    assert "--output" in error.hint
    assert convert(other, output=output, if_exists="skip").result["reason"] == "foreign"
    assert tree(output).keys() == before.keys()
    convert(other, output=output, force=True)


def test_a_run_replaces_its_own_export_whatever_its_config_says_now(
    step: Path, tmp_path: Path, convert: Convert
) -> None:
    convert(step, output=step.parent)
    edit_metadata(step, lambda metadata: setattr(metadata.storage_meta, "save_id", "second"))
    edit_json(CASE.run_config(tmp_path), lambda said: said.setdefault("metrics", {}).update(prefix="another"))
    assert convert(step, output=step.parent).result["replaced"]["whose"] == "ours"


@pytest.mark.parametrize("options", [{}, {"if_exists": "skip"}])
def test_an_empty_directory_is_nobodys_work(options: dict[str, str], step: Path, convert: Convert) -> None:
    step.with_name("step-2-hf").mkdir()
    assert "replaced" not in convert(step, **options).result
    assert (step.with_name("step-2-hf") / names_on_disk.MANIFEST).exists()


def test_an_export_that_loses_a_file_before_it_is_published_is_not_published(
    step: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(staging: Path) -> None:
        (staging / "generation_config.json").unlink()

    monkeypatch.setattr(swap, "make_durable", lose)
    with pytest.raises(errors.MachineFailure, match="is missing") as caught:
        convert(step)
    assert caught.value.path.endswith("generation_config.json")
    assert not step.with_name("step-2-hf").exists()


@pytest.mark.parametrize("spoil", [
    lambda staging: (staging / "config.json").write_text("{}"),
    lambda staging: (staging / "more").touch(),
    lambda staging: (staging / names_on_disk.MANIFEST).write_bytes((staging / names_on_disk.MANIFEST).read_bytes().replace(b"a", b"b")),
], ids=["size", "another file", "manifest"])  # fmt: skip
def test_what_is_published_is_what_the_manifest_lists(
    spoil: Callable[[Path], object], step: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "make_durable", spoil)
    assert "nothing was published" in refused(step, errors.MachineFailure).what


@pytest.mark.parametrize("options", [{}, {"if_exists": "skip"}])
def test_an_older_saves_export_is_replaced(options: dict[str, str], step: Path, convert: Convert) -> None:
    first = convert(step).manifest["save_id"]
    edit_metadata(step, lambda metadata: setattr(metadata.storage_meta, "save_id", "second"))
    assert convert(step, **options).manifest["save_id"] == "second" != first


def test_an_export_that_lost_a_file_is_made_anew(step: Path, convert: Convert) -> None:
    published = convert(step).published
    (published / "tokenizer.json").unlink()
    assert convert(step, if_exists="skip").events[-1][0] == "conversion_succeeded"
    assert (published / "tokenizer.json").exists()


def test_a_failure_leaves_the_older_export_as_it_was(step: Path, convert: Convert, refused: Refused) -> None:
    published = convert(step).published
    before = tree(published, times=True)
    _, metadata = probe.read(step)
    [chunk] = metadata.tensors["tok_embeddings.weight"].chunks
    flip(step / chunk.file, chunk.offset + chunk.length // 2)
    refused(step, errors.PayloadCorrupt)
    assert tree(published, times=True) == before


def test_what_a_dead_attempt_left_is_cleared_by_the_next(step: Path, convert: Convert) -> None:
    for name in (names_on_disk.staging_name(2, "0" * 16), names_on_disk.staging_name(2, "1" * 16)):
        (step.parent / name).mkdir()
        (step.parent / name / "model.safetensors").write_bytes(bytes(1000))
    convert(step)
    assert ours(step.parent) == []


def test_an_attempt_that_is_taken_over_publishes_nothing(step: Path, convert: Convert) -> None:
    lock = step.parent / names_on_disk.lock_name(2)

    def take_over(event: str) -> None:
        if event == "conversion_started":
            lock.write_text("{}")

    convert.on_event = take_over
    with pytest.raises(errors.LockLost):
        convert(step)
    assert ours(step.parent) == [lock.name]
    assert not step.with_name("step-2-hf").exists()


def test_a_step_that_a_live_owner_converts_is_waited_for(step: Path, convert: Convert) -> None:
    other = Lock(step.parent, 2)
    other.__enter__()

    def end(seconds: float) -> None:
        assert seconds == 1.0
        other.__exit__(None, None, None)

    convert.sleep = end
    events = convert(step).events
    waiting = dict(events)["waiting_for_lock"]
    assert waiting["pid"] == os.getpid()
    assert events[-1][0] == "conversion_succeeded"


def test_without_room_nothing_is_begun(step: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = os.statvfs(step)
    scarce = os.statvfs_result((*facts[:4], 3, *facts[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: scarce)
    error = refused(step, errors.NoSpace)
    assert error.retry == errors.Retry.SPACE


def test_a_file_system_that_fills_up_is_told_from_other_failures(
    step: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    refused(step, errors.NoSpace)


def test_a_failed_export_into_a_folder_of_its_own_leaves_no_folder(copy_step: CopyStep, refused: Refused) -> None:
    nan = BY_NAME["nan"]
    step = copy_step(nan)
    edit_json(nan.run_config(step.parents[2]), lambda said: said["checkpoint"].update(keep_latest_k=2))
    refused(step, errors.NonFiniteTensor)
