"""The job script, run by a real shell: nothing in it that a checkpoint's name says is obeyed, and the result is the last word."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daemon.host import process
from daemon.runners.slurm import job_script
from tests.unit.daemon.running import wait_until

NAME = "dcp2hf-7-0123456789abcdef"
SHOW = "import json, os, sys; print(json.dumps({'event': 'x', 'argv': sys.argv[1:], 'environ': dict(os.environ)}))"


def write(folder: Path, code: str, *words: str, own: bool = False) -> Path:
    """The script of a job that runs `code` with `words`, its files in `folder`."""
    made = folder / "job.sh"
    made.write_text(job_script.text(NAME, str(folder), [sys.executable, "-c", code, *words], has_own_python=own))
    return made


def run(made: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["/bin/sh", made], env=environ, capture_output=True, text=True, timeout=30)


def events(folder: Path) -> str:
    return (folder / f"{NAME}{job_script.EVENTS}").read_text()


def test_names_are_new_each_time_and_known_as_ours() -> None:
    names = {job_script.new_name(1800) for _ in range(100)}

    assert len(names) == 100
    assert all(job_script.NAME.fullmatch(name) and name.startswith("dcp2hf-1800-") for name in names)


@pytest.mark.parametrize(
    "word", ["$(touch owned)", "`touch owned`", "'; touch owned; '", 'a"b\\', "a\nb", "*", "~", "%j", "ä"]
)
def test_whatever_a_name_holds_reaches_the_converter_as_one_word_and_no_shell_obeys_it(
    word: str, tmp_path: Path
) -> None:
    folder = tmp_path / f"shared {word.replace('/', '')}"
    folder.mkdir()
    made = write(folder, "import os, sys; os.write(1, os.fsencode(repr(sys.argv[1:])))", word, "--last")

    assert run(made, PATH=os.environ["PATH"]).returncode == 0
    assert events(folder) == repr([word, "--last"])
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("code", [0, 1, 2, 3, 137])
def test_the_exit_code_is_the_result_there_whole_or_not_at_all(code: int, tmp_path: Path) -> None:
    ran = run(write(tmp_path, f"import sys; sys.exit({code})"), PATH=os.environ["PATH"])

    assert ran.returncode == code
    assert (tmp_path / f"{NAME}{job_script.RESULT}").read_text() == f"{code}\n"
    assert not list(tmp_path.glob(f"{NAME}{job_script.RESULT}.*"))


def test_the_result_is_on_disk_before_it_has_its_name(tmp_path: Path) -> None:
    """A node that loses its power must not leave an empty result: nobody would run the job again."""
    tools, seen = tmp_path / "tools", tmp_path / "seen"
    tools.mkdir()
    (tools / "sync").write_text(f'#!/bin/sh\ncat "$1" >> {seen}\nls {tmp_path} >> {seen}\n')
    (tools / "sync").chmod(0o755)

    assert run(write(tmp_path, "pass"), PATH=f"{tools}:{os.environ['PATH']}").returncode == 0
    code, *names = seen.read_text().splitlines()
    assert code == "0"
    assert [name.startswith(f"{NAME}{job_script.RESULT}.") for name in names if job_script.RESULT in name] == [True]


def test_a_job_that_is_started_again_after_its_end_does_nothing(tmp_path: Path) -> None:
    made = write(tmp_path, "print('ran')")

    for _ in range(2):
        assert run(made, PATH=os.environ["PATH"]).returncode == 0
    assert events(tmp_path) == "ran\n"


def test_a_job_that_is_asked_to_end_leaves_no_result_so_that_it_can_run_again(tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(130)); print('began', flush=True); time.sleep(60)"
    job = subprocess.Popen(["/bin/sh", write(tmp_path, code)], start_new_session=True, stdout=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / f"{NAME}{job_script.EVENTS}").exists() and "began" in events(tmp_path))
    os.killpg(job.pid, signal.SIGTERM)  # as Slurm does: every process of the job

    assert job.wait(10) == 130
    time.sleep(0.1)
    assert not list(tmp_path.glob(f"*{job_script.RESULT}*"))


def test_of_a_nodes_environment_only_what_is_harmless_stays_and_no_gpu_is_seen(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": "/h",
        "SECRET_TOKEN": "x",
        "SLURM_JOB_ID": "7",
        "PYTHONPATH": "/theirs",
    }
    run(write(tmp_path, SHOW), **environ)
    said = events(tmp_path)

    assert '"HOME": "/h"' in said
    assert "SECRET_TOKEN" not in said
    assert "SLURM_JOB_ID" not in said
    assert '"CUDA_VISIBLE_DEVICES": ""' in said
    assert f'"PYTHONPATH": "{process.SET["PYTHONPATH"]}"' in said


def test_an_interpreter_of_the_nodes_finds_its_own_dcp2hf(tmp_path: Path) -> None:
    run(write(tmp_path, SHOW, own=True), PATH=os.environ["PATH"])

    assert "PYTHONPATH" not in events(tmp_path)


def test_a_shared_folder_that_cannot_be_written_is_a_failure_without_a_result(tmp_path: Path) -> None:
    made = tmp_path / "job.sh"
    made.write_text(job_script.text(NAME, f"{tmp_path}/gone", [sys.executable, "-c", "pass"], has_own_python=False))

    assert run(made, PATH=os.environ["PATH"]).returncode == 75
