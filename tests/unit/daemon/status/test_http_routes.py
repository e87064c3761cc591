"""A running daemon tells the truth on `metrics_address`: from its first second, while things go wrong, and after."""

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from daemon.ledger.ledger import Ledger
from daemon.ledger.sample_folders import name as samples_name
from daemon.status.status_page import FRESH
from tests.unit.daemon.asking import free_address, get, samples, wait_for
from tests.unit.daemon.running import Daemon, clean, daemons, dcp2hfd, wait_until

SERVE = Path(__file__).parents[1].joinpath("serve.py")
FAST = {"DCP2HF_POLL_INTERVAL": "0.3", "DCP2HF_RESCAN_INTERVAL": "1s", "DCP2HF_BACKOFF_INITIAL": "0.2"}
WITHOUT_THE_KEY = """
import os, runpy, sys
del os.environ["DCP2HF_METRICS_ADDRESS"], sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HANGS = "import ctypes, time; ctypes.CDLL(None).prctl(1, 9); time.sleep(600)"  # PR_SET_PDEATHSIG: not past its daemon
MakeRun = Callable[..., Path]
Start = Callable[..., Daemon]


@pytest.fixture
def address() -> str:
    return free_address()


@pytest.fixture
def start(tmp_path: Path, address: str) -> Iterator[Start]:
    with daemons() as begin:
        environ = FAST | {"DCP2HF_METRICS_ADDRESS": address}

        def listen(*arguments: str, **more: str) -> Daemon:
            daemon = begin(SERVE, tmp_path / "state", *arguments, **environ | more)
            daemon.wait_for("listening")
            return daemon

        yield listen


def test_what_was_converted_failed_and_waits_is_counted_and_known_at_once_after_a_restart(
    make_run: MakeRun, tmp_path: Path, start: Start, address: str
) -> None:
    run, root = make_run("a", 10, 20, 30), str(tmp_path / "root")
    (run / "behaviour-step-20").write_text("fail NonFiniteTensor never")
    began = time.time()
    first = start(root)
    found = wait_for(address, lambda m: sum(m["dcp2hf_attempts_total"].values()) == 3)

    assert found["dcp2hf_attempts_total"][("succeeded",)] == 2
    assert found["dcp2hf_attempt_errors_total"][("NonFiniteTensor",)] == 1
    assert found["dcp2hf_steps"][(root, "a", "done")] == 2
    assert found["dcp2hf_steps_in_error"] == {(root, "a", "NonFiniteTensor"): 1}
    assert found["dcp2hf_lag_seconds"] == {(root, "a"): 0}
    assert began <= found["dcp2hf_last_success_timestamp_seconds"][(root, "a")] <= time.time()
    assert found["dcp2hf_worker_peak_memory_bytes"][()] > 1 << 20
    assert found["dcp2hf_bytes_written_total"] == {(): 2}
    assert found["dcp2hf_root_up"] == {(root,): 1}
    assert found["dcp2hf_runs"] == {(root,): 1}
    assert found["process_resident_memory_bytes"][()] > 1 << 20
    assert first.stop() == 0

    start(f"--scanner-of={root}={HANGS}", root)
    again = samples(get(address, "/metrics")[1])

    for name in ("dcp2hf_steps", "dcp2hf_steps_in_error", "dcp2hf_last_success_timestamp_seconds"):
        assert again[name] == found[name], name
    assert sum(again["dcp2hf_attempts_total"].values()) == 0


def test_a_step_that_waits_lags_and_the_queue_has_it(
    make_run: MakeRun, tmp_path: Path, start: Start, address: str
) -> None:
    run, root = make_run("a", 10, 20), str(tmp_path / "root")
    (run / "behaviour").write_text("hang")
    start(root)
    found = wait_for(address, lambda m: m["dcp2hf_workers_busy"][()] == 1 and m["dcp2hf_queue_length"][()] == 1)
    later = wait_for(address, lambda m: m["dcp2hf_lag_seconds"][(root, "a")] > 2)

    assert found["dcp2hf_steps"][(root, "a", "running")] == 1
    assert found["dcp2hf_workers"] == {(): 1}
    assert later["dcp2hf_attempts_total"] == found["dcp2hf_attempts_total"]


def test_a_root_that_goes_away_shows_and_with_it_the_last_one_readiness(
    make_run: MakeRun, tmp_path: Path, start: Start, address: str
) -> None:
    make_run("a", 10)
    root = tmp_path / "root"
    daemon = start(str(root))
    daemon.wait_for("conversion_succeeded")
    assert get(address, "/readyz") == (200, "ok\n")
    root.rename(tmp_path / "away")
    daemon.wait_for("root_unreachable")
    found = wait_for(address, lambda m: m["dcp2hf_root_up"] == {(str(root),): 0})
    assert get(address, "/readyz") == (503, f"every root is unreachable: {root}\n")
    assert get(address, "/healthz") == (200, "ok\n")
    assert found["dcp2hf_steps"][(str(root), "a", "done")] == 1, "away is not deleted"
    (tmp_path / "away").rename(root)
    daemon.wait_for("root_recovered")

    assert get(address, "/readyz") == (200, "ok\n")


def test_a_scanner_that_hangs_is_not_ready_and_its_end_is_counted(tmp_path: Path, start: Start, address: str) -> None:
    (tmp_path / "root").mkdir()
    root = str(tmp_path / "root")
    start(f"--scanner-of={root}={HANGS}", root, DCP2HF_SCAN_DEADLINE="1s")

    assert get(address, "/readyz") == (503, "no scan began yet\n")
    found = wait_for(address, lambda m: m["dcp2hf_scanner_ends_total"] == {(root,): 1})
    assert found["dcp2hf_root_up"] == {(root,): 0}


def test_a_deleted_run_leaves_while_the_daemon_watches(
    make_run: MakeRun, tmp_path: Path, start: Start, address: str
) -> None:
    make_run("a", 10)
    gone, root = make_run("b", 10), str(tmp_path / "root")
    daemon = start(root)
    daemon.wait_for("conversion_succeeded", 2)
    assert (root, "b", "done") in samples(get(address, "/metrics")[1])["dcp2hf_steps"]
    shutil.rmtree(gone)

    wait_for(address, lambda m: {labels[1] for labels in m["dcp2hf_steps"]} == {"a"})


def test_without_an_address_nothing_listens_and_with_once_neither(
    make_run: MakeRun, tmp_path: Path, address: str
) -> None:
    make_run("a", 10)
    with daemons() as begin:
        off = begin(SERVE, tmp_path / "off", str(tmp_path / "root"), **FAST | {"DCP2HF_METRICS_ADDRESS": ""})
        off.wait_for("conversion_succeeded")
        once = begin(SERVE, tmp_path / "once", "--once", str(tmp_path / "root"), DCP2HF_METRICS_ADDRESS=address)
        assert once.end() == 0
        assert not off.events("listening") + once.events("listening")
        assert off.stop() == 0


def test_a_daemon_that_does_not_listen_has_no_prometheus_client_in_memory() -> None:
    code = "import sys, daemon.service; sys.exit('prometheus_client' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], env=clean({}), check=False).returncode == 0


def test_a_taken_address_is_a_warning_and_everything_else_goes_on(
    make_run: MakeRun, tmp_path: Path, start: Start, address: str
) -> None:
    start(str(make_run("a")))
    run = make_run("b", 10)
    with daemons() as begin:
        second = begin(SERVE, tmp_path / "second", str(run), **FAST | {"DCP2HF_METRICS_ADDRESS": address})
        second.wait_for("conversion_succeeded")
        (said,) = second.events("listening_failed")
        assert (said["level"], said["address"]) == ("warning", address)
        assert second.stop() == 0


def test_a_reload_moves_the_listener_and_one_that_is_refused_shows(
    make_run: MakeRun, tmp_path: Path, start: Start, address: str
) -> None:
    # What the environment says wins over the file: the address of this daemon is the file's.
    run, other, config = make_run("a", 10), free_address(), tmp_path / "dcp2hf.toml"

    def write(line: str) -> None:
        config.write_text(f'roots = ["{run}"]\n{line}\n')

    write(f'metrics_address = "{address}"')
    with daemons() as begin:
        daemon = begin("-c", WITHOUT_THE_KEY, SERVE, tmp_path / "state", f"--config={config}", **FAST)
        daemon.wait_for("conversion_succeeded")
        assert samples(get(address, "/metrics")[1])["dcp2hf_config_reload_success"] == {(): 1}
        write('metrics_address = "nowhere"')
        daemon.process.send_signal(signal.SIGHUP)
        assert "metrics_address" in daemon.wait_for("config_invalid")["message"]
        wait_for(address, lambda m: m["dcp2hf_config_reload_success"] == {(): 0})
        write(f'metrics_address = "{other}"')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("config_reloaded")
        found = wait_for(other, lambda m: m["dcp2hf_config_reload_success"] == {(): 1})
        assert found["dcp2hf_attempts_total"][("succeeded",)] == 1, "what was counted stays"
        with pytest.raises(OSError):
            get(address, "/metrics")
        write('metrics_address = ""')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("config_reloaded", 2)
        with pytest.raises(OSError):
            get(other, "/metrics")


def test_a_failing_state_dir_shows_in_metrics_and_readiness(
    make_run: MakeRun, tmp_path: Path, start: Start, address: str
) -> None:
    run, root = make_run("a", 10), str(tmp_path / "root")
    daemon = start(root)
    daemon.wait_for("conversion_succeeded")
    hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (0, hard))  # as on a full disk
    (run / "step-20").mkdir()
    daemon.wait_for("state_dir_failed")
    found = wait_for(address, lambda m: (root, "a", "incomplete") in m["dcp2hf_steps"])

    assert found["dcp2hf_state_dir_up"] == {(): 0}
    assert found["dcp2hf_steps"][(root, "a", "done")] == 1, "what was known is known in memory"
    assert found["dcp2hf_steps"][(root, "a", "incomplete")] == 1
    assert get(address, "/readyz") == (503, "state_dir fails: what is remembered is in memory only\n")
    assert get(address, "/healthz") == (200, "ok\n")


def test_the_status_page_and_all_that_it_names_are_served(tmp_path: Path, start: Start, address: str) -> None:
    start(str(tmp_path))
    status, text = get(address, "/")
    named = re.findall(r'(?:href|src)="([\w.]+)"', text)

    assert status == 200
    assert {"page.css", "page.js", "status.json", "metrics", "healthz", "readyz"} <= set(named)
    assert {get(address, f"/{path}")[0] for path in named} <= {200, 503}


def test_what_runs_shows_with_its_progress_and_what_was_converted_with_its_statistics(
    make_run: MakeRun, tmp_path: Path, start: Start, address: str
) -> None:
    run, hanging = make_run("a", 10), make_run("b", 10)
    (hanging / "behaviour").write_text("hang")
    daemon = start(str(tmp_path / "root"), DCP2HF_WORKERS="2")
    line = daemon.wait_for("conversion_succeeded")
    wait_until(lambda: any(one["total"] for one in json.loads(get(address, "/status.json")[1])["running"]))
    time.sleep(FRESH)
    said = json.loads(get(address, "/status.json")[1])
    figures = json.loads(get(address, f"/statistics.json?run={quote(str(run))}")[1])
    (shown,) = json.loads(get(address, f"/status.json?run={quote(str(run))}")[1])["runs"]

    assert "statistics" not in line
    assert [(one["run"], one["step"], one["phase"], one["done"], one["total"]) for one in said["running"]] == [
        ("b", 10, "export", 3, 9)
    ]
    assert {one["run"]: one["states"] for one in said["runs"]} == {"a": {"done": 1}, "b": {"running": 1}}
    assert figures["steps"] == [{"step": 10, "figures": figures["steps"][0]["figures"]}]
    assert figures["steps"][0]["figures"]["rms"] == [0.5]
    of_status = json.loads(dcp2hfd("status", "--json", state=tmp_path / "state"))["runs"]
    assert shown["steps"] == next(one for one in of_status if one["run"] == "a")["steps"]


def _away(state: Path) -> dict[str, float]:
    ledger = Ledger.read(state)
    assert ledger is not None
    try:
        return ledger.away()
    finally:
        ledger.close()


def test_samples_go_once_their_run_was_away_for_a_week(
    make_run: MakeRun, tmp_path: Path, start: Start, address: str
) -> None:
    run, state, clock = make_run("a", 10), tmp_path / "state", tmp_path / "clock"
    clock.write_text("0")
    orphan = state / "statistics" / "0123"
    orphan.mkdir(parents=True)
    daemon = start(f"--clock={clock}", str(tmp_path / "root"))
    daemon.wait_for("conversion_succeeded")
    assert not orphan.exists()
    own = state / "statistics" / samples_name(str(run))
    own.mkdir()  # the stand-in for the converter keeps none
    shutil.rmtree(run)
    wait_until(lambda: bool(_away(state)))
    assert own.exists(), "its mount may be back"
    clock.write_text(str(8 * 86_400))
    wait_until(lambda: not own.exists())

    assert json.loads(get(address, f"/statistics.json?run={quote(str(run))}")[1])["steps"] == []
