"""A conversion's process: its command line, its limits, its events, and that it ends whatever it does.

The commands here are stand-ins for the plumbing alone; conversions are tested with the real converter elsewhere.
"""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from converter.common.errors import Retry
from daemon.config.settings import Settings
from daemon.host import child
from daemon.ledger.records import Outcome
from daemon.runners import local_process
from daemon.runners.local_process import LocalAttempt, Request
from tests.unit.daemon.conftest import with_

S = Settings()


def run(
    code: str, settings: Settings = S, *, stop_after: float | None = None
) -> tuple[Outcome, list[dict[str, Any]], list[str]]:
    """Outcome, events and other output of a stand-in converter that runs `code`."""
    events: list[dict[str, Any]] = []
    output: list[str] = []

    async def attempt() -> Outcome:
        argv = [sys.executable, "-P", "-c", textwrap.dedent(code)]
        tried = LocalAttempt(argv, settings, on_event=events.append, on_output=output.append)
        if stop_after is not None:
            asyncio.get_running_loop().call_later(stop_after, tried.stop)
        return await tried.run()

    return asyncio.run(attempt()), events, output


def test_every_key_becomes_a_flag_of_convert() -> None:
    settings = Settings(
        dtype="float16", max_shard_size=5, forward_check="off", architecture="run", allow_routing_drift=True, overwrite_foreign=True, threads=3,
        metadata_memory_limit=7_000_000, metadata_deadline=9.0,
        hf_assets="/assets", tokenizer="/tok", logs_roots=("/l1", "/l2"), assets_roots=("/s",), path_map={"/old": "/new"},
        run_config_names=("train.json",), restrict_assets=True, roots=("/r",), before_publish=("card", "a b"), hook_timeout=7.0,
        untie=True, ignore_tensors=("rng_state", "ema.*"),
    )  # fmt: skip
    argv = local_process.command(
        Request("/r/a/step-1", "/r/a/hf", accept_copy=True, samples="/s/statistics/a"), settings
    )

    assert argv[:5] == [sys.executable, "-P", "-m", "converter", "convert"]
    assert " ".join(argv[5:]) == (
        "--dcp-path /r/a/step-1 --output /r/a/hf --if-exists skip --ours-only --dtype float16 --max-shard-size 5 --forward-check off "
        "--architecture run --metadata-memory-limit 7000000 --metadata-deadline 9.0 --threads 3 "
        '--before-publish ["card", "a b"] --hook-timeout 7.0 '
        "--force --untie --allow-routing-drift --accept-copy --ignore-tensors rng_state --ignore-tensors ema.* "
        "--statistics /s/statistics/a --hf-assets /assets --tokenizer /tok "
        "--logs-root /l1 --logs-root /l2 --assets-root /s --path-map /old=/new --run-config-name train.json "
        "--restrict-assets /r --restrict-assets /s --restrict-assets /new --events"
    )


def test_defaults_ask_for_nothing_special() -> None:
    assert " ".join(local_process.command(Request("/r/a/step-1", "/r/a"), S)[5:]) == (
        "--dcp-path /r/a/step-1 --output /r/a --if-exists skip --ours-only --dtype auto --max-shard-size 50000000000 --forward-check full "
        "--architecture base --metadata-memory-limit 536870912 --metadata-deadline 30.0 --events"
    )


def test_success_is_an_event_and_exit_code_0() -> None:
    outcome, events, _ = run("""print('{"event": "conversion_succeeded", "bytes_written": 7}')""")

    assert (outcome.result, outcome.event["bytes_written"]) == ("succeeded", 7)
    assert [event["event"] for event in events] == ["conversion_succeeded"]


def test_success_with_another_exit_code_is_a_failure_to_be_tried_again() -> None:
    outcome, _, _ = run("""import sys; print('{"event": "conversion_succeeded"}'); sys.exit(7)""")

    assert (outcome.result, outcome.retry) == ("failed", Retry.BACKOFF)
    assert "exit code 7" in outcome.message


def test_exit_code_0_without_a_result_is_a_failure() -> None:
    outcome, _, _ = run("pass")

    assert (outcome.result, outcome.error) == ("failed", "MachineFailure")


