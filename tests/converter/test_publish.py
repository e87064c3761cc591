"""Publishing: the new directory is there whole or the old one is, whatever dies, and nobody's files are lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from converter import errors, layout, publish
from converter.publish import check_replaceable, clear, make_durable, staging_path

TOKEN = "0123456789abcdef"


@pytest.fixture(params=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of replacing: where names can be exchanged, and where they cannot (NFS)."""
    if request.param == "two renames":
        monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    return str(request.param)


def staged(folder: Path, text: str) -> Path:
    path = staging_path(folder, 1, TOKEN)
    path.mkdir()
    (path / "config.json").write_text(text)
    return path


def put(folder: Path, text: str) -> Path:
    path = folder / "step-1-hf"
    path.mkdir()
    (path / "config.json").write_text(text)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_staging_directory_becomes_the_published_one(tmp_path: Path) -> None:
    staging = staged(tmp_path, "new")
    make_durable(staging)
    publish.publish(staging, tmp_path / "step-1-hf", 1, TOKEN)
    assert names(tmp_path) == ["step-1-hf"]
    assert (tmp_path / "step-1-hf" / "config.json").read_text() == "new"


def test_an_older_directory_is_replaced_and_nothing_of_it_stays(swap: str, tmp_path: Path) -> None:
    published = put(tmp_path, "old")
    (published / "only-in-old").touch()
    publish.publish(staged(tmp_path, "new"), published, 1, TOKEN)
    assert names(tmp_path) == ["step-1-hf"]
    assert names(published) == ["config.json"]
    assert (published / "config.json").read_text() == "new"


def test_a_reader_that_holds_the_old_directory_reads_on(swap: str, tmp_path: Path) -> None:
    published = put(tmp_path, "old")
    with (published / "config.json").open() as file:
        publish.publish(staged(tmp_path, "new"), published, 1, TOKEN)
        assert file.read() == "old"


def test_with_an_exchange_the_published_name_is_never_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = put(tmp_path, "old")
    monkeypatch.setattr(publish, "_rename", lambda old, new: pytest.fail("a rename leaves a gap"))
    publish.publish(staged(tmp_path, "new"), published, 1, TOKEN)
    assert (published / "config.json").read_text() == "new"


def stop_after(renames: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """The process ends, or is interrupted, before the rename after so many."""
    done = [0]
    rename = publish._rename

    def count(old: Path, new: Path) -> None:
        if done[0] == renames:
            raise error("here it ends")
        done[0] += 1
        rename(old, new)

    monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    monkeypatch.setattr(publish, "_rename", count)


def test_a_crash_between_the_two_renames_is_recovered_by_whoever_comes_next(tmp_path: Path) -> None:
    published = put(tmp_path, "old")
    staging = staged(tmp_path, "new")
    os.rename(published, tmp_path / layout.replaced_name(1, TOKEN))  # and here it died
    clear(tmp_path, 1)
    assert names(tmp_path) == ["step-1-hf"]
    assert (published / "config.json").read_text() == "old"
    assert not staging.exists()


def test_a_crash_after_the_two_renames_leaves_the_new_directory(tmp_path: Path) -> None:
    published = put(tmp_path, "old")
    staging = staged(tmp_path, "new")
    os.rename(published, tmp_path / layout.replaced_name(1, TOKEN))
    os.rename(staging, published)
    clear(tmp_path, 1)
    assert names(tmp_path) == ["step-1-hf"]
    assert (published / "config.json").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_between_the_two_renames_puts_the_old_directory_back(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = put(tmp_path, "old")
    staging = staged(tmp_path, "new")
    rename = publish._rename

    def fail_once(old: Path, new: Path) -> None:
        if old == staging:
            raise error("here it ends")
        rename(old, new)

    monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    monkeypatch.setattr(publish, "_rename", fail_once)
    with pytest.raises(error):
        publish.publish(staging, published, 1, TOKEN)
    publish.remove_tree(staging)
    assert names(tmp_path) == ["step-1-hf"]
    assert (published / "config.json").read_text() == "old"


def test_clearing_touches_one_step_only_and_nobodys_names(tmp_path: Path) -> None:
    kept = [layout.staging_name(2, TOKEN), layout.replaced_name(3, TOKEN), layout.lock_name(1), "step-1", ".dcp2hf-1"]
    for name in (*kept, layout.staging_name(1, TOKEN), layout.staging_name(1, "f" * 16)):
        (tmp_path / name).mkdir()
    clear(tmp_path, 1)
    assert names(tmp_path) == sorted(kept)


def test_a_rename_whose_answer_was_lost_has_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def lose_the_answer(old: Path, new: Path) -> None:
        rename(old, new)
        raise FileNotFoundError(2, "on NFS a retried rename finds nothing")

    monkeypatch.setattr(publish.os, "rename", lose_the_answer)
    publish.publish(staged(tmp_path, "new"), tmp_path / "step-1-hf", 1, TOKEN)
    assert names(tmp_path) == ["step-1-hf"]


def test_a_rename_that_failed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(old: Path, new: Path) -> None:
        raise PermissionError(13, "no")

    staging = staged(tmp_path, "new")
    monkeypatch.setattr(publish.os, "rename", refuse)
    with pytest.raises(PermissionError):
        publish.publish(staging, tmp_path / "step-1-hf", 1, TOKEN)
    assert staging.exists()


def test_every_file_and_folder_is_synced_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = staged(tmp_path, "x")
    (staging / "additional_chat_templates").mkdir()
    (staging / "additional_chat_templates" / "a.jinja").touch()
    synced = set()
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    make_durable(staging)
    assert synced == {str(path) for path in (staging, *staging.rglob("*"))}
    publish.publish(staging, tmp_path / "step-1-hf", 1, TOKEN)
    assert str(tmp_path) in synced


def taken_by_a_file(path: Path) -> None:
    path.write_text("x")


def taken_by_a_link(path: Path) -> None:
    path.symlink_to(path.parent)


def taken_by_a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("take", [taken_by_a_file, taken_by_a_link, taken_by_a_dangling_link])
def test_a_name_taken_by_something_that_is_no_directory_is_refused_even_by_force(
    take: Callable[[Path], None], tmp_path: Path
) -> None:
    take(tmp_path / "step-1-hf")
    for force in (False, True):
        with pytest.raises(errors.OutputForeign, match="no directory"):
            check_replaceable(tmp_path / "step-1-hf", force=force)


def test_a_folder_made_for_nothing_is_taken_away_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), publish.folder_for(tmp_path / "hf"):
        raise RuntimeError
    assert names(tmp_path) == []
    with publish.folder_for(tmp_path / "hf"):
        (tmp_path / "hf" / "step-1-hf").mkdir()
    with publish.folder_for(tmp_path):
        pass
    assert names(tmp_path) == ["hf"]


def test_what_has_a_successor_and_cannot_be_removed_undoes_no_publication(
    swap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = put(tmp_path, "old")

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(publish, "remove_tree", refuse)
        publish.publish(staged(tmp_path, "new"), published, 1, TOKEN)
    assert (published / "config.json").read_text() == "new"
    clear(tmp_path, 1)
    assert names(tmp_path) == ["step-1-hf"]


def test_a_file_that_is_gone_already_stops_no_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = staged(tmp_path, "new")
    for name in ("a", "z"):
        (staging / name).touch()
    unlink = os.unlink

    def twice(path: str, **given: int) -> None:
        """As NFS does it when the reply is lost: the second try finds nothing."""
        unlink(path, **given)
        unlink(path, **given)

    monkeypatch.setattr(os, "unlink", twice)
    publish.remove_tree(staging)
    assert names(tmp_path) == []
