"""The `dcp2hfd` command: what it prints, what it exits with, and how light it stays."""

import contextlib
import errno
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from daemon import check, cli
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outcome, State
from daemon.scanner.messages import Answer
from daemon.status import report
from tests.unit.daemon.conftest import row

REPOSITORY = Path(__file__).parents[3]


def dcp2hfd(*arguments: str, state: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    env = (
        {name: value for name, value in os.environ.items() if not name.startswith("DCP2HF_")}
        | {"NO_COLOR": "1"}
        | environ
    )
    if state is not None:
        env["DCP2HF_STATE_DIR"] = str(state)
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        env=env,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A ledger of one run: a step that is done, one that failed, one in quarantine."""
    ledger = Ledger.open(tmp_path / "state")
    done = row(10, state=State.DONE, output="/r/a/step-10-hf", answer=Answer(state="complete", model_bytes=4000))
    ledger.put(done)
    identity = ledger.begin_attempt(done, 1_700_000_000.0)
    ledger.end_attempt(
        identity,
        Outcome(result="succeeded", seconds=4.0, event={"duration_seconds": 3.5, "bytes_written": 1_190_000_000}),
        0.0,
    )
    ledger.put(row(20, state=State.FAILED, error="MachineFailure", reason="EIO", attempts=2, next_attempt=4e9))
    ledger.put(
        row(
            30,
            state=State.QUARANTINED,
            error="NonFiniteTensor",
            reason="NaN in layers.0\x1b[2J",
            hint="look at the run",
        )
    )
    ledger.close()
    return tmp_path / "state"


@pytest.mark.parametrize("module", ["daemon.service", "daemon.cli", "daemon.scanner.process"])
def test_the_light_side_imports_nothing_heavy(module: str) -> None:
    heavy = (
        "torch",
        "numpy",
        "safetensors",
        "transformers",
        "torchtitan",
        "rich",
        "typer",
        "pydantic",
        "prometheus_client",
    )
    code = f"import sys, {module}; found = [m for m in {heavy} if m in sys.modules]; assert not found, found"

    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_no_root_anywhere_is_a_usage_error_with_an_example(tmp_path: Path) -> None:
    said = dcp2hfd("run", state=tmp_path / "state")

    assert said.returncode == 2
    assert "dcp2hfd run /checkpoints" in said.stderr
    assert 'roots = ["/checkpoints"]' in said.stderr
    assert not (tmp_path / "state").exists()


def test_a_wrong_setting_is_a_usage_error_in_one_line(tmp_path: Path) -> None:
    said = dcp2hfd("run", str(tmp_path), DCP2HF_WORKERZ="1")

    assert said.returncode == 2
    assert said.stderr == "dcp2hfd: unknown environment variable DCP2HF_WORKERZ; did you mean 'DCP2HF_WORKERS'?\n"


def test_status_for_scripts_has_every_step_with_its_figures(state: Path) -> None:
    said = json.loads(dcp2hfd("status", "--json", state=state).stdout)

    assert said["daemons"] == []
    (run,) = said["runs"]
    assert (run["root"], run["run"], run["path"]) == ("/r", "a", "/r/a")
    done, failed, quarantined = run["steps"]
    assert (done["state"], done["attempts"], done["duration_seconds"], done["bytes_written"]) == (
        "done",
        1,
        3.5,
        1_190_000_000,
    )
    assert (failed["state"], failed["error"], failed["failed_attempts"], failed["retry_at"]) == (
        "failed",
        "MachineFailure",
        2,
        None,
    )
    assert (quarantined["state"], quarantined["hint"]) == ("quarantined", "look at the run")


def test_status_for_people_is_a_plain_table_when_piped(state: Path) -> None:
    said = dcp2hfd("status", state=state)

    assert said.returncode == 0
    assert "daemon: not running" in said.stdout
    line = next(line for line in said.stdout.splitlines() if line.startswith("10 "))
    assert line.split() == ["10", "done", "1", "3.5", "s", "1.19", "GB", "/r/a/step-10-hf"]
    assert "\x1b" not in said.stdout


def test_status_on_a_terminal_is_a_table_too(state: Path) -> None:
    env = os.environ | {"DCP2HF_STATE_DIR": str(state), "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}
    said = subprocess.run(
        ["script", "-qec", f"{sys.executable} -m daemon status", "/dev/null"], env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )  # fmt: skip

    assert "quarantined" in said.stdout
    assert "\x1b[2J" not in said.stdout


def test_status_without_a_ledger_says_so(tmp_path: Path) -> None:
    said = dcp2hfd("status", state=tmp_path / "none")

    assert (said.returncode, "no ledger there: no daemon ran with this state_dir" in said.stdout) == (0, True)
    assert json.loads(dcp2hfd("status", "--json", state=tmp_path / "none").stdout)["runs"] == []


def test_status_of_a_ledger_without_steps_says_so(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "state").close()

    assert "no step is known yet" in dcp2hfd("status", state=tmp_path / "state").stdout


def test_status_of_a_step_that_a_dead_daemon_left_running_is_pending(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "state")
    ledger.put(row(10, state=State.RUNNING))
    ledger.close()

    (run,) = json.loads(dcp2hfd("status", "--json", state=tmp_path / "state").stdout)["runs"]
    assert run["steps"][0]["state"] == "pending"


def test_a_step_that_is_tried_again_no_longer_says_what_it_failed_with() -> None:
    again = row(10, state=State.RUNNING, error="MachineFailure", reason="EIO", hint="look at the mount", attempts=1)
    shown = report.step(again, {}, None, is_running=True)

    assert (shown["state"], shown["error"], shown["reason"], shown["hint"]) == ("running", None, "", None)
    assert shown["failed_attempts"] == 1


def test_retry_forgets_failures_and_says_how_many(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DCP2HF_STATE_DIR", str(state))
    monkeypatch.setattr(check, "problem_of", lambda path, **_: "")

    assert cli.main(["retry", "/r/a"]) == 0
    assert "3 steps at /r/a" in capsys.readouterr().out
    (run,) = json.loads(dcp2hfd("status", "--json", state=state).stdout)["runs"]
    assert [step["state"] for step in run["steps"]] == ["done", "pending", "pending"]


def test_retry_of_a_folder_that_is_gone_says_so_and_is_no_success(state: Path) -> None:
    said = dcp2hfd("retry", "/r/a", state=state)

    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == (
        "dcp2hfd: /r/a: not there now (a mount that is not up yet?); its failures are forgotten for when it is back\n"
    )


def test_status_works_while_the_configuration_does_not_and_says_why(state: Path, tmp_path: Path) -> None:
    config = tmp_path / "dcp2hf.toml"
    config.write_text(f'state_dir = "{state}"\nworkerz = 2\nroots = ["/r"]\n')
    said = dcp2hfd("status", "--config", str(config))
    as_json = dcp2hfd("status", "--json", "--config", str(config))

    assert (said.returncode, as_json.returncode) == (0, 0)
    assert "step-10-hf" in said.stdout
    assert said.stderr == (
        f"dcp2hfd: the configuration cannot be used: unknown key 'workerz' in {config}; did you mean 'workers'?\n"
    )
    assert "unknown key 'workerz'" in json.loads(as_json.stdout)["config_error"]
    config.write_text("= no TOML")
    without_toml = dcp2hfd("status", "--config", str(config), state=state).stdout
    assert re.sub(r"again in \d+ s", "", without_toml) == re.sub(r"again in \d+ s", "", said.stdout)


def test_status_names_each_root_with_its_state_since_when_and_why(state: Path) -> None:
    ledger = Ledger.open(state)
    for root, is_now, why in (
        ("/away", "away", "No such file or directory"),
        ("/empty", "empty", ""),
        ("/r", "watched", ""),
    ):
        ledger.note_root(root, "starting", 1.0)
        ledger.note_root(root, is_now, 1_700_000_000.0, why)
    ledger.note_root("/old", "left", 1_700_000_000.0)
    ledger.note_root("/away", "away", 1_800_000_000.0, "No such file or directory")
    lines = report.plain(report.look(state), 0.0).splitlines()[1:5]
    ended = dcp2hfd("status", state=state).stdout  # by now as of a process that is gone, but for this one
    ledger.close()

    since = "since 2023-11-14T22:13:20Z"
    assert lines == [
        f"root: /away: away {since}: No such file or directory",
        f"root: /empty: watched; no run in it {since}",
        f"root: /old: no longer in the configuration {since}",
        f"root: /r: watched {since}",
    ]
    assert ended.splitlines()[1:5] == lines
    db = sqlite3.connect(state / "ledger.sqlite")
    db.execute("UPDATE roots SET owner = '1 0 gone'")
    db.commit()
    db.close()
    assert "root: /r: not watched: no daemon runs for it" in dcp2hfd("status", state=state).stdout


def test_status_warns_of_runs_whose_exports_torchtitan_will_delete(state: Path) -> None:
    ledger = Ledger.open(state)
    ledger.note_retention("/r/a", 4)
    ledger.close()
    said = dcp2hfd("status", state=state).stdout

    assert "keep_latest_k = 4 leaves 1 of 3 complete checkpoints during a save" in said
    assert "from save 4 on each save deletes old exports, and leaves 2" in said
    assert 'set output = "subdirectory", and move' in said
    (run,) = json.loads(dcp2hfd("status", "--json", state=state).stdout)["runs"]
    facts = {name: run["retention"][name] for name in ("keep_latest_k", "complete", "exports", "deletes_from_save")}
    assert facts == {"keep_latest_k": 4, "complete": 1, "exports": 2, "deletes_from_save": 4}


def test_retry_of_something_unknown_is_an_error(state: Path, tmp_path: Path) -> None:
    assert dcp2hfd("retry", "/r/b", state=state).returncode == 1
    assert dcp2hfd("retry", "/r/a", state=tmp_path / "none").returncode == 1
    assert not (tmp_path / "none").exists()


def test_retry_by_whom_the_ledger_is_not_says_whom_to_be(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != state)
    monkeypatch.setenv("DCP2HF_STATE_DIR", str(state))

    assert cli.main(["retry", "/r/a"]) == 1
    assert f"{state} is another user's: ask as that user (the service's), or as root" in capsys.readouterr().err


def test_check_warns_of_runs_whose_exports_torchtitan_will_delete(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    run, _ = make_run("deep/a", 10, 20), make_run("no-config", 10, config=False)
    root = str(tmp_path / "root")
    warned = dcp2hfd("check", state=tmp_path / "state", DCP2HF_ROOTS=json.dumps([root])).stdout
    cured = dcp2hfd(
        "check", state=tmp_path / "state", DCP2HF_ROOTS=json.dumps([root]), DCP2HF_OUTPUT="subdirectory"
    ).stdout

    (line,) = [line for line in warned.splitlines() if "keep_latest_k" in line]
    assert line.startswith(f"  {run}: warning: ")
    assert (
        "leaves 1 of 3 complete checkpoints during a save; from save 4 on each save deletes old exports, and leaves 2"
        in line
    )
    assert 'set output = "subdirectory"' in line
    assert "keep_latest_k" not in cured


def test_check_says_what_it_would_do(tmp_path: Path) -> None:
    config = tmp_path / "dcp2hf.toml"
    config.write_text(
        f'roots = ["{tmp_path}/a"]\nstate_dir = "state"\non_success = ["sh", "-c", "s3cret"]\nsign = ["/none/sign"]\n[root."{tmp_path}/b"]\nobserver = "polling"\npoll_interval = "1min"'
    )
    said = dcp2hfd("check", "--config", str(config))

    assert said.returncode == 0
    assert f"state_dir: {tmp_path}/state" in said.stdout
    assert f"root: {tmp_path}/b" in said.stdout
    assert "polling, listed every 1min" in said.stdout
    assert "on_success: sh\n" in said.stdout
    assert "sign: /none/sign (not found" in said.stdout
    assert "s3cret" not in said.stdout
    assert not (tmp_path / "state").exists()


def test_check_names_roots_that_cannot_be_watched_now_and_accepts_them_as_mounts_to_come(tmp_path: Path) -> None:
    config = tmp_path / "dcp2hf.toml"
    (tmp_path / "file").touch()
    (tmp_path / "here").mkdir()
    config.write_text('roots = ["later", "file", "here"]\nstate_dir = "state"')
    said = dcp2hfd("check", "--config", str(config))
    roots = {Path(part.split()[0]).name: part for part in said.stdout.split("root: ")[1:]}

    assert said.returncode == 0
    assert "warning: not there now (a mount that is not up yet?)" in roots["later"]
    assert "warning: not a folder" in roots["file"]
    assert "warning" not in roots["here"]
    assert "valid, but 2 of 3 roots cannot be watched now" in said.stdout


def test_check_names_a_root_that_is_a_step_and_assets_that_are_not_there(tmp_path: Path) -> None:
    config = tmp_path / "dcp2hf.toml"
    (tmp_path / "step-2").mkdir()
    text = 'roots = ["step-2"]\nstate_dir = "state"\nhf_assets = "base"\nassets_roots = ["step-2"]\n'
    config.write_text(text + '[path_map]\n"/old" = "/none/new"\n')
    said = dcp2hfd("check", "--config", str(config))

    assert said.returncode == 0
    assert "warning: this is a step: name the folder that holds it" in said.stdout
    assert f"warning: hf_assets: {tmp_path}/base: not there now" in said.stdout
    assert "warning: path_map: /none/new: not there now" in said.stdout
    assert "warning: assets_roots" not in said.stdout


@pytest.mark.parametrize("way", ["--once", "--dry-run"])
def test_a_step_named_as_root_is_wrong_usage_that_names_the_folder_which_is_meant(way: str, tmp_path: Path) -> None:
    step = tmp_path / "run" / "step-10"
    step.mkdir(parents=True)
    said = dcp2hfd("run", way, str(step), state=tmp_path / "state")

    assert said.returncode == 2
    assert f"{step} is a step: name the folder that holds it, {step.parent}" in said.stderr


def test_an_empty_root_is_a_warning_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    said = dcp2hfd("run", "--once", str(tmp_path / "root"), state=tmp_path / "state")

    assert said.returncode == 0
    (line,) = [line for line in map(json.loads, said.stdout.splitlines()) if line["event"] == "root_empty"]
    assert line["level"] == "warning"


def test_check_says_of_a_root_that_the_unit_may_not_write_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(f"#!/bin/sh\nprintf 'LoadState=loaded\nProtectSystem=strict\nReadWritePaths={tmp_path}/a\n'")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    for name in ("a/runs", "b"):
        (tmp_path / name).mkdir(parents=True)

    assert check.problem_of_writing(f"{tmp_path}/a/runs", patience=5) == ""
    assert "ReadWritePaths=" in check.problem_of_writing(f"{tmp_path}/b", patience=5)


@contextlib.contextmanager
def as_somebody_else() -> Iterator[None]:
    """Without root's rights, which no mode limits."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def runs() -> Iterator[Path]:
    """A root with one run, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "runs", "a", "checkpoint")
        (run / "step-10").mkdir(parents=True)
        (run / "step-10" / ".metadata").touch()
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o777)
        yield Path(folder, "runs")


@pytest.mark.parametrize(
    ("below", "mode", "said"),
    [
        ("a/checkpoint", 0o555, "may not write exports there"),
        ("a/checkpoint", 0o666, "may not read it"),
        ("a", 0o300, "may not read it"),
        ("a/checkpoint/step-10", 0o333, "may not read it"),
        ("a/checkpoint/step-10/.metadata", 0o000, "may not read it"),
    ],
)
def test_check_names_the_folder_where_a_right_is_missing_and_the_cure(
    below: str, mode: int, said: str, runs: Path, tmp_path: Path
) -> None:
    settings = msgspec.convert({"roots": [str(runs)]}, Settings)
    with as_somebody_else():
        assert not [line for line in check.report(settings, tmp_path) if "this user" in line]
    (runs / below).chmod(mode)
    with as_somebody_else():
        lines = [line for line in check.report(settings, tmp_path) if "this user" in line]
    (runs / below).chmod(0o777)

    assert f"{runs / below}: this user {said}" in lines[0]
    assert "give its group" in lines[0]


def test_check_asks_for_rights_where_exports_go(runs: Path, tmp_path: Path) -> None:
    (runs / "a" / "checkpoint" / "hf").mkdir()
    (runs / "a" / "checkpoint" / "hf").chmod(0o555)
    said = {}
    for output in ("auto", "alongside", "subdirectory"):
        settings = msgspec.convert({"roots": [str(runs)], "output": output}, Settings)
        with as_somebody_else():
            said[output] = [line for line in check.report(settings, tmp_path) if "may not write" in line]

    assert {output: len(lines) for output, lines in said.items()} == {"auto": 1, "alongside": 0, "subdirectory": 1}


@pytest.mark.parametrize(("code", "word"), [(errno.ESTALE, "Stale file handle"), (errno.EIO, "Input/output error")])
def test_check_calls_a_root_read_only_only_where_it_is(
    code: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> os.statvfs_result:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "statvfs", fail)
    said = check.problem_of_writing(str(tmp_path), patience=5)
    assert word in said
    assert "read-only" not in said


def test_check_says_of_a_mount_that_hangs_when_it_is_asked_that_it_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda path: hangs.wait())
    try:
        assert "no answer within" in check.problem_of_writing(str(tmp_path), patience=0.1)
    finally:
        hangs.set()


def test_check_gives_up_on_a_root_whose_mount_hangs() -> None:
    hangs = threading.Event()
    try:
        said = check.problem_of("/r", patience=0.1, listing=lambda _: hangs.wait())
    finally:
        hangs.set()

    assert said.startswith("no answer within")


def test_check_refuses_what_run_would_refuse(tmp_path: Path) -> None:
    config = tmp_path / "dcp2hf.toml"
    config.write_text("polling = true")

    assert dcp2hfd("check", "--config", str(config)).returncode == 2
    assert dcp2hfd("check", "--config", str(tmp_path / "none.toml")).returncode == 2


def test_a_ledger_of_a_newer_version_is_an_error_that_starting_again_does_not_mend(state: Path, tmp_path: Path) -> None:
    db = sqlite3.connect(state / "ledger.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()
    (tmp_path / "root").mkdir()

    for arguments in (("run", str(tmp_path / "root")), ("status",)):
        ran = dcp2hfd(*arguments, state=state)
        assert ran.returncode == 2, arguments  # RestartPreventExitStatus of the unit
        assert "newer dcp2hf" in ran.stderr


def test_a_folder_that_cannot_hold_the_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = dcp2hfd("run", "--once", str(tmp_path), state=tmp_path / "file")

    assert said.returncode == 1
    assert "state_dir" in said.stderr
    assert "Traceback" not in said.stderr
