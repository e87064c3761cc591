"""Links, pipes and folders that a stranger puts where something of ours lies: not followed, not waited for, not in the way."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.common import errors, names_on_disk
from converter.publish import lock, manifest, owners, stale_files
from converter.publish.stale_files import sweep
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.editing import edit_json
from tests.unit.converter.running import Convert, Converted, Refused, ours, tree

CopyStep = Callable[..., Path]
PLAIN = BY_NAME["one_rank"]
TOKEN = "0123456789abcdef"
STAGING, REPLACED = names_on_disk.staging_name(2, TOKEN), names_on_disk.replaced_name(2, TOKEN)


def a_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def a_dangling_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim / "nowhere")


def a_pipe(path: Path, _victim: Path) -> None:
    os.mkfifo(path)


def a_file(path: Path, _victim: Path) -> None:
    path.write_bytes(b"x" * 100_000)


def a_folder(path: Path, _victim: Path) -> None:
    path.mkdir()


Put = Callable[[Path, Path], None]
anything = pytest.mark.parametrize("put", [a_link, a_dangling_link, a_pipe, a_file, a_folder], ids=lambda f: f.__name__)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder outside of every run, with a file in it."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    return folder


@pytest.fixture
def quick(convert: Convert, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Converted]:
    """Converts without the forward check; a lock of nobody's is stale at once."""
    monkeypatch.setattr(lock, "STALE", 0.0)
    return lambda step: convert(step, forward_check="off")


@anything
def test_what_a_stranger_calls_our_lock_holds_nothing_up_for_ever(
    put: Put, victim: Path, copy_step: CopyStep, quick: Callable[..., Converted]
) -> None:
    step = copy_step(PLAIN)
    put(step.parent / names_on_disk.lock_name(2), victim)
    before = tree(victim, times=True)
    assert quick(step).published.is_dir()
    assert tree(victim, times=True) == before
    assert not (step.parent / names_on_disk.lock_name(2)).exists()


@anything
@pytest.mark.parametrize("name", [STAGING, REPLACED])
def test_what_a_stranger_calls_our_staging_is_removed_and_nothing_that_it_points_to(
    name: str, put: Put, victim: Path, copy_step: CopyStep, quick: Callable[..., Converted]
) -> None:
    step = copy_step(PLAIN)
    put(step.parent / name, victim)
    before = tree(victim, times=True)
    published = quick(step).published
    assert tree(victim, times=True) == before
    assert not published.is_symlink()
    assert manifest.read(published)
    assert ours(step.parent) == []


@anything
def test_a_sweep_is_not_led_away_either(put: Put, victim: Path, tmp_path: Path) -> None:
    dead = {"token": "t", "host": owners.this_host(), "pid": 2**22 + 1, "started": 1}
    for name in (STAGING, REPLACED, f"{names_on_disk.lock_name(2)}.aside"):
        put(tmp_path / name, victim)
    (tmp_path / names_on_disk.lock_name(2)).write_text(json.dumps(dead))
    before = tree(victim, times=True)
    sweep(tmp_path)
    assert tree(victim, times=True) == before
    assert not (tmp_path / STAGING).is_symlink()


@pytest.mark.parametrize("said", [{"pid": "../../evil"}, {"host": 3}, {"started": None}, {"token": []}], ids=str)
def test_an_owner_that_no_lock_of_ours_names_is_nobody(said: dict[str, object], tmp_path: Path) -> None:
    """A pid that is a path would have a pipe of a stranger's read."""
    owner = {"token": "t", "host": owners.this_host(), "pid": 1, "started": 1}
    (tmp_path / "lock").write_text(json.dumps(owner | said))
    assert owners.read_owner(tmp_path / "lock") is None


def test_a_link_in_the_place_of_the_folder_for_exports_is_refused(
    victim: Path, copy_step: CopyStep, refused: Refused
) -> None:
    step = copy_step(PLAIN)
    edit_json(PLAIN.run_config(step.parents[2]), lambda said: said["checkpoint"].update(keep_latest_k=2))
    (step.parent / names_on_disk.SUBDIRECTORY).symlink_to(victim)
    before = tree(victim, times=True)
    assert "symbolic link" in refused(step, errors.OutputForeign).what
    assert tree(victim, times=True) == before


@pytest.mark.parametrize("put", [a_link, a_pipe, a_file, a_folder], ids=lambda f: f.__name__)
def test_a_manifest_that_is_none_is_not_read_and_what_is_there_is_replaced_or_left(
    put: Put, victim: Path, copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(PLAIN)
    published = PLAIN.published(step.parents[2])
    published.mkdir()
    put(published / names_on_disk.MANIFEST, victim)
    before = tree(victim, times=True)
    begun = time.monotonic()
    assert manifest.read(published) is None
    assert not manifest.is_up_to_date(published, save_id="x", dtype="float32", max_shard_size=1)
    assert time.monotonic() - begun < 1
    convert(step, forward_check="off", force=True)
    assert manifest.read(published)
    assert tree(victim, times=True) == before


@pytest.mark.parametrize("name", ["/etc/shadow", "../../victim/thesis.tex", "a//b", ".", "x\n", "\x1b[2J"])
def test_a_manifest_that_lists_files_outside_its_directory_is_none(
    name: str, copy_step: CopyStep, convert: Convert
) -> None:
    published = convert(copy_step(PLAIN), forward_check="off").published
    edit_json(
        published / names_on_disk.MANIFEST, lambda said: said["files"].update({name: {"size": 1, "sha256": "0" * 64}})
    )
    assert manifest.read(published) is None


def test_a_link_among_published_files_is_replaced_not_written_through(
    victim: Path, copy_step: CopyStep, convert: Convert
) -> None:
    step = copy_step(PLAIN)
    published = convert(step, forward_check="off").published
    (published / "config.json").unlink()
    (published / "config.json").symlink_to(victim / "thesis.tex")
    before = tree(victim, times=True)
    convert(step, forward_check="off")
    assert not (published / "config.json").is_symlink()
    assert tree(victim, times=True) == before


def test_removing_a_tree_does_not_follow_links_in_it(victim: Path, tmp_path: Path) -> None:
    (tmp_path / STAGING).mkdir()
    (tmp_path / STAGING / "inside").symlink_to(victim)
    stale_files.remove_tree(tmp_path / STAGING)
    assert (victim / "thesis.tex").exists()
