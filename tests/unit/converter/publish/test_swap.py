"""Publishing: the new directory is there whole or the old one is, whatever dies, and nobody's files are lost."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.common import errors, names_on_disk
from converter.publish import manifest, stale_files
from converter.publish import swap as publish
from converter.publish.existing_output import Existing
from converter.publish.manifest import FileEntry, Manifest
from converter.publish.stale_files import clear
from converter.publish.swap import check_replaceable, make_durable, staging_path

TOKEN = "0123456789abcdef"


def may_replace(directory: Path) -> Existing | None:
    """Anything: what is refused is tested by itself."""
    return check_replaceable(directory, force=True)


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
    publish.publish(staging, tmp_path / "step-1-hf", 1, TOKEN, may_replace)
    assert names(tmp_path) == ["step-1-hf"]
    assert (tmp_path / "step-1-hf" / "config.json").read_text() == "new"


def test_an_older_directory_is_replaced_and_nothing_of_it_stays(swap: str, tmp_path: Path) -> None:
    published = put(tmp_path, "old")
    (published / "only-in-old").touch()
    publish.publish(staged(tmp_path, "new"), published, 1, TOKEN, may_replace)
    assert names(tmp_path) == ["step-1-hf"]
    assert names(published) == ["config.json"]
    assert (published / "config.json").read_text() == "new"


def test_a_reader_that_holds_the_old_directory_reads_on(swap: str, tmp_path: Path) -> None:
    published = put(tmp_path, "old")
    with (published / "config.json").open() as file:
        publish.publish(staged(tmp_path, "new"), published, 1, TOKEN, may_replace)
        assert file.read() == "old"


def test_with_an_exchange_the_published_name_is_never_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = put(tmp_path, "old")
    monkeypatch.setattr(publish, "rename", lambda old, new: pytest.fail("a rename leaves a gap"))
    publish.publish(staged(tmp_path, "new"), published, 1, TOKEN, may_replace)
    assert (published / "config.json").read_text() == "new"


def stop_after(renames: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """The process ends, or is interrupted, before the rename after so many."""
    done = [0]
    rename = publish.rename

    def count(old: Path, new: Path) -> None:
        if done[0] == renames:
            raise error("here it ends")
        done[0] += 1
        rename(old, new)

    monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    monkeypatch.setattr(publish, "rename", count)


def test_a_crash_between_the_two_renames_is_recovered_by_whoever_comes_next(tmp_path: Path) -> None:
    published = put(tmp_path, "old")
    staging = staged(tmp_path, "new")
    os.rename(published, tmp_path / names_on_disk.replaced_name(1, TOKEN))  # and here it died
    clear(tmp_path, 1, lambda: None)
    assert names(tmp_path) == ["step-1-hf"]
    assert (published / "config.json").read_text() == "old"
    assert not staging.exists()


def test_a_crash_after_the_two_renames_leaves_the_new_directory(tmp_path: Path) -> None:
    published = put(tmp_path, "old")
    staging = staged(tmp_path, "new")
    os.rename(published, tmp_path / names_on_disk.replaced_name(1, TOKEN))
    os.rename(staging, published)
    clear(tmp_path, 1, lambda: None)
    assert names(tmp_path) == ["step-1-hf"]
    assert (published / "config.json").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_between_the_two_renames_puts_the_old_directory_back(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = put(tmp_path, "old")
    staging = staged(tmp_path, "new")
    rename = publish.rename

    def fail_once(old: Path, new: Path) -> None:
        if old == staging:
            raise error("here it ends")
        rename(old, new)

    monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    monkeypatch.setattr(publish, "rename", fail_once)
    with pytest.raises(error):
        publish.publish(staging, published, 1, TOKEN, may_replace)
    stale_files.remove_tree(staging)
    assert names(tmp_path) == ["step-1-hf"]
    assert (published / "config.json").read_text() == "old"


def test_a_clearer_whose_lock_is_gone_removes_nothing(tmp_path: Path) -> None:
    put(tmp_path, "new")
    left = [staged(tmp_path, "of the one who took over").name, names_on_disk.replaced_name(1, TOKEN)]
    (tmp_path / left[1]).mkdir()

    def lost() -> None:
        raise errors.LockLost("another process took this step over", path=tmp_path, hint="")

    with pytest.raises(errors.LockLost):
        clear(tmp_path, 1, lost)
    assert names(tmp_path) == sorted([*left, "step-1-hf"])
    assert names(tmp_path / left[0]) == ["config.json"]


def test_a_staging_directory_has_another_name_before_its_first_file_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, published = staged(tmp_path, "new"), tmp_path / "step-1-hf"
    unlink = os.unlink

    def wake_its_owner(path: str, **given: int) -> None:
        with pytest.raises(FileNotFoundError):
            publish.publish(staging, published, 1, TOKEN, may_replace)
        unlink(path, **given)

    monkeypatch.setattr(os, "unlink", wake_its_owner)
    clear(tmp_path, 1, lambda: None)
    assert names(tmp_path) == []


def test_a_persons_directory_that_a_killed_swap_left_under_a_staging_name_is_kept(tmp_path: Path) -> None:
    staging = staging_path(tmp_path, 1, TOKEN)
    staging.mkdir()
    (staging / "notes.md").write_text("a person's")
    told: list[tuple[Path, str]] = []
    clear(tmp_path, 1, lambda: None, lambda path, why: told.append((path, why)))

    (kept,) = tmp_path.iterdir()
    assert [path for path, _ in told] == [kept]
    assert kept.name.endswith(".foreign")
    assert (kept / "notes.md").read_text() == "a person's"
    clear(tmp_path, 1, lambda: None)
    assert list(tmp_path.iterdir()) == [kept]


def test_what_a_dead_clearer_renamed_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / names_on_disk.discarded_name(1, TOKEN)).mkdir()
    (tmp_path / names_on_disk.discarded_name(1, TOKEN) / "config.json").touch()
    clear(tmp_path, 1, lambda: None)
    assert names(tmp_path) == []


def test_a_set_aside_directory_with_somebodys_files_is_not_removed(tmp_path: Path) -> None:
    put(tmp_path, "new")
    aside = tmp_path / names_on_disk.replaced_name(1, TOKEN)
    aside.mkdir()
    (aside / "thesis.tex").touch()
    told: list[tuple[Path, str]] = []
    clear(tmp_path, 1, lambda: None, lambda path, why: told.append((path, why)))
    assert names(tmp_path) == [aside.name, "step-1-hf"]
    ((path, why),) = told
    assert path == aside
    assert "thesis.tex" in why


def ours_with(folder: Path, files: dict[str, str]) -> None:
    """Makes `folder` an export of ours that holds these files."""
    for name, text in files.items():
        (folder / name).write_text(text)
    listed = {name: FileEntry(len(text), hashlib.sha256(text.encode()).hexdigest()) for name, text in files.items()}
    manifest.write(folder, Manifest(1, "save", "float32", 1, 0, 0, {}, "", listed, ()))


@pytest.mark.parametrize("edit", ["same size", "another size", "a link"])
def test_a_file_that_a_person_edited_is_kept_when_its_export_is_replaced(edit: str, swap: str, tmp_path: Path) -> None:
    published = tmp_path / "step-1-hf"
    published.mkdir()
    ours_with(published, {"config.json": "old", "generation_config.json": "made"})
    edited = published / "generation_config.json"
    if edit == "a link":
        edited.unlink()
        edited.symlink_to("elsewhere")
    else:
        edited.write_text("mine" if edit == "same size" else "mine, and longer")
    told: list[tuple[Path, str]] = []
    publish.publish(
        staged(tmp_path, "new"), published, 1, TOKEN, may_replace, lambda path, why: told.append((path, why))
    )

    ((kept, why),) = told
    assert "generation_config.json" in why
    assert names(kept) == ["generation_config.json"]
    assert os.path.lexists(kept / "generation_config.json")
    assert names(tmp_path) == [kept.name, "step-1-hf"]
    clear(tmp_path, 1, lambda: None)
    assert names(tmp_path) == [kept.name, "step-1-hf"]


def test_an_edited_file_outlives_a_process_that_dies_right_after_the_swap(tmp_path: Path) -> None:
    (tmp_path / "step-1-hf").mkdir()
    swapped_out = staging_path(tmp_path, 1, TOKEN)
    swapped_out.mkdir()
    ours_with(swapped_out, {"config.json": "old", "generation_config.json": "made"})
    (swapped_out / "generation_config.json").write_text("mine")
    clear(tmp_path, 1, lambda: None)
    kept = next(path for path in tmp_path.iterdir() if path.name != "step-1-hf")
    assert (kept / "generation_config.json").read_text() == "mine"
    assert names_on_disk.parse_ours(kept.name) is None


def test_a_replaced_export_that_cannot_be_read_now_is_left_for_the_next_and_nothing_of_it_is_called_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "step-1-hf"
    published.mkdir()
    ours_with(published, {"config.json": "old"})
    read = manifest.read_regular

    def fail(path: Path, **options: int) -> bytes:
        if path.name == "config.json":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path, **options)

    staging = staged(tmp_path, "new")
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "read_regular", fail)
        publish.publish(staging, published, 1, TOKEN, may_replace)
    assert (published / "config.json").read_text() == "new"
    assert names(tmp_path) == [staging.name, "step-1-hf"]
    clear(tmp_path, 1, lambda: None)
    assert names(tmp_path) == ["step-1-hf"]


def test_an_export_that_nobody_edited_leaves_nothing_when_it_is_replaced(swap: str, tmp_path: Path) -> None:
    published = tmp_path / "step-1-hf"
    published.mkdir()
    ours_with(published, {"config.json": "old"})
    publish.publish(staged(tmp_path, "new"), published, 1, TOKEN, may_replace)
    assert names(tmp_path) == ["step-1-hf"]


def refuse_foreign(directory: Path) -> Existing | None:
    return check_replaceable(directory, force=False, named=directory.with_name("step-1-hf"))


def test_a_directory_that_appears_right_before_the_swap_is_left_and_named(swap: str, tmp_path: Path) -> None:
    put(tmp_path, "notes").joinpath("thesis.tex").touch()
    staging = staged(tmp_path, "new")
    with pytest.raises(errors.OutputForeign, match="thesis"):
        publish.publish(staging, tmp_path / "step-1-hf", 1, TOKEN, refuse_foreign)
    assert names(tmp_path) == [staging.name, "step-1-hf"]
    assert names(tmp_path / "step-1-hf") == ["config.json", "thesis.tex"]


def test_files_that_appear_between_the_check_and_the_swap_are_put_back(swap: str, tmp_path: Path) -> None:
    published, staging = put(tmp_path, "old"), staged(tmp_path, "new")
    checked = []

    def appear(directory: Path) -> Existing | None:
        checked.append(directory)
        found = refuse_foreign(directory)
        (published / "thesis.tex").touch()
        return found

    with pytest.raises(errors.OutputForeign, match="thesis") as caught:
        publish.publish(staging, published, 1, TOKEN, appear)
    assert len(checked) == 2
    assert caught.value.path == str(published)
    assert names(tmp_path) == [staging.name, "step-1-hf"]
    assert names(published) == ["config.json", "thesis.tex"]
    assert names(staging) == ["config.json"]
    assert (staging / "config.json").read_text() == "new"


def test_a_directory_that_appears_where_none_was_is_left(
    swap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, rename = staged(tmp_path, "new"), publish.rename

    def appear(old: Path, new: Path) -> None:
        if not new.exists():
            put(tmp_path, "notes").joinpath("thesis.tex").touch()
        rename(old, new)

    monkeypatch.setattr(publish, "rename", appear)
    with pytest.raises(errors.OutputForeign, match="thesis"):
        publish.publish(staging, tmp_path / "step-1-hf", 1, TOKEN, refuse_foreign)
    assert names(tmp_path / "step-1-hf") == ["config.json", "thesis.tex"]


def test_somebodys_files_that_cannot_be_put_back_are_kept_under_a_name_that_nothing_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, staging = put(tmp_path, "old"), staged(tmp_path, "new")
    exchange, done = publish._exchange, []

    def once(one: Path, other: Path) -> bool:
        if done:
            raise OSError(errno.EIO, "Input/output error")
        (published / "thesis.tex").touch()
        done.append(exchange(one, other))
        return True

    monkeypatch.setattr(publish, "_exchange", once)
    with pytest.raises(errors.OutputForeign) as caught:
        publish.publish(staging, published, 1, TOKEN, refuse_foreign)
    stale_files.discard(staging)
    clear(tmp_path, 1, lambda: None)
    assert names(Path(caught.value.path)) == ["config.json", "thesis.tex"]
    assert names_on_disk.parse_ours(Path(caught.value.path).name) is None


def test_an_empty_directory_is_nobodys(swap: str, tmp_path: Path) -> None:
    (tmp_path / "step-1-hf").mkdir()
    staging = staged(tmp_path, "new")

    def ours_only(directory: Path) -> Existing | None:
        return check_replaceable(directory, force=False, ours_only=True)

    assert publish.publish(staging, tmp_path / "step-1-hf", 1, TOKEN, ours_only) is None
    assert names(tmp_path) == ["step-1-hf"]
    assert names(tmp_path / "step-1-hf") == ["config.json"]


def test_clearing_touches_one_step_only_and_nobodys_names(tmp_path: Path) -> None:
    kept = [
        names_on_disk.staging_name(2, TOKEN),
        names_on_disk.replaced_name(3, TOKEN),
        names_on_disk.lock_name(1),
        "step-1",
        ".dcp2hf-1",
    ]
    for name in (*kept, names_on_disk.staging_name(1, TOKEN), names_on_disk.staging_name(1, "f" * 16)):
        (tmp_path / name).mkdir()
    clear(tmp_path, 1, lambda: None)
    assert names(tmp_path) == sorted(kept)


def test_a_rename_whose_answer_was_lost_has_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def lose_the_answer(old: Path, new: Path) -> None:
        rename(old, new)
        raise FileNotFoundError(2, "on NFS a retried rename finds nothing")

    monkeypatch.setattr(publish.os, "rename", lose_the_answer)
    publish.publish(staged(tmp_path, "new"), tmp_path / "step-1-hf", 1, TOKEN, may_replace)
    assert names(tmp_path) == ["step-1-hf"]


def test_a_rename_that_failed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(old: Path, new: Path) -> None:
        raise PermissionError(13, "no")

    staging = staged(tmp_path, "new")
    monkeypatch.setattr(publish.os, "rename", refuse)
    with pytest.raises(PermissionError):
        publish.publish(staging, tmp_path / "step-1-hf", 1, TOKEN, may_replace)
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
    publish.publish(staging, tmp_path / "step-1-hf", 1, TOKEN, may_replace)
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


@pytest.mark.parametrize("subdirectory", [True, False])
def test_the_name_of_a_new_folder_is_durable_before_anything_is_published_in_it(
    subdirectory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(publish, "fsync_directory", lambda path: synced.append(str(path)))
    with publish.folder_for(tmp_path / "hf" if subdirectory else tmp_path):
        assert synced == ([str(tmp_path)] if subdirectory else [])


def test_what_has_a_successor_and_cannot_be_removed_undoes_no_publication(
    swap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = put(tmp_path, "old")

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(stale_files, "remove_tree", refuse)
        publish.publish(staged(tmp_path, "new"), published, 1, TOKEN, may_replace)
    assert (published / "config.json").read_text() == "new"
    clear(tmp_path, 1, lambda: None)
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
    stale_files.remove_tree(staging)
    assert names(tmp_path) == []
