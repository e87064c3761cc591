"""`[slurm]` is a table like any: each key has its twin in the environment, a root may differ, and nonsense is refused by name."""

from pathlib import Path

import pytest

from daemon.config import load as config
from daemon.config.load import SettingsError
from daemon.config.settings import Settings

BASE = 'roots = ["/a", "/b"]\nrunner = "slurm"\n[slurm]\nshared = "/s"\n'


def load(tmp_path: Path, text: str, **environ: str) -> Settings:
    file = tmp_path / "dcp2hf.toml"
    file.write_text(text)
    return config.load(config=str(file), environ=environ)


def test_the_table_the_environment_and_a_roots_table_add_up_key_by_key(tmp_path: Path) -> None:
    text = BASE + 'partition = "cpu"\nmemory = "8GB"\n[root."/b".slurm]\ntime = "2h"\npartition = "big"\n'
    loaded = load(tmp_path, text, DCP2HF_SLURM__MAX_QUEUED="5", DCP2HF_SLURM__EXTRA_ARGS='["-C", "avx512"]')
    a, b = loaded.for_root("/a").slurm, loaded.for_root("/b").slurm

    assert (a.partition, a.memory, a.time, a.max_queued, a.extra_args) == (
        "cpu",
        8_000_000_000,
        0.0,
        5,
        ("-C", "avx512"),
    )
    assert (b.partition, b.memory, b.time, b.max_queued) == ("big", 8_000_000_000, 7200.0, 5)


def test_a_root_alone_may_ask_for_another_runner(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'roots = ["/a"]\n[slurm]\nshared = "/s"\n[root."/b"]\nrunner = "slurm"\n')

    assert [loaded.for_root(root).runner for root in loaded.roots] == ["local", "slurm"]


def test_jobs_without_a_shared_folder_are_refused_with_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r'runner = "slurm" needs `shared` in \[slurm\]'):
        load(tmp_path, 'roots = ["/a"]\nrunner = "slurm"')


def test_a_shared_folder_below_a_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"slurm.shared: /b/jobs lies below a root"):
        load(tmp_path, BASE.replace("/s", "/b/jobs"))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("partitoin = 'x'", r"unknown key 'slurm.partitoin' in .*; did you mean 'slurm.partition'"),
        ("cpus = 0", "slurm.cpus"),
        ("memory = 'much'", "slurm.memory"),
        ("poll = '1ms'", "slurm.poll"),
        ("nice = -5", "slurm.nice"),
        ('python = "/a\\nb"', "slurm.python"),
    ],
)
def test_a_wrong_key_or_value_is_refused_naming_it(line: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=named):
        load(tmp_path, BASE + line)


@pytest.mark.parametrize(
    "word",
    ["--array=0-3", "-a", "-a0-3", "--wrap=x", "--wait", "-M", "--clusters=x", "-o", "--output=/x", "-J", "--job-name=x", "-d",
     "--dependency=afterok:7", "--test-only", "--gpus=1", "-G1", "--gpus-per-node=1", "--gres=gpu:1", ":"],
)  # fmt: skip
def test_an_argument_that_would_lose_the_job_or_hold_a_gpu_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"slurm.extra_args: '.*' is the daemon's own"):
        load(tmp_path, f"{BASE}extra_args = ['{word}']")


@pytest.mark.parametrize(
    "word", ["-C", "avx512", "--exclude=n1", "--mail-type=FAIL", "--gres=lscratch:10", "-x", "--reservation=r"]
)
def test_any_other_argument_is_passed_on(word: str, tmp_path: Path) -> None:
    assert load(tmp_path, f"{BASE}extra_args = ['{word}']").slurm.extra_args == (word,)


def test_what_holds_for_the_whole_daemon_cannot_differ_by_root(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'slurm.max_queued' holds for the whole daemon"):
        load(tmp_path, BASE + '[root."/a".slurm]\nmax_queued = 3\n')


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"slurm in .* must be a table"):
        load(tmp_path, 'slurm = "x"')
