"""The whole daemon, its real scanners and ledger, with a stand-in converter: what it does when, and how it ends."""

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from daemon.ledger.ledger import Ledger
from daemon.status import report
from tests.unit.daemon.conftest import add_step
from tests.unit.daemon.running import Daemon, daemons, dcp2hfd, wait_until
from tests.unit.daemon.scanner.test_root_scan import save_again

SERVE = Path(__file__).with_name("serve.py")
MakeRun = Callable[..., Path]
FAST = {"DCP2HF_POLL_INTERVAL": "0.3", "DCP2HF_BACKOFF_INITIAL": "0.2", "DCP2HF_CONFIG_GRACE": "1s"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator["Start"]:
    with daemons() as begin:
        yield lambda *arguments, **environ: begin(SERVE, tmp_path / "state", *arguments, **FAST | environ)


Start = Callable[..., Daemon]


def states(tmp_path: Path) -> dict[int, str]:
    ledger = Ledger.read(tmp_path / "state")
    assert ledger is not None
    return {row.step: str(row.state) for row in ledger.rows()}


def reasons(tmp_path: Path) -> set[tuple[str, str | None, str]]:
    ledger = Ledger.read(tmp_path / "state")
    assert ledger is not None
    return {(row.reason, row.error, row.hint) for row in ledger.rows()}


def reported(tmp_path: Path) -> dict[str, Any]:
    return report.look(tmp_path / "state")


def conversions(run: Path) -> list[str]:
    return (run / "conversions").read_text().split() if (run / "conversions").exists() else []


def test_once_converts_all_that_is_complete_oldest_first_and_ends_with_0(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 9, 10, 100)
    (make_run("a") / "step-200").mkdir()
    daemon = start("--once", str(tmp_path / "root"))

    assert daemon.end() == 0
    assert conversions(run) == ["step-9", "step-10", "step-100"]
    assert states(tmp_path) == {9: "done", 10: "done", 100: "done", 200: "incomplete"}
    assert daemon.events("conversion_skipped", reason="incomplete", step=200)
    assert not [name for name in os.listdir(run) if name.startswith(".dcp2hf")]


def test_once_again_does_nothing_twice(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10, 20)
    assert start("--once", str(tmp_path / "root")).end() == 0
    second = start("--once", str(tmp_path / "root"))

    assert second.end() == 0
    assert len(conversions(run)) == 2
    assert not second.events("conversion_started")


def test_what_is_known_of_a_step_moves_to_the_root_that_it_is_found_below_now(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    assert start("--once", str(tmp_path / "root")).end() == 0
    assert start("--once", str(run)).end() == 0

    ledger = Ledger.read(tmp_path / "state")
    assert ledger is not None
    assert [row.root for row in ledger.rows()] == [str(run)]
    assert conversions(run) == ["step-10"]


def test_a_lost_ledger_costs_no_conversion(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10)
    start("--once", str(tmp_path / "root")).end()
    shutil.rmtree(tmp_path / "state")
    second = start("--once", str(tmp_path / "root"))

    assert second.end() == 0
    assert len(conversions(run)) == 1
    assert second.events("conversion_skipped", reason="up_to_date")
    ledger = Ledger.read(tmp_path / "state")
    assert ledger is not None
    assert [row.output for row in ledger.rows()] == [str(run / "step-10-hf")], "whoever published it"


def test_two_at_once_on_the_same_root_convert_each_step_once(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10, 20)
    (run / "behaviour").write_text("slow")
    both = [start("--once", str(tmp_path / "root")) for _ in range(2)]

    assert [daemon.end() for daemon in both] == [0, 0]
    assert len([said for daemon in both for said in daemon.events("conversion_succeeded")]) == 2
    assert states(tmp_path) == {10: "done", 20: "done"}


def test_once_counts_a_failure_and_goes_on_with_the_others(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10, 20)
    (run / "behaviour-step-10").write_text("fail NonFiniteTensor never")
    daemon = start("--once", str(tmp_path / "root"))

    assert daemon.end() == 1
    assert states(tmp_path) == {10: "quarantined", 20: "done"}
    (failed,) = daemon.events("conversion_failed")
    assert (failed["error"], failed["quarantined"], failed["attempt"]) == ("NonFiniteTensor", True, 1)


def test_once_takes_up_what_is_quarantined_or_was_removed(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10, 20)
    (run / "behaviour-step-10").write_text("fail NonFiniteTensor never")
    start("--once", str(tmp_path / "root")).end()
    (run / "behaviour-step-10").unlink()
    shutil.rmtree(run / "step-20-hf")

    assert start("--once", str(tmp_path / "root")).end() == 0
    assert states(tmp_path) == {10: "done", 20: "done"}


def test_once_makes_one_attempt_each_and_does_not_wait_for_a_config(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10, config=False)
    (run / "behaviour").write_text("fail RunConfigMissing config")
    daemon = start("--once", str(tmp_path / "root"), DCP2HF_CONFIG_GRACE="1h")

    assert daemon.end() == 1
    assert len(conversions(run)) == 1


def test_once_lists_what_it_does_not_count(make_run: MakeRun, tmp_path: Path, start: Start, saved: Path) -> None:
    run = make_run("a", 10, 20, 30)
    (run / "step-10-hf").mkdir()
    (run / "step-10-hf/notes").write_text("mine")
    os.utime(run / "step-20/__0_0.distcp")
    newest = os.stat(run / "step-20/__0_0.distcp").st_mtime_ns - 60_000_000_000
    os.utime(run / "step-20/.metadata", ns=(newest, newest))
    shutil.rmtree(run / "step-30")
    shutil.copytree(saved / "no-model", run / "step-30")
    daemon = start("--once", str(tmp_path / "root"))

    assert daemon.end() == 0
    assert states(tmp_path) == {10: "foreign", 20: "suspect", 30: "unsupported"}
    assert {said["reason"] for said in daemon.events("conversion_skipped")} == {"foreign", "suspect", "no_model"}
    assert "--accept-copy" in daemon.events("conversion_skipped", reason="suspect")[0]["hint"]


def test_once_calls_a_damaged_step_a_failure(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10)
    (run / "step-10/.metadata").write_bytes(b"no pickle")
    daemon = start("--once", str(tmp_path / "root"))

    assert daemon.end() == 1
    assert daemon.events("conversion_failed", error="StepDamaged", quarantined=True)
    assert conversions(run) == []


def test_once_with_a_root_that_is_not_there_fails(tmp_path: Path, start: Start) -> None:
    daemon = start("--once", str(tmp_path / "nothing"))

    assert daemon.end() == 1
    assert daemon.events("root_unreachable", root=str(tmp_path / "nothing"))


def test_a_rehearsal_says_what_and_why_not_and_writes_nothing(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10)
    (run / "step-20").mkdir()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    daemon = start("--dry-run", str(tmp_path / "root"))

    assert daemon.end() == 0
    assert daemon.events("would_convert", step=10)[0]["output"] == str(run / "step-10-hf")
    assert daemon.events("conversion_skipped", step=20, reason="incomplete")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_rehearsal_says_what_would_be_refused_and_why(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10, 20)
    (run / "behaviour-step-10").write_text("fail UnsupportedModel unsupported")
    daemon = start("--dry-run", str(tmp_path / "root"))

    assert daemon.end() == 0
    (refused,) = daemon.events("would_not_convert")
    assert (refused["step"], refused["error"], refused["message"]) == (10, "UnsupportedModel", "as told")
    assert [said["step"] for said in daemon.events("would_convert")] == [20]
    assert conversions(run) == []


def test_watching_converts_what_appears_within_a_second_where_events_are_real(
    make_run: MakeRun, tmp_path: Path, start: Start, saved: Path
) -> None:
    run = make_run("a", 10)
    daemon = start(str(tmp_path / "root"), DCP2HF_POLL_INTERVAL="60")
    daemon.wait_for("conversion_succeeded", step=10)
    incoming = Path(shutil.copytree(saved / "step-10", run / "step-20", ignore=shutil.ignore_patterns(".metadata")))
    daemon.wait_for("step_discovered", step=20)
    shutil.copy2(saved / "step-10/.metadata", incoming / ".metadata.tmp")
    os.rename(incoming / ".metadata.tmp", incoming / ".metadata")
    renamed = time.monotonic()
    daemon.wait_for("conversion_started", step=20)

    assert time.monotonic() - renamed < 3.0, "a second, on a machine that does nothing else"
    daemon.wait_for("conversion_succeeded", step=20)
    assert daemon.stop() == 0
    assert daemon.events("root_watched")[0]["observer"] == "inotify"


def test_watching_by_polling_finds_the_same(make_run: MakeRun, tmp_path: Path, start: Start, saved: Path) -> None:
    run = make_run("a", 10)
    daemon = start(str(tmp_path / "root"), DCP2HF_OBSERVER="polling")
    daemon.wait_for("conversion_succeeded", step=10)
    add_step(saved, run, 20)
    daemon.wait_for("conversion_succeeded", step=20)

    assert daemon.events("root_watched")[0]["observer"] == "polling"
    assert daemon.stop() == 0
    assert len(conversions(run)) == 2


def test_a_restart_does_nothing_twice_and_reads_nothing_twice(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10, 20)
    first = start(str(tmp_path / "root"))
    first.wait_for("conversion_succeeded", 2)
    assert first.stop() == 0
    second = start(str(tmp_path / "root"))
    time.sleep(1.5)

    assert second.stop() == 0
    assert len(conversions(run)) == 2
    assert {said["event"] for said in second.log} == {"daemon_started", "root_watched", "daemon_stopped"}


def test_a_removed_directory_stays_removed_until_retry(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10)
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded")
    time.sleep(1.0)
    shutil.rmtree(run / "step-10-hf")
    daemon.wait_for("conversion_skipped", reason="removed")
    assert states(tmp_path) == {10: "removed"}

    retry(tmp_path, run / "step-10")
    daemon.wait_for("conversion_succeeded", 2)
    assert daemon.stop() == 0


def retry(tmp_path: Path, path: Path, *flags: str) -> None:
    dcp2hfd("retry", *flags, path, state=tmp_path / "state")


def test_failures_are_tried_again_then_quarantined_and_retry_forgets_them(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("fail MachineFailure backoff")
    daemon = start(str(tmp_path / "root"), DCP2HF_MAX_ATTEMPTS="3")
    last = daemon.wait_for("conversion_failed", 3)

    assert [said["attempt"] for said in daemon.events("conversion_failed")] == [1, 2, 3]
    assert [said["quarantined"] for said in daemon.events("conversion_failed")] == [False, False, True]
    assert last["retry_at"] is None
    time.sleep(1.0)
    assert len(conversions(run)) == 3

    (run / "behaviour").unlink()
    retry(tmp_path, run)
    daemon.wait_for("conversion_succeeded")
    assert daemon.stop() == 0


def test_a_step_that_fails_holds_no_other_up(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10, 20)
    (run / "behaviour-step-10").write_text("fail MachineFailure backoff")
    daemon = start(str(tmp_path / "root"), DCP2HF_BACKOFF_INITIAL="1h")
    daemon.wait_for("conversion_succeeded", step=20)

    assert states(tmp_path) == {10: "failed", 20: "done"}
    assert daemon.stop() == 0


def test_a_config_that_comes_late_is_waited_for(make_run: MakeRun, tmp_path: Path, start: Start, saved: Path) -> None:
    run = make_run("a", 10, config=False)
    daemon = start(str(tmp_path / "root"), DCP2HF_CONFIG_GRACE="1h")
    daemon.wait_for("step_waiting")
    assert conversions(run) == []
    shutil.copy(saved / "config.json", run / "config.json")
    daemon.wait_for("conversion_succeeded")

    assert daemon.stop() == 0


def test_a_config_that_never_comes_is_a_failure_in_words_and_one_that_comes_later_lifts_it(
    make_run: MakeRun, tmp_path: Path, start: Start, saved: Path
) -> None:
    run = make_run("a", 10, config=False)
    daemon = start(str(tmp_path / "root"))
    failed = daemon.wait_for("conversion_failed")
    assert (failed["error"], failed["quarantined"]) == ("RunConfigMissing", True)
    assert failed["hint"]

    shutil.copy(saved / "config.json", run / "config.json")
    daemon.wait_for("conversion_succeeded")
    assert daemon.stop() == 0


def test_an_accepted_copy_is_converted(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10)
    at = os.stat(run / "step-10/__0_0.distcp").st_mtime_ns - 60_000_000_000
    os.utime(run / "step-10/.metadata", ns=(at, at))
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_skipped", reason="suspect")
    retry(tmp_path, run / "step-10", "--accept-copy")
    daemon.wait_for("conversion_succeeded")

    assert daemon.stop() == 0


def test_a_run_that_cannot_be_expressed_is_said_once_and_tried_once(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10, 20, 30)
    (run / "behaviour").write_text("drift")
    daemon = start("--once", str(tmp_path / "root"))

    assert daemon.end() == 0
    assert len(conversions(run)) == 1
    assert set(states(tmp_path).values()) == {"unsupported"}
    (said,) = daemon.events("run_unsupported")
    assert (said["error"], said["figures"], said["run"]) == ("RoutingDrift", {"largest": 0.1}, "a")


def test_a_purged_step_is_vanished_and_no_failure(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10)
    (run / "step-20").mkdir()
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded")
    (run / "step-20").rmdir()
    daemon.wait_for("step_vanished", step=20)

    assert states(tmp_path)[20] == "vanished"
    assert daemon.stop() == 0


def test_a_step_purged_while_a_conversion_of_it_runs_is_vanished_however_that_ends(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("fail_late MachineFailure backoff")
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_started")
    shutil.rmtree(run / "step-10")
    daemon.wait_for("step_vanished", step=10)

    assert daemon.stop() == 0
    assert states(tmp_path)[10] == "vanished"
    assert len(conversions(run)) == 1
    assert not daemon.events("conversion_failed")


def test_what_another_daemon_with_the_same_ledger_settled_is_not_started_from_memory(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    """It was published and removed while this one was busy and did not look."""
    a, b = make_run("a", 10), make_run("b", 10)
    (a / "behaviour").write_text("fail_late MachineFailure backoff")
    busy = start(str(tmp_path / "root"), DCP2HF_WORKERS="1", DCP2HF_OBSERVER="polling", DCP2HF_POLL_INTERVAL="10min")
    busy.wait_for("conversion_started", run="a")
    other = start(str(tmp_path / "root"), DCP2HF_WORKERS="2")
    other.wait_for("conversion_succeeded", run="b")
    # A daemon takes a directory that it never saw for one that is still to appear: only the next one is sure to miss it.
    assert other.stop() == 0
    shutil.rmtree(b / "step-10-hf")
    start(str(tmp_path / "root"), DCP2HF_WORKERS="2").wait_for("conversion_skipped", run="b", reason="removed")
    busy.wait_for("conversion_failed", run="a", count=2, seconds=40.0)

    assert not busy.events("conversion_started", run="b")
    assert conversions(b) == ["step-10"]


def test_what_another_daemon_published_during_an_attempt_that_fails_is_not_begun_again(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("fail_late MachineFailure backoff")
    slower = start(str(tmp_path / "root"), DCP2HF_BACKOFF_INITIAL="1s")
    wait_until(lambda: conversions(run) != [])
    (run / "behaviour").unlink()
    other = start(str(tmp_path / "root"))
    other.wait_for("conversion_succeeded")
    assert not slower.events("conversion_failed")
    shutil.rmtree(run / "step-10-hf")
    slower.wait_for("conversion_failed")
    time.sleep(3.0)  # its backoff

    assert conversions(run) == ["step-10", "step-10"]
    assert states(tmp_path) == {10: "removed"}


def test_retention_hazard_says_what_remains_once_per_run(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    make_run("a", 10, 20)
    daemon = start("--once", str(tmp_path / "root"))
    daemon.end()

    (said,) = daemon.events("retention_hazard")
    assert (said["run"], said["keep_latest_k"], said["remaining"]) == ("a", 4, 1)


def test_no_room_pauses_the_queue_and_burns_no_attempt(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10, 20)
    daemon = start(
        str(tmp_path / "root"), DCP2HF_MIN_FREE_SPACE="1000TB", DCP2HF_RESCAN_INTERVAL="1s", DCP2HF_POLL_INTERVAL="1s"
    )
    said = daemon.wait_for("queue_paused")
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace('"keep_latest_k": 4', '"keep_latest_k": 5'))
    time.sleep(4.0)

    assert said["error"] == "NoSpace"
    assert "min_free_space" in said["message"]
    assert len(daemon.events("queue_paused")) == 1
    assert daemon.stop() == 0
    assert conversions(run) == []
    assert set(states(tmp_path).values()) == {"pending"}
    (found,) = reasons(tmp_path)  # also once the run config changed
    assert found == (
        said["message"].replace(said["message"].split(" free")[0], found[0].split(" free")[0]),
        "NoSpace",
        said["hint"],
    )


def test_sigterm_lets_go_within_ten_seconds_and_leaves_nothing_half_done(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("hang")
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_started")
    wait_until(lambda: any(name.endswith(".staging") for name in os.listdir(run)))
    began = time.monotonic()

    assert daemon.stop() == 0
    assert time.monotonic() - began < 10
    assert not [name for name in os.listdir(run) if name.startswith(".dcp2hf")]
    assert states(tmp_path) == {10: "pending"}
    assert daemon.log[-1]["event"] == "daemon_stopped"


def test_a_killed_daemon_is_recovered_from_by_the_next(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("hang")
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_started")
    wait_until(lambda: any(name.endswith(".staging") for name in os.listdir(run)))
    daemon.process.kill()
    daemon.process.wait()
    (run / "behaviour").unlink()
    second = start(str(tmp_path / "root"))
    second.wait_for("conversion_succeeded")

    assert second.stop() == 0
    assert not [name for name in os.listdir(run) if name.startswith(".dcp2hf")]


def test_what_a_killed_conversion_left_is_removed_before_the_next_attempt(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("hang")
    daemon = start(str(tmp_path / "root"), DCP2HF_BACKOFF_INITIAL="1h")
    daemon.wait_for("conversion_started")
    wait_until(lambda: any(name.endswith(".staging") for name in os.listdir(run)))
    pid = next(json.loads((run / name).read_text())["pid"] for name in os.listdir(run) if name.endswith(".lock"))
    os.kill(pid, signal.SIGKILL)
    failed = daemon.wait_for("conversion_failed")

    assert "SIGKILL" in failed["message"]
    assert daemon.events("stale_removed")
    assert not [name for name in os.listdir(run) if name.startswith(".dcp2hf")]
    assert daemon.stop() == 0


HANGS = "import ctypes, time; ctypes.CDLL(None).prctl(1, 9); time.sleep(600)"  # PR_SET_PDEATHSIG: not past its daemon


def test_a_root_that_hangs_holds_no_other_up(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    make_run("a", 10)
    hanging = str(tmp_path / "hanging")
    daemon = start(f"--scanner-of={hanging}={HANGS}", hanging, str(tmp_path / "root"), DCP2HF_SCAN_DEADLINE="1s")
    daemon.wait_for("conversion_succeeded", root=str(tmp_path / "root"))
    said = daemon.wait_for("root_unreachable", root=hanging)

    assert "hangs" in said["message"]
    assert daemon.stop() == 0


def test_a_root_that_comes_back_is_said_and_taken_up(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10)
    os.rename(tmp_path / "root", tmp_path / "away")
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("root_unreachable")
    os.rename(tmp_path / "away", tmp_path / "root")
    daemon.wait_for("root_recovered")
    daemon.wait_for("conversion_succeeded")

    assert daemon.stop() == 0
    assert len(daemon.events("root_unreachable")) == 1
    assert conversions(run) == ["step-10"]


def test_a_scanner_that_is_killed_is_replaced(make_run: MakeRun, tmp_path: Path, start: Start, saved: Path) -> None:
    run = make_run("a", 10)
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded", step=10)
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    (scanner,) = [pid for pid in children if b"daemon.scanner.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(scanner), signal.SIGKILL)
    daemon.wait_for("root_unreachable")
    add_step(saved, run, 20)
    daemon.wait_for("root_recovered")
    daemon.wait_for("conversion_succeeded", step=20)

    assert daemon.stop() == 0


def test_systemd_hears_of_readiness_life_reload_and_stop(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    make_run("a", 10)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(10)
    config = tmp_path / "dcp2hf.toml"
    config.write_text(f'roots = ["{tmp_path}/root"]')
    daemon = start(f"--config={config}", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="1000000")

    said: list[str] = []
    while not any(text.startswith("READY=1") for text in said):
        said.append(manager.recv(1000).decode())
    ready = datetime.now(UTC).isoformat()
    # By its own time: the line itself may reach us later than the datagram.
    assert daemon.wait_for("root_watched")["timestamp"] <= ready, "ready only once the first scan began"
    while said[-1] != "WATCHDOG=1":
        said.append(manager.recv(1000).decode())

    config.write_text(f'roots = ["{tmp_path}/root"]\nworkers = 3\n[root."{tmp_path}/root"]\nevery = 7')
    daemon.process.send_signal(signal.SIGHUP)
    while not said[-1].startswith("RELOADING=1\nMONOTONIC_USEC="):
        said.append(manager.recv(1000).decode())
    while not said[-1].startswith("READY=1"):
        said.append(manager.recv(1000).decode())
    daemon.wait_for("root_watched", 2)

    assert daemon.stop() == 0
    while not said[-1].startswith("STOPPING=1"):
        said.append(manager.recv(1000).decode())


def test_of_two_reloads_within_50_ms_the_last_one_wins_and_no_scanner_of_a_removed_root_runs_on(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    roots = [make_run(name, 10) for name in ("a", "b", "c")]
    config = tmp_path / "dcp2hf.toml"
    config.write_text(f'roots = ["{roots[0]}"]')
    daemon = start(f"--config={config}")
    daemon.wait_for("conversion_succeeded")
    for root in roots[1:]:
        config.write_text(f'roots = ["{root}"]')
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.03)
    daemon.wait_for("root_watched", root=str(roots[2]))
    daemon.wait_for("conversion_succeeded", path=str(roots[2] / "step-10"))
    time.sleep(1.0)  # what a reload before the last one may still start

    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    scanners = [pid for pid in children if b"daemon.scanner.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(scanners) == 1
    assert daemon.events("config_reloaded")[-1]["roots"] == [str(roots[2])]
    assert daemon.stop() == 0


def test_a_broken_config_at_reload_changes_nothing(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    make_run("a", 10)
    config = tmp_path / "dcp2hf.toml"
    config.write_text(f'roots = ["{tmp_path}/root"]')
    daemon = start(f"--config={config}")
    daemon.wait_for("conversion_succeeded")
    config.write_text("workerz = 2")
    daemon.process.send_signal(signal.SIGHUP)
    said = daemon.wait_for("config_invalid")

    assert "workerz" in said["message"]
    found = reported(tmp_path)
    assert "workerz" in found["daemons"][0]["config_error"]
    assert [(root["root"], root["state"]) for root in found["roots"]] == [(f"{tmp_path}/root", "watched")]
    (tmp_path / "other").mkdir()
    config.write_text(f'roots = ["{tmp_path}/other", "{tmp_path}/later"]')
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("config_reloaded")
    daemon.wait_for("root_unreachable")
    wait_until(lambda: "starting" not in {root["state"] for root in reported(tmp_path)["roots"]})
    found = reported(tmp_path)
    assert found["daemons"][0]["config_error"] is None
    assert [(root["root"].rpartition("/")[2], root["state"], root["message"]) for root in found["roots"]] == [
        ("later", "away", "No such file or directory"), ("other", "empty", ""), ("root", "left", "")
    ]  # fmt: skip
    assert daemon.stop() == 0
    assert [root["state"] for root in reported(tmp_path)["roots"]] == ["unwatched", "unwatched", "left"]


def test_a_step_that_got_its_room_says_no_more_that_it_lacks_some(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    (make_run("a", 10) / "behaviour").write_text("hang")
    enough = shutil.disk_usage(tmp_path).free - (256 << 20)
    with (tmp_path / "large").open("wb") as large:
        os.posix_fallocate(large.fileno(), 0, 512 << 20)
    daemon = start(str(tmp_path / "root"), DCP2HF_MIN_FREE_SPACE=str(enough), DCP2HF_POLL_INTERVAL="1s")
    daemon.wait_for("queue_paused")
    wait_until(lambda: {error for _, error, _ in reasons(tmp_path)} == {"NoSpace"})
    (tmp_path / "large").unlink()
    daemon.wait_for("conversion_started")

    assert daemon.stop() == 0
    assert states(tmp_path) == {10: "pending"}, "interrupted"
    assert reasons(tmp_path) == {("", None, "")}


def drain(manager: socket.socket) -> list[bytes]:
    """What lies in a socket."""
    manager.setblocking(False)
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(manager.recv(1000))
    return found


def test_a_loop_that_is_stuck_says_no_sign_of_life(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    make_run("a", 10)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(10)
    daemon = start(str(tmp_path / "root"), NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="1000000")
    while manager.recv(1000) != b"WATCHDOG=1":
        pass
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    drain(manager)
    time.sleep(1.5)
    assert drain(manager) == []
    daemon.process.send_signal(signal.SIGCONT)
    manager.settimeout(10)
    while manager.recv(1000) != b"WATCHDOG=1":
        pass

    assert daemon.stop() == 0


def touch(step: Path) -> None:
    """Another listing, under the same save id."""
    shard = step / "__0_0.distcp"
    os.utime(shard, ns=(1, os.stat(shard).st_mtime_ns + 100_000))  # no newer than `.metadata`


def test_a_step_whose_files_changed_is_converted_again_under_the_same_save_id(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded")
    assert daemon.stop() == 0
    touch(run / "step-10")

    second = start(str(tmp_path / "root"))
    said = second.wait_for("step_waiting")
    assert said["message"] == "its files are not those that were converted"
    second.wait_for("conversion_succeeded")
    time.sleep(1.0)
    assert second.stop() == 0
    assert states(tmp_path) == {10: "done"}
    assert start("--once", str(tmp_path / "root")).end() == 0
    assert len(conversions(run)) == 2, "and not once more"


def test_a_quarantine_ends_when_the_files_change(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run = make_run("a", 10)
    (run / "behaviour-step-10").write_text("fail PayloadCorrupt never")
    daemon = start(str(tmp_path / "root"), DCP2HF_RESCAN_INTERVAL="0.5s")
    daemon.wait_for("conversion_failed", quarantined=True)
    (run / "behaviour-step-10").unlink()
    time.sleep(1.5)
    assert len(conversions(run)) == 1
    touch(run / "step-10")
    os.utime(run / "step-10")
    daemon.wait_for("conversion_succeeded")

    assert daemon.stop() == 0


def test_copies_are_converted_unasked_where_the_configuration_accepts_them(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    at = os.stat(run / "step-10/__0_0.distcp").st_mtime_ns - 60_000_000_000
    os.utime(run / "step-10/.metadata", ns=(at, at))
    daemon = start(str(tmp_path / "root"), DCP2HF_ACCEPT_COPIES="true")
    daemon.wait_for("conversion_succeeded")

    assert daemon.stop() == 0
    assert not daemon.events("conversion_skipped")


def test_what_a_person_did_and_what_was_measured_survives_a_root_that_was_away(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    """An unmounted mount point is an empty folder."""
    run = make_run("a", 10, 20, 30)
    (run / "behaviour-step-20").write_text("fail NonFiniteTensor never")
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded", 2)
    daemon.wait_for("conversion_failed", quarantined=True)
    time.sleep(1.0)
    shutil.rmtree(run / "step-10-hf")
    daemon.wait_for("conversion_skipped", reason="removed")
    before, told = states(tmp_path), len(daemon.events("conversion_failed"))
    (run / "behaviour-step-20").unlink()

    os.rename(run, tmp_path / "away")
    daemon.wait_for("step_vanished", 2)
    time.sleep(2.0)
    os.rename(tmp_path / "away", run)
    wait_until(lambda: states(tmp_path) == before, 20.0)
    time.sleep(2.0)

    assert states(tmp_path) == before == {10: "removed", 20: "quarantined", 30: "done"}
    assert len(conversions(run)) == 3
    assert len(daemon.events("conversion_failed")) == told, "and is not told again"
    ledger = Ledger.read(tmp_path / "state")
    assert ledger is not None
    assert ledger.runs_with_statistics() == [str(run)]
    assert ledger.away() == {}
    retry(tmp_path, run / "step-20")
    daemon.wait_for("conversion_succeeded", step=20)
    assert daemon.stop() == 0


def test_a_run_that_is_made_anew_where_an_unsupported_one_was_is_judged_anew(
    make_run: MakeRun, tmp_path: Path, start: Start, saved: Path
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("drift")
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("run_unsupported")
    shutil.rmtree(run)
    daemon.wait_for("step_vanished")
    time.sleep(1.0)
    make_run("a")
    (run / "behaviour").write_text("drift")
    add_step(saved, run, 10)

    daemon.wait_for("run_unsupported", 2)
    assert daemon.stop() == 0


def test_an_unsupported_run_is_judged_anew_when_its_run_config_changes(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("drift")
    daemon = start(str(tmp_path / "root"), DCP2HF_RESCAN_INTERVAL="1s")
    daemon.wait_for("run_unsupported")
    time.sleep(2.5)
    assert len(conversions(run)) == 1
    (run / "behaviour").unlink()
    set_length(run, 256)

    daemon.wait_for("conversion_succeeded")
    assert daemon.stop() == 0


def set_length(run: Path, seq_len: int) -> None:
    """Another maximum sequence length in the run config."""
    said = json.loads((run / "config.json").read_text())
    said["training"]["seq_len"] = seq_len
    (run / "config.json").write_text(json.dumps(said))


def test_a_run_config_that_changes_while_the_one_before_it_is_refused_is_tried(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("fail_late RoutingDrift unsupported")
    daemon = start(str(tmp_path / "root"), DCP2HF_RESCAN_INTERVAL="1s")
    wait_until(lambda: conversions(run) == ["step-10"])
    (run / "behaviour").unlink()
    set_length(run, 256)

    daemon.wait_for("run_unsupported")
    daemon.wait_for("conversion_succeeded")
    assert daemon.stop() == 0
    assert states(tmp_path) == {10: "done"}


def test_a_converter_that_sees_other_mtimes_than_the_scanner_for_good_converts_once_and_a_change_is_noticed(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("lists otherwise")
    daemon = start(str(tmp_path / "root"), DCP2HF_RESCAN_INTERVAL="0.5s")
    daemon.wait_for("conversion_succeeded")
    time.sleep(3.0)
    assert daemon.stop() == 0
    assert conversions(run) == ["step-10"]
    daemon = start(str(tmp_path / "root"), DCP2HF_RESCAN_INTERVAL="0.5s")
    daemon.wait_for("root_watched")
    time.sleep(2.0)
    assert conversions(run) == ["step-10"], "nor after a restart"
    for file in (run / "step-10").iterdir():
        os.utime(file, ns=(1, file.stat().st_mtime_ns + 3_000_000_000))

    daemon.wait_for("conversion_succeeded")
    assert daemon.stop() == 0


def test_an_unsupported_run_that_was_made_anew_while_no_daemon_ran_is_judged_anew(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("drift")
    daemon = start(str(tmp_path / "root"))
    daemon.wait_for("run_unsupported")
    assert daemon.stop() == 0
    again = start(str(tmp_path / "root"))
    time.sleep(2.0)
    assert again.stop() == 0
    assert len(conversions(run)) == 1, "the same run"
    (run / "behaviour").unlink()
    save_again(run / "step-10")

    last = start(str(tmp_path / "root"))
    last.wait_for("conversion_succeeded")
    assert last.stop() == 0


def test_a_clock_that_is_set_back_holds_no_retry_up(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    run, clock = make_run("a", 10), tmp_path / "clock"
    clock.write_text("3600")
    (run / "behaviour").write_text("fail MachineFailure backoff")
    daemon = start(f"--clock={clock}", str(tmp_path / "root"), DCP2HF_BACKOFF_INITIAL="2s", DCP2HF_MAX_ATTEMPTS="9")
    daemon.wait_for("conversion_failed")
    clock.write_text("0")
    daemon.wait_for("conversion_failed", 2)
    assert daemon.stop() == 0
    clock.write_text("-3600")

    second = start(f"--clock={clock}", str(tmp_path / "root"), DCP2HF_BACKOFF_INITIAL="2s", DCP2HF_MAX_ATTEMPTS="9")
    second.wait_for("conversion_failed")
    assert second.stop() == 0


def test_a_clock_that_is_set_back_holds_no_wait_for_a_run_config_up(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("3600")
    make_run("a", 10, config=False)
    daemon = start(f"--clock={clock}", str(tmp_path / "root"), DCP2HF_CONFIG_GRACE="3s")
    daemon.wait_for("step_waiting")
    clock.write_text("0")

    daemon.wait_for("conversion_failed", error="RunConfigMissing")
    assert daemon.stop() == 0