def test_a_step_that_was_gone_before_the_converter_began_has_vanished(tmp_path: Path) -> None:
    argv = local_process.command(Request(str(tmp_path / "step-7"), str(tmp_path)), S)
    outcome = asyncio.run(local_process.LocalAttempt(argv, S, on_event=lambda event: None, on_output=print).run())

    assert (outcome.result, outcome.error, outcome.retry) == ("failed", "StepVanished", Retry.VANISHED)


def test_a_refusal_comes_with_its_reason_and_what_a_retry_may_expect() -> None:
    said = {
        "event": "conversion_failed",
        "error": "NonFiniteTensor",
        "message": "NaN",
        "path": "/r",
        "hint": "look",
        "retry": "never",
    }
    outcome, _, _ = run(f"import sys; print({json.dumps(said)!r}); sys.exit(1)")

    assert (outcome.result, outcome.error, outcome.hint, outcome.retry) == (
        "failed",
        "NonFiniteTensor",
        "look",
        Retry.NEVER,
    )


def test_a_word_for_retry_that_is_not_known_means_later() -> None:
    outcome, _, _ = run(
        """import sys; print('{"event": "conversion_failed", "error": "New", "retry": "someday"}'); sys.exit(1)"""
    )

    assert outcome.retry == Retry.BACKOFF


def test_whatever_else_is_printed_is_handed_on_and_breaks_nothing() -> None:
    code = """
        import sys
        sys.stdout.buffer.write(b"\\xff\\xfe garbage\\n[1, 2]\\n{broken\\n" + b"x" * 200_000 + b"\\n")
        print("a warning of some library", file=sys.stderr)
        print('{"event": "conversion_succeeded"}')
    """
    outcome, events, output = run(code)

    assert outcome.result == "succeeded"
    assert len(events) == 1
    assert "a warning of some library" in output
    assert "[1, 2]" in output
    assert max(map(len, output)) <= child.MAX_LINE * 2


def test_a_flood_of_output_is_cut_short() -> None:
    _, _, output = run("for i in range(5000): print('line', i)")

    assert len(output) == local_process.MOST_OUTPUT + 1
    assert "not logged" in output[-1]


def test_a_conversion_without_progress_is_killed_whatever_it_ignores() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    began = time.monotonic()
    outcome, _, _ = run(code, with_(S, deadline=0.3))

    assert "no progress" in outcome.message
    assert outcome.killed
    assert outcome.retry == Retry.BACKOFF
    assert time.monotonic() - began < local_process.STOP_GRACE + 3


def test_waiting_for_somebody_elses_lock_is_no_progress_however_often_it_is_said() -> None:
    code = """
        import time
        for _ in range(30):
            print('{"event": "waiting_for_lock", "path": "/r/.dcp2hf-1.lock"}', flush=True)
            time.sleep(0.1)
    """
    outcome, _, _ = run(code, with_(S, deadline=0.5))

    assert "no progress" in outcome.message
    assert outcome.killed


def test_a_conversion_that_makes_progress_is_not_killed_however_slow() -> None:
    code = """
        import time
        for i in range(8):
            print('{"event": "conversion_progress", "bytes_done": %d}' % i, flush=True)
            time.sleep(0.2)
        print('{"event": "conversion_succeeded"}')
    """
    outcome, _, _ = run(code, with_(S, deadline=1.0))

    assert outcome.result == "succeeded"


def test_a_stop_lets_it_clean_up_and_is_no_failure() -> None:
    code = """
        import signal, sys, time
        def stop(*_):
            print("cleaned up", flush=True)
            sys.exit(130)
        signal.signal(signal.SIGTERM, stop)
        time.sleep(60)
    """
    outcome, _, output = run(code, stop_after=0.5)

    assert (outcome.result, outcome.killed) == ("interrupted", False)
    assert output == ["cleaned up"]


def test_death_by_a_signal_is_named_with_what_may_be_behind_it() -> None:
    outcome, _, _ = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    assert "SIGKILL" in outcome.message
    assert "out-of-memory" in outcome.hint


