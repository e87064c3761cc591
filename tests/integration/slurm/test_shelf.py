"""What is read of the shared folder is bounded, of regular files of ours, in whole lines, and goes on where it stopped."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from daemon.runners.slurm import shared_folder
from daemon.runners.slurm.job_script import EVENTS, OUTPUT, RESULT
from tests.unit.daemon.running import REPOSITORY, clean

NAME, OTHER = "dcp2hf-7-0123456789abcdef", "dcp2hf-8-0123456789abcdef"


def look(folder: Path, offset: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = shared_folder.look(folder, {NAME: offset})[NAME]
    return found


def test_lines_are_whole_and_followed_from_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / (NAME + EVENTS)).write_text('{"event": "a"}\n{"ev')
    first = look(tmp_path)
    with (tmp_path / (NAME + EVENTS)).open("a") as file:
        file.write('ent": "b"}\n')
    second = look(tmp_path, first["offset"])

    assert first["lines"] == [(0, '{"event": "a"}')]
    assert second["lines"] == [(15, '{"event": "b"}')]
    assert look(tmp_path, second["offset"])["lines"] == []


def test_a_job_that_wrote_nothing_yet_has_said_nothing(tmp_path: Path) -> None:
    assert look(tmp_path) == {"lines": [], "offset": 0, "code": None, "tail": ""}


def test_the_result_is_told_once_every_line_was_read(tmp_path: Path) -> None:
    line = "x" * 999 + "\n"
    (tmp_path / (NAME + EVENTS)).write_text(line * 400)
    (tmp_path / (NAME + RESULT)).write_text("0\n")
    first = look(tmp_path)
    second = look(tmp_path, first["offset"])

    assert (first["code"], second["code"]) == (None, 0)
    assert len(first["lines"]) + len(second["lines"]) == 400


@pytest.mark.parametrize("said", ["", "zero", "-1", "1234", "0 0", "x" * 60])
def test_a_result_that_is_none_is_not_believed(said: str, tmp_path: Path) -> None:
    (tmp_path / (NAME + RESULT)).write_text(said)

    assert look(tmp_path)["code"] is None


def test_a_line_longer_than_any_event_is_left_out_and_holds_nothing_up(tmp_path: Path) -> None:
    (tmp_path / (NAME + EVENTS)).write_bytes(
        b"x" * (shared_folder.MOST_LINE + 1) + b"\n" + b'{"event": "a"}\n' + b"\xff\n"
    )
    found = look(tmp_path)

    assert [text for _, text in found["lines"]] == ['{"event": "a"}', "\ufffd"]
    (tmp_path / (NAME + EVENTS)).write_bytes(b"x" * (shared_folder.MOST_BYTES * 2))
    assert look(tmp_path)["offset"] == shared_folder.MOST_BYTES, "one without an end is passed over, too"


@pytest.mark.parametrize("suffix", [EVENTS, RESULT])
def test_a_link_or_a_pipe_under_a_name_of_ours_is_not_read_and_hides_no_other_job(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("0\n")
    (tmp_path / (OTHER + EVENTS)).write_text("a\n")
    os.symlink(tmp_path / "secret", tmp_path / (NAME + suffix))
    assert look(tmp_path) == {"lines": [], "offset": 0, "code": None, "tail": ""}
    os.unlink(tmp_path / (NAME + suffix))
    os.mkfifo(tmp_path / (NAME + suffix))

    assert shared_folder.look(tmp_path, {NAME: 0, OTHER: 0})[OTHER]["lines"] == [(0, "a")]


def test_the_end_of_a_failed_jobs_output_is_shown_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    (tmp_path / (NAME + RESULT)).write_text("127\n")
    (tmp_path / (NAME + OUTPUT)).write_text("a" * 600 + "\nn1\n\x1b[31mpython: not found\n")

    assert look(tmp_path)["tail"].endswith(r"n1 | \x1b[31mpython: not found")


def test_only_files_of_ours_that_belong_to_no_job_and_are_old_are_removed(tmp_path: Path) -> None:
    old = time.time() - shared_folder.KEPT - 60
    for name in (NAME + OUTPUT, OTHER + OUTPUT, "thesis.output", "dcp2hf-7-short.output"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / f"dcp2hf-9-0123456789abcdef{OUTPUT}").touch()
    shared_folder.remove_old(tmp_path, [OTHER], time.time())

    assert not (tmp_path / (NAME + OUTPUT)).exists()
    assert len(os.listdir(tmp_path)) == 4


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """What the process answers."""
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "daemon.runners.slurm.shared_folder"], input=json.dumps(request), env=clean({}), cwd=REPOSITORY, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_the_process_answers_for_names_of_ours_alone_and_removes_no_other(tmp_path: Path) -> None:
    (tmp_path / "victim.events").write_text("x\n")
    (tmp_path / (NAME + EVENTS)).write_text("a\n")
    (tmp_path / (OTHER + RESULT)).write_text("0\n")
    answer = ask(
        {"folder": str(tmp_path), "offsets": {NAME: 0, "victim": 0, "../x": 0}, "remove": ["victim", OTHER], "keep": []}
    )

    assert answer == {"jobs": {NAME: {"lines": [[0, "a"]], "offset": 2, "code": None, "tail": ""}}}
    assert sorted(os.listdir(tmp_path)) == [NAME + EVENTS, "victim.events"]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    answer = ask({"folder": f"{tmp_path}/gone", "offsets": {NAME: 0}, "remove": [], "keep": None})

    assert "No such file" in answer["problem"]
