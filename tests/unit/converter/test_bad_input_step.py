"""A step that is no whole, plain, still checkpoint is refused: one clear error, nothing published, nothing of ours left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.common import errors
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.editing import edit_metadata, make_newer
from tests.unit.converter.running import Convert, Refused

CopyStep = Callable[..., Path]
PLAIN = BY_NAME["one_rank"]
FOUR = BY_NAME["dense_tied-0.2-fsdp-float32"]


def test_a_step_without_metadata_is_incomplete(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(PLAIN)
    (step / ".metadata").unlink()
    error = refused(step, errors.StepIncomplete)
    assert error.path == str(step)
    assert ".metadata" in error.what


def test_a_step_with_a_shard_missing_is_incomplete(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(FOUR)
    (step / "__2_0.distcp").unlink()
    assert "__2_0.distcp is missing" in refused(step, errors.StepIncomplete).what


def test_a_step_with_a_shard_one_byte_short_is_incomplete(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(FOUR)
    shard = step / "__1_0.distcp"
    facts = shard.stat()
    os.truncate(shard, facts.st_size - 1)
    os.utime(shard, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    what = refused(step, errors.StepIncomplete).what
    assert f"__1_0.distcp has {facts.st_size - 1:,} of {facts.st_size:,} bytes" in what


def test_a_torch_checkpointing_step_is_another_format(copy_step: CopyStep, refused: Refused) -> None:
    error = refused(copy_step(BY_NAME["torch_checkpointing"]), errors.UnsupportedFormat)
    assert "torch_checkpointing" in error.what
    assert error.retry == errors.Retry.UNSUPPORTED


@pytest.mark.parametrize("name", ["optimizer_only", "dataloader_only"])
def test_a_step_without_a_model_is_named_so(name: str, copy_run: CopyStep, refused: Refused) -> None:
    case = BY_NAME[name]
    assert "no model tensors" in refused(case.step(copy_run(case)), errors.NoModelInStep).what


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "elsewhere"])
def test_a_symbolic_link_in_a_step_is_not_followed_and_called_unsupported_not_hostile(
    name: str, copy_step: CopyStep, tmp_path: Path, refused: Refused
) -> None:
    step = copy_step(PLAIN)
    target = tmp_path / "target"
    if (step / name).exists():
        (step / name).rename(target)
    else:
        target.mkdir()
    (step / name).symlink_to(target)
    error = refused(step, errors.UnsupportedFormat)
    assert repr(name) in error.what
    assert error.path == str(step / name)


def test_shards_newer_than_metadata_are_suspect_until_a_person_accepts_the_copy(
    copy_step: CopyStep, refused: Refused, convert: Convert
) -> None:
    step = copy_step(PLAIN)
    make_newer(step, 5.5)
    error = refused(step, errors.StepSuspect)
    assert "--accept-copy" in error.hint
    assert "newer than .metadata" in error.what
    converted = convert(step, accept_copy=True)
    assert convert.waits == [60.0]
    assert converted.manifest["accepted"] == {"copy": True}


def test_a_copy_with_cp_r_is_suspect_and_one_with_cp_a_is_not(
    copy_step: CopyStep, tmp_path: Path, refused: Refused, convert: Convert
) -> None:
    plain = copy_step(PLAIN)
    copied = tmp_path / "elsewhere" / "step-2"
    shutil.copytree(plain, copied, copy_function=shutil.copy)  # as `cp -r`: the times are those of copying
    shutil.copy(PLAIN.run_config(tmp_path), copied.parent)
    make_newer(copied, 30)  # a real checkpoint takes a while to copy
    refused(copied, errors.StepSuspect)
    assert convert(plain).manifest["accepted"] == {}
    assert convert.waits == []


def test_shards_newer_by_at_most_five_seconds_only_have_to_settle(copy_step: CopyStep, convert: Convert) -> None:
    step = copy_step(PLAIN)
    make_newer(step, 5.0)
    converted = convert(step)
    assert convert.waits == [10.0]
    assert converted.manifest["accepted"] == {}


@pytest.mark.parametrize(("late", "accept"), [(3.0, False), (3600.0, True)])
def test_a_step_still_written_to_while_it_is_watched_is_incomplete(
    late: float, accept: bool, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(PLAIN)
    make_newer(step, late)
    shard = step / "__0_0.distcp"

    def write(_: float) -> None:
        os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))

    refused.convert.sleep = write
    assert "being written" in refused(step, errors.StepIncomplete, accept_copy=accept).what


def test_a_step_saved_again_or_purged_while_it_is_converted_is_not_published(
    copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(PLAIN)

    once = iter((True,))  # threads report progress side by side

    def save_again(event: str) -> None:
        if event == "conversion_progress" and next(once, False):
            edit_metadata(step, lambda metadata: setattr(metadata.storage_meta, "save_id", "another"))

    convert.on_event = save_again
    with pytest.raises(errors.StepVanished):
        convert(step)
    assert sorted(path.name for path in step.parent.iterdir()) == ["config.json", "step-2"]

    convert.on_event = lambda event: shutil.rmtree(step, ignore_errors=True)
    with pytest.raises(errors.StepVanished):
        convert(step)
    assert [path.name for path in step.parent.iterdir()] == ["config.json"]


def test_what_is_wrong_with_a_shard_that_is_being_written_again_is_not_the_steps_fault(
    copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(PLAIN)
    shard = step / "__0_0.distcp"

    def write_again(event: str) -> None:
        if event == "conversion_started":
            shard.write_bytes(os.urandom(shard.stat().st_size))

    convert.on_event = write_again
    with pytest.raises(errors.StepVanished):
        convert(step)
    convert.on_event = lambda event: None
    at = (step / ".metadata").stat().st_mtime_ns
    os.utime(shard, ns=(at, at))
    with pytest.raises(errors.ConversionError) as caught:
        convert(step)
    assert caught.value.retry == errors.Retry.NEVER, "once it stays as it is"
    assert sorted(path.name for path in step.parent.iterdir()) == ["config.json", "step-2"]


def test_a_step_in_hf_form_with_a_broken_head_is_refused_by_the_entrys_name(
    copy_step: CopyStep, refused: Refused
) -> None:
    error = refused(copy_step(BY_NAME["last_in_hf_corrupt"]), errors.StepDamaged)
    assert "lm_head.weight" in error.what
    assert error.path.endswith("model-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00002-of-00002.safetensors"])
def test_a_step_in_hf_form_that_lacks_a_file_is_incomplete(name: str, copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(BY_NAME["last_in_hf"])
    (step / name).unlink()
    assert name in refused(step, errors.StepIncomplete).what


def test_a_step_in_hf_form_with_a_file_one_byte_short_is_incomplete(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(BY_NAME["last_in_hf"])
    path = step / "model-00001-of-00002.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    assert path.name in refused(step, errors.StepIncomplete).what


def test_a_nonempty_step_of_an_unknown_kind_is_incomplete(copy_step: CopyStep, refused: Refused) -> None:
    step = copy_step(PLAIN)
    for path in step.iterdir():
        path.unlink()
    (step / "notes.txt").touch()
    refused(step, errors.StepIncomplete)
