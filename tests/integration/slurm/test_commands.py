"""What Slurm's commands are asked for, and how their answers are read; a real Slurm is asked in test_cluster."""

import asyncio
import os
from pathlib import Path

import pytest

from daemon.config.settings import Settings
from daemon.config.slurm_settings import Slurm
from daemon.runners.counters import Tally
from daemon.runners.slurm import calls, commands
from daemon.runners.slurm.commands import Commands
from daemon.runners.slurm.job_states import Sight
from daemon.runners.slurm.resources import Needs

NAME = "dcp2hf-7-0123456789abcdef"
NEEDS = Needs(4, 3_221_236_758, 960.0)


def program(folder: Path, name: str, text: str) -> None:
    """A stand-in for one of Slurm's commands, in a folder that is first in PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path / "bin"


def test_the_defaults_ask_for_one_node_no_gpu_nothing_of_ours_and_a_name_that_is_found() -> None:
    assert commands.arguments(NAME, "/shared/100%", NEEDS, Settings()) == [
        "--nodes=1", "--ntasks=1", "--cpus-per-task=4", "--mem=3073M", "--time=16", "--gres=none", f"--job-name={NAME}",
        "--dependency=singleton", "--requeue", "--open-mode=append", "--export=ALL", "--propagate=NONE", "--chdir=/",
        f"--output=/shared/100%%/{NAME}.output", "--parsable",
    ]  # fmt: skip


def test_every_key_of_the_table_is_an_argument_and_ours_come_last_so_that_they_hold() -> None:
    slurm = Slurm(partition="cpu", account="ml", qos="low", nice=100, extra_args=("-C", "avx512", "--mem=1M"))
    asked = commands.arguments(NAME, "/s", NEEDS, Settings(slurm=slurm))

    assert asked[:7] == ["-C", "avx512", "--mem=1M", "--partition=cpu", "--account=ml", "--qos=low", "--nice=100"]
    assert asked.index("--mem=3073M") > asked.index("--mem=1M")


def test_the_commands_have_nothing_of_another_jobs_environment() -> None:
    environ = commands.environment(
        {
            "PATH": "/bin",
            "SLURM_CONF": "/c",
            "SBATCH_PARTITION": "gpu",
            "SLURM_JOB_ID": "7",
            "SECRET_TOKEN": "x",
            "TMPDIR": "/private",
        }
    )

    assert environ["SLURM_CONF"] == "/c"
    assert not {"SBATCH_PARTITION", "SLURM_JOB_ID", "SECRET_TOKEN", "TMPDIR"} & environ.keys()


def test_the_queue_is_read_by_name_and_what_is_no_job_is_left_out(bin_folder: Path) -> None:
    program(
        bin_folder, "squeue",
        f"echo 'a plugin says hello'; echo '7|FAILED|NonZeroExitCode|768|1|{NAME}|'; echo '8|PENDING|Dependency|0|0|{NAME}|'; echo '9|X|Y|zero|0|n|'",
    )  # fmt: skip
    tally = Tally()
    found = asyncio.run(Commands(tally).queue([NAME]))

    assert found == {NAME: [Sight("7", "FAILED", "NonZeroExitCode", 768, 1), Sight("8", "PENDING", "Dependency")]}
    assert tally.slurm_calls == {("squeue", "ok"): 1}


def test_accounting_is_read_with_its_words_of_who_cancelled(bin_folder: Path) -> None:
    program(bin_folder, "sacct", f"echo '7|CANCELLED by 1000|0:15|{NAME}'; echo '8|FAILED|3:0|{NAME}'")
    found = asyncio.run(Commands(Tally()).history([NAME]))

    assert found == {
        NAME: [
            Sight("7", "CANCELLED", status=15, from_history=True),
            Sight("8", "FAILED", status=768, from_history=True),
        ]
    }


@pytest.mark.parametrize(("said", "identity"), [("7", "7"), ("7;cluster2", "7"), ("", ""), ("Submitted 7", "")])
def test_an_id_is_a_number_or_none(said: str, identity: str, bin_folder: Path) -> None:
    program(bin_folder, "sbatch", f"cat > /dev/null; echo '{said}'")

    assert asyncio.run(Commands(Tally()).submit(NAME, "#!/bin/sh\n", "/s", NEEDS, Settings()))[0] == identity


def test_what_a_command_says_in_failing_is_told_and_counted(bin_folder: Path) -> None:
    program(bin_folder, "sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    tally = Tally()

    assert asyncio.run(Commands(tally).submit(NAME, "", "/s", NEEDS, Settings())) == (
        "",
        "sbatch: error: invalid partition specified: x",
    )
    assert tally.slurm_calls == {("sbatch", "failed"): 1}


def test_a_program_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    line = f"sleep 77 & echo $! > {tmp_path}/child; wait"
    answer = asyncio.run(calls.call(["sh", "-c", line], dict(os.environ), limit=0.5))

    assert (answer.code, answer.message) == (None, "sh did not end within 0.5 s")
    assert not Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/cwd").exists()


def test_a_program_that_is_not_there_is_an_answer(tmp_path: Path) -> None:
    answer = asyncio.run(calls.call([f"{tmp_path}/gone"], dict(os.environ)))

    assert answer.code is None
    assert "cannot be started" in answer.message
