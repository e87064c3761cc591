"""`dcp2hfd status` tells the truth about now: it names no path of what is gone, whether or not a daemon watches."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import State
from daemon.scanner import messages, unwatched_folders
from daemon.scanner.inventory import MOST, InventoryTrack
from daemon.scanner.messages import Inventory
from tests.unit.daemon.conftest import add_step, row
from tests.unit.daemon.running import REPOSITORY, Daemon, clean, daemons, wait_until

SERVE = Path(__file__).parents[1].joinpath("serve.py")
FAST = {"DCP2HF_POLL_INTERVAL": "0.3", "DCP2HF_RESCAN_INTERVAL": "1s"}
MakeRun = Callable[..., Path]
Start = Callable[..., Daemon]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with daemons() as begin:
        yield lambda *arguments, **environ: begin(SERVE, tmp_path / "state", *arguments, **FAST | environ)


def run_command(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments], env=clean({"DCP2HF_STATE_DIR": str(tmp_path / "state")} | environ),
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """`dcp2hfd status --json`, as a dictionary."""

    def status(*arguments: str, **environ: str) -> dict[str, Any]:
        said = run_command(tmp_path, "status", "--json", *arguments, **environ)
        assert said.returncode == 0, said.stderr
        return dict(json.loads(said.stdout))

    return status


def shown(found: dict[str, Any]) -> dict[int, tuple[str, str | None, str | None]]:
    """Of each step its state and the names that are said to be there."""
    name = lambda path: path and Path(path).name  # noqa: E731
    return {
        step["step"]: (step["state"], name(step["path"]), name(step["output"]))
        for run in found["runs"]
        for step in run["steps"]
    }


def root(found: dict[str, Any], path: Path) -> dict[str, Any]:
    return next(one for one in found["roots"] if one["root"] == str(path))


DONE_10, DONE_20 = ("done", "step-10", "step-10-hf"), ("done", "step-20", "step-20-hf")


def test_what_training_purges_is_no_longer_named_while_a_daemon_watches(
    make_run: MakeRun, tmp_path: Path, start: Start, ask: Ask
) -> None:
    run = make_run("a", 10, 20)
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded", 2)
    wait_until(lambda: shown(ask()) == {10: DONE_10, 20: DONE_20})
    shutil.rmtree(run / "step-10")
    wait_until(lambda: shown(ask()) == {10: ("done", None, "step-10-hf"), 20: DONE_20})
    shutil.rmtree(run / "step-10-hf")
    wait_until(lambda: shown(ask()) == {10: ("vanished", None, None), 20: DONE_20})

    assert "step-10" not in run_command(tmp_path, "status").stdout
    assert daemon.stop() == 0
    assert shown(ask()) == {10: ("vanished", None, None), 20: DONE_20}, "nor afterwards"


def test_what_is_purged_while_no_daemon_runs_is_no_longer_named_then_nor_after_the_next_start(
    make_run: MakeRun, tmp_path: Path, start: Start, ask: Ask
) -> None:
    run = make_run("a", 10, 20, 30)
    (run / "behaviour-step-30").write_text("fail MachineFailure backoff")
    assert start("--once", str(tmp_path / "root")).end() == 1
    assert shown(ask())[30] == ("failed", "step-30", None)
    for name in ("step-10", "step-10-hf", "step-20-hf", "step-30"):
        shutil.rmtree(run / name)
    gone = ("vanished", None, None)

    assert shown(ask()) == {10: gone, 20: ("removed", "step-20", None), 30: gone}
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("root_watched")
    wait_until(lambda: shown(ask()) == {10: gone, 20: ("removed", "step-20", None), 30: gone})
    assert daemon.stop() == 0


@pytest.mark.parametrize("output", ["alongside", "subdirectory"])
def test_exports_are_named_for_as_long_as_they_are_there_though_all_steps_of_their_run_are_gone(
    output: str, make_run: MakeRun, tmp_path: Path, start: Start, ask: Ask
) -> None:
    run = make_run("a", 10, 20)
    daemon = start(str(tmp_path / "root"), DCP2HF_OUTPUT=output)
    daemon.wait_for("conversion_succeeded", 2)
    for step in (10, 20):
        shutil.rmtree(run / f"step-{step}")
    left = {10: ("done", None, "step-10-hf"), 20: ("done", None, "step-20-hf")}
    wait_until(lambda: shown(ask()) == left)
    assert daemon.stop() == 0
    daemon = start(str(tmp_path / "root"), DCP2HF_OUTPUT=output)
    wait_until(lambda: root(ask(), tmp_path / "root")["state"] == "empty")
    assert shown(ask()) == left
    shutil.rmtree(run)
    wait_until(lambda: shown(ask()) == {10: ("vanished", None, None), 20: ("vanished", None, None)})

    assert daemon.stop() == 0


def test_an_export_that_is_made_again_is_named_again(make_run: MakeRun, tmp_path: Path, start: Start, ask: Ask) -> None:
    run = make_run("a", 10)
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded")
    shutil.rmtree(run / "step-10-hf")
    wait_until(lambda: shown(ask()) == {10: ("removed", "step-10", None)})
    assert run_command(tmp_path, "retry", str(run / "step-10")).returncode == 0
    daemon.wait_for("conversion_succeeded", 2)

    assert shown(ask()) == {10: DONE_10}
    assert daemon.stop() == 0


def test_status_and_retry_work_while_the_configuration_does_not(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    assert start("--once", str(tmp_path / "root")).end() == 0
    config = tmp_path / "dcp2hf.toml"
    config.write_text(f'state_dir = "state"\nroots = ["{tmp_path}/root"]\nworkerz = 2\n')
    outside = clean({})
    for text in (config.read_text(), config.read_text() + "workers = = 3\n"):
        config.write_text(text)
        said, tried = (
            subprocess.run(
                [sys.executable, "-m", "daemon", *command, "--config", str(config)], env=outside, cwd=REPOSITORY,
                capture_output=True, text=True, check=False,
            )
            for command in (["status"], ["retry", str(run)])
        )  # fmt: skip

        assert (said.returncode, tried.returncode) == (0, 0)
        assert said.stderr.startswith("dcp2hfd: the configuration cannot be used: ")
        assert f"{run}/step-10-hf" in said.stdout
        assert "1 step at" in tried.stdout


def test_a_root_that_does_not_answer_holds_status_up_for_seconds_only_and_no_other_root(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def hang() -> unwatched_folders.Looked:
        return unwatched_folders.Looked(pipe.read_text(), {})

    looks: unwatched_folders.Looks[unwatched_folders.Looked] = unwatched_folders.Looks()
    asked = {"hangs": hang, "answers": lambda: unwatched_folders.at_root(str(tmp_path), [])}
    before = threading.active_count()
    for _ in range(3):
        assert looks.within(0.2, asked) == {"hangs": None, "answers": unwatched_folders.Looked("", {})}
    assert threading.active_count() == before + 1, "a place that hangs is looked at once"
    pipe.write_text("it answers")
    wait_until(lambda: threading.active_count() == before)
    asked["hangs"] = lambda: unwatched_folders.Looked("again", {})
    assert looks.within(5.0, asked)["hangs"] == unwatched_folders.Looked("again", {})


def test_a_root_that_cannot_be_listed_is_no_purge_and_is_named(
    make_run: MakeRun, tmp_path: Path, start: Start, ask: Ask
) -> None:
    make_run("a", 10)
    assert start("--once", str(tmp_path / "root")).end() == 0
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    found = ask()

    assert shown(found) == {10: DONE_10}
    assert root(found, tmp_path / "root")["message"] == "it cannot be listed now: No such file or directory"


def test_a_root_that_is_away_for_a_while_brings_everything_back_as_it_was(
    make_run: MakeRun, tmp_path: Path, start: Start, ask: Ask
) -> None:
    run = make_run("a", 10)
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded")
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    daemon.wait_for("root_unreachable")
    assert shown(ask()) == {10: DONE_10}, "a root that cannot be listed says nothing of what is in it"
    (tmp_path / "root").mkdir()  # the empty mount point
    wait_until(lambda: shown(ask()) == {10: ("vanished", None, None)})
    (tmp_path / "elsewhere" / run.name).rename(run)
    wait_until(lambda: shown(ask()) == {10: DONE_10})

    assert daemon.stop() == 0


def test_steps_that_were_purged_while_no_daemon_ran_wait_no_longer_and_are_no_error(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)
    ledger.put(row(10, state=State.FAILED, error="MachineFailure", complete_at=1.0))
    ledger.put(row(20, state=State.DONE, output="/r/a/step-20-hf"))
    ledger.nothing_left("/r", but=["/r/b"], max_depth=0)
    assert {group.state for group in ledger.overview().groups} == {"failed", "done"}, "it lies deeper than is listed"
    ledger.nothing_left("/r", but=["/r/b"], max_depth=1)

    assert [(group.state, group.error, group.steps) for group in ledger.overview().groups] == [("vanished", None, 2)]
    assert ledger.overview().waiting == []
    assert ledger.causes(10) == []
    ledger.take_inventory("/r/a", [10], [20])
    assert {group.state for group in ledger.overview().groups} == {"failed", "done"}


def test_a_reload_does_not_change_since_when_a_root_is_watched(
    make_run: MakeRun, tmp_path: Path, start: Start, ask: Ask
) -> None:
    make_run("a", 10)
    config = tmp_path / "dcp2hf.toml"
    config.write_text(f'roots = ["{tmp_path}/root"]\nworkers = 1\n')
    daemon = start(f"--config={config}")
    daemon.wait_for("conversion_succeeded")
    wait_until(lambda: root(ask(), tmp_path / "root")["state"] == "watched")
    since = root(ask(), tmp_path / "root")["since"]
    assert run_command(tmp_path, "retry", str(tmp_path / "root")).returncode == 0  # another process writes
    daemon.wait_for("retry_asked")
    time.sleep(1.5)
    config.write_text(f'roots = ["{tmp_path}/root"]\nworkers = 2\n')
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("config_reloaded")

    assert (root(ask(), tmp_path / "root")["state"], root(ask(), tmp_path / "root")["since"]) == ("watched", since)
    assert daemon.stop() == 0


def test_a_root_that_stands_as_before_is_not_written(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path)
    ledger.note_root("/r", "watched", 1.0)
    written = ledger.revision()
    ledger.note_root("/r", "watched", 2.0)

    assert ledger.revision() == written
    ledger.note_root("/r", "away", 3.0, "why")
    assert ledger.revision() != written


def test_of_a_run_that_is_gone_no_path_is_named_nor_what_will_be_deleted(
    make_run: MakeRun, tmp_path: Path, start: Start, ask: Ask
) -> None:
    run, there = make_run("a", 10), make_run("b", 10)
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded", 2)
    assert [one["path"] for one in ask()["runs"]] == [str(run), str(there)]
    shutil.rmtree(run)
    wait_until(lambda: ask()["runs"][0]["path"] is None)

    found = ask()["runs"]
    assert [(one["path"], bool(one["retention"])) for one in found] == [(None, False), (str(there), True)]
    assert str(run) not in run_command(tmp_path, "status").stdout
    assert daemon.stop() == 0


def test_no_time_of_a_retry_is_promised_while_no_daemon_watches(tmp_path: Path, ask: Ask) -> None:
    ledger = Ledger.open(tmp_path / "state")
    ledger.put(row(10, root=str(tmp_path), path=f"{tmp_path}/a/step-10", run=f"{tmp_path}/a", state=State.FAILED, error="MachineFailure", next_attempt=4e9))  # fmt: skip
    (tmp_path / "a/step-10").mkdir(parents=True)

    def said() -> tuple[str | None, str]:
        return ask()["runs"][0]["steps"][0]["retry_at"], run_command(tmp_path, "status").stdout

    retry_at, text = said()
    assert retry_at is None
    assert "daemon: not running, nothing is tried until one does" in text
    assert "(again once a daemon watches it)" in text
    ledger.register("watch")
    ledger.note_root(str(tmp_path), "watched", 1.0)
    retry_at, text = said()
    assert retry_at == "2096-10-02T07:06:40Z"
    assert "(again in " in text


# Inventories
def test_a_name_that_is_missing_for_a_moment_is_not_gone() -> None:
    track = InventoryTrack("/r/a")
    track.look(frozenset({10, 20}), frozenset({10}), 100.0)

    assert track.look(frozenset({20, 30}), frozenset(), 101.0) == (
        [Inventory(run="/r/a", steps=(10, 20, 30), exports=(10,))], 102.0
    )  # fmt: skip
    assert track.look(frozenset({10, 20, 30}), frozenset({10}), 101.5) == ([], None)
    assert track.look(frozenset({20, 30}), frozenset({10}), 110.0) == ([], 111.0)
    assert track.look(frozenset({20, 30}), frozenset({10}), 111.0) == (
        [Inventory(run="/r/a", steps=(20, 30), exports=(10,))], None
    )  # fmt: skip


def test_an_inventory_of_many_steps_comes_in_lines_that_are_not_cut() -> None:
    many = frozenset(range(10**12, 10**12 + MOST * 2))
    said, _ = InventoryTrack("/r/" + "a" * 4000).look(many, many, 0.0)

    assert len(said) == 4
    assert {number for one in said for number in one.steps} == many
    assert [one.is_last for one in said] == [False, False, False, True]
    assert max(len(messages.encode(one)) for one in said) < 1 << 16


def test_a_step_that_comes_while_a_daemon_watches_is_in_the_inventory_at_once(
    make_run: MakeRun, tmp_path: Path, saved: Path, start: Start, ask: Ask
) -> None:
    run = make_run("a", 10)
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded")
    add_step(saved, run, 20)
    daemon.wait_for("conversion_succeeded", 2)

    assert shown(ask()) == {10: DONE_10, 20: DONE_20}
    assert daemon.stop() == 0