def test_what_it_started_dies_with_it_and_cannot_hold_it_up(tmp_path: Path) -> None:
    code = f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
        print('{{"event": "conversion_succeeded"}}', flush=True)
    """
    began = time.monotonic()
    outcome, _, _ = run(code)

    assert outcome.result == "succeeded"
    assert time.monotonic() - began < 5
    assert ends_within(int((tmp_path / "pid").read_text()), 5.0)


def ends_within(pid: int, seconds: float) -> bool:
    """Whether a process is gone, or a zombie, within so many seconds."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_it_runs_in_a_clean_place_without_gpus_and_with_low_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/tmp/somewhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    code = """
        import ctypes, json, os, resource, sys
        said = {"cwd": os.getcwd(), "env": dict(os.environ), "nice": os.nice(0), "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
                "session": os.getsid(0) == os.getpid(), "path": sys.path[0],
                "io": ctypes.CDLL(None).syscall({"x86_64": 252, "aarch64": 31}[os.uname().machine], 1, 0) >> 13}
        print(json.dumps({"event": "conversion_succeeded", "said": said}))
    """
    outcome, _, _ = run(code, with_(S, nice=12, memory_limit=1 << 30))
    said = outcome.event["said"]

    assert (said["cwd"], said["nice"], said["session"], said["io"]) == ("/", 12, True, 3)
    assert said["data"] == 1 << 30
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 1 << 30
    assert said["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert said["env"]["HF_HUB_OFFLINE"] == "1"
    assert said["env"]["PYTHONPATH"] == str(Path(__file__).parents[4])
    assert not {"AWS_SECRET_ACCESS_KEY", "NOTIFY_SOCKET"} & said["env"].keys()


def test_a_converter_that_cannot_be_started_is_a_failure_to_be_tried_again() -> None:
    async def attempt() -> Outcome:
        return await LocalAttempt(["/nonexistent/python"], S, on_event=lambda e: None, on_output=lambda o: None).run()

    outcome = asyncio.run(attempt())
    assert (outcome.error, outcome.retry) == ("MachineFailure", Retry.BACKOFF)


def test_a_killed_daemon_takes_its_conversions_along(tmp_path: Path) -> None:
    daemon = f"""
import asyncio, sys
from daemon.config.settings import Settings
from daemon.runners.local_process import LocalAttempt
code = "import os, time; open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid())); time.sleep(60)"
asyncio.run(LocalAttempt([sys.executable, "-c", code], Settings(), on_event=print, on_output=print).run())
"""
    running = subprocess.Popen([sys.executable, "-c", daemon], cwd=Path(__file__).parents[4])
    pid = _wait_for_pid(tmp_path / "pid")
    os.kill(running.pid, signal.SIGKILL)
    running.wait()

    assert ends_within(pid, 5.0)


def _wait_for_pid(file: Path) -> int:
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        if file.exists() and (text := file.read_text()):
            return int(text)
        time.sleep(0.05)
    raise AssertionError("it never started")


def test_the_most_that_an_attempt_had_resident_is_known_with_what_it_started() -> None:
    code = """
    import subprocess, sys, time
    hold = "held = b'x' * (80 << 20); import time; time.sleep({})"
    inner = subprocess.Popen([sys.executable, "-c", hold.format(1.5)])
    exec(hold.format(1.5))
    inner.wait()
    del held
    time.sleep(0.6)
    """
    outcome, _, _ = run(code)

    assert 160 << 20 < outcome.peak_memory < 300 << 20


def test_a_root_that_accepts_copies_asks_the_converter_to(tmp_path: Path) -> None:
    request = local_process.Request("/r/a/step-10", "/r/a")

    assert "--accept-copy" not in local_process.command(request, S)
    assert "--accept-copy" in local_process.command(request, with_(S, accept_copies=True))


def test_what_is_published_of_other_files_is_overwritten() -> None:
    for overwrite, how in ((False, "skip"), (True, "overwrite")):
        command = local_process.command(local_process.Request("/r/a/step-10", "/r/a", overwrite=overwrite), S)
        assert command[command.index("--if-exists") + 1] == how
        assert "--ours-only" in command, "whatever is asked again, an export without our manifest stays"
