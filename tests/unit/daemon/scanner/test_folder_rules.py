"""A name is a step only if it is exactly `step-N`; links are not followed; what is ours is not gone into."""

from pathlib import Path

import pytest

from converter.common import names_on_disk
from daemon.scanner.folder_rules import Entry, interpret, wanted


def test_only_exact_names_of_directories_are_steps() -> None:
    names = [
        "step-0",
        "step-10",
        "step-007",
        "tmp_step-30",
        "Step-50",
        "step-60-hf",
        "step-70-hf-old",
        "step-",
        "step-80\n",
    ]
    folder = interpret([Entry("step-40", is_dir=False), *(Entry(name, is_dir=True) for name in names)])

    assert folder.steps == {0, 10}
    assert folder.published == {60}
    assert folder.is_run


def test_a_folder_without_steps_is_no_run() -> None:
    assert not interpret([Entry("step-10-hf", True), Entry("logs", True)]).is_run


def test_a_folder_named_almost_as_a_step_is_named_and_not_gone_into() -> None:
    names = ("step-0010", "step_10", "Step-3", "step7", "step-10-hf", "steps", "step-10.bak")
    folder = interpret([Entry(name, is_dir=True) for name in names])

    assert folder.lookalikes == ("Step-3", "step-0010", "step7", "step_10")
    assert folder.subfolders == ("step-10.bak", "steps")
    assert not folder.is_run


def test_links_are_named_and_not_followed() -> None:
    folder = interpret([Entry("step-10", is_dir=False, is_link=True), Entry("latest", is_dir=True, is_link=True)])

    assert folder.links == ("latest", "step-10")
    assert not folder.steps
    assert not folder.subfolders


def test_hidden_folders_and_those_being_saved_are_not_gone_into() -> None:
    folder = interpret(
        [Entry(".snapshot", True), Entry("tmp_step-3", True), Entry("nested", True), Entry("file", False)]
    )

    assert folder.subfolders == ("nested",)


def test_staging_and_locks_of_ours_are_seen_and_not_gone_into() -> None:
    folder = interpret([Entry(".dcp2hf-10.0123456789abcdef.staging", True), Entry(".dcp2hf-10.lock", False)])

    assert folder.has_ours
    assert not folder.subfolders


def test_a_name_that_is_not_utf8_is_left_alone() -> None:
    folder = interpret([Entry("run-\udcff", True)])

    assert folder.unreadable == ("run-\udcff",)
    assert not folder.subfolders


def test_min_step_and_every_say_which_steps_are_wanted() -> None:
    assert [n for n in range(0, 60, 10) if wanted(n, min_step=15, every=20)] == [20, 40]


@pytest.mark.parametrize(
    ("root", "run", "name"),
    [
        ("/r", "/r/a/checkpoint", "a"),
        ("/r", "/r/exp/a/checkpoint", "exp/a"),
        ("/r", "/r/a", "a"),
        ("/r/a/checkpoint", "/r/a/checkpoint", "a"),
        ("/r/a", "/r/a", "a"),
        ("/r/a", "/r/a/checkpoint", "a"),
        ("/", "/checkpoint", "checkpoint"),
    ],
)
def test_a_run_is_called_by_its_folder_not_by_the_checkpoint_folder_in_it(root: str, run: str, name: str) -> None:
    assert names_on_disk.run_name(Path(root), Path(run)) == name
