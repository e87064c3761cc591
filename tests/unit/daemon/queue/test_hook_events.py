"""`on_success` and `on_failure`: told at least once whatever dies, always under the same key, and never in anybody's way."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.config.settings import Settings
from daemon.ledger.database import NAME
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outcome, State
from daemon.queue.hook_delivery import MOST, MOST_OF_A_ROOT, MOST_TRIES
from daemon.queue.hook_events import HookEvents
from tests.unit.daemon.conftest import add_step, row
from tests.unit.daemon.running import Daemon, daemons, wait_until

SERVE = Path(__file__).parents[1].joinpath("serve.py")
MakeRun = Callable[..., Path]
Start = Callable[..., Daemon]
FAST = {"DCP2HF_POLL_INTERVAL": "0.3", "DCP2HF_BACKOFF_INITIAL": "0.1", "DCP2HF_BACKOFF_MAX": "0.2"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with daemons() as begin:
        yield lambda *arguments, **environ: begin(SERVE, tmp_path / "state", *arguments, **FAST | environ)


class Hook:
    """A hook that writes down what it was told, in this order: its facts are whole once a file is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __call__(self, script: str = "") -> str:
        """The command, as a variable has it; `script` runs after it has noted the facts."""
        note = 'cat > "$0/$$.part"; env > "$0/$$.env"; mv "$0/$$.part" "$0/$$.told"; '
        return json.dumps(["sh", "-c", note + script, str(self.folder)])

    def told(self) -> list[dict[str, Any]]:
        """What each call was told on stdin, in order, and its pid."""
        files = sorted(self.folder.glob("*.told"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(file.read_text()) | {"pid": int(file.stem)} for file in files]

    def environment(self, pid: int) -> dict[str, str]:
        lines = (self.folder / f"{pid}.env").read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def wait_for(self, count: int = 1) -> dict[str, Any]:
        wait_until(lambda: len(self.told()) >= count, 30)
        return self.told()[count - 1]


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path / "hook")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def waiting(tmp_path: Path) -> int:
    """Calls in the outbox that were neither made nor given up."""
    with sqlite3.connect(tmp_path / "state" / NAME) as db:
        return int(db.execute("SELECT count(*) FROM outbox WHERE ended IS NULL").fetchone()[0])


def test_a_published_step_is_told_once_with_its_facts(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    run = make_run("a", 10)
    daemon = start(str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook(), MY_OWN="kept")
    daemon.wait_for("hook_delivered", hook="on_success", step=10, reason="converted", tries=1)
    [said] = hook.told()
    environ = hook.environment(said["pid"])

    assert (said["event"], said["step"], said["run"], said["path"]) == ("on_success", 10, "a", str(run / "step-10"))
    assert said["output"] == str(run / "step-10-hf")
    assert said["save_id"]
    for name in (
        "event",
        "key",
        "step",
        "run",
        "root",
        "path",
        "output",
        "save_id",
        "attempt",
        "try",
        "timestamp",
        "reason",
    ):
        assert environ[f"HOOK_{name.upper()}"] == str(said[name]), name
    assert environ["MY_OWN"] == "kept"
    assert not [name for name in environ if name.startswith("DCP2HF_")]
    assert daemon.stop() == 0
    assert start("--once", str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook()).end() == 0
    assert len(hook.told()) == 1


def test_each_failure_is_told_with_its_error_and_whether_it_was_the_last(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    (make_run("a", 10) / "behaviour").write_text("fail MachineFailure backoff")
    start(str(tmp_path / "root"), DCP2HF_ON_FAILURE=hook(), DCP2HF_MAX_ATTEMPTS="2")
    hook.wait_for(2)
    first, last = sorted(hook.told(), key=lambda said: said["attempt"])

    assert (first["attempt"], first["quarantined"], first["reason"]) == (1, False, "failed")
    assert first["retry_at"]
    assert (last["attempt"], last["quarantined"], last["reason"], last["retry_at"]) == (2, True, "quarantined", None)
    assert (last["error"], last["message"]) == ("MachineFailure", "as told")
    assert last["hint"] == f"none; then dcp2hfd retry {tmp_path / 'root' / 'a'}"
    assert first["key"] != last["key"]
    environ = hook.environment(last["pid"])
    assert (environ["HOOK_QUARANTINED"], environ["HOOK_ERROR"], environ["HOOK_RETRY_AT"]) == (
        "true",
        "MachineFailure",
        "",
    )


def test_a_step_that_no_attempt_can_convert_is_told_too(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    (make_run("a", 10) / "step-10" / ".metadata").write_bytes(b"nonsense")
    assert start("--once", str(tmp_path / "root"), DCP2HF_ON_FAILURE=hook()).end() == 1
    [said] = hook.told()

    assert (said["attempt"], said["quarantined"], said["error"]) == (0, True, "StepDamaged")


def test_a_hook_that_fails_is_tried_again_under_the_same_key(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    make_run("a", 10)
    script = 'echo "no route" >&2; test "$HOOK_TRY" -ge 3'
    daemon = start(str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook(script))
    daemon.wait_for("hook_delivered", tries=3)

    assert [said["try"] for said in hook.told()] == [1, 2, 3]
    assert len({said["key"] for said in hook.told()}) == 1
    failed = daemon.events("hook_failed")
    assert [said["tries"] for said in failed] == [1, 2]
    assert failed[0]["message"] == "the command ended with exit code 1"
    assert failed[0]["hint"] == "the command printed at its end: no route"
    assert waiting(tmp_path) == 0


def test_a_hook_that_never_succeeds_is_given_up(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    make_run("a", 10)
    daemon = start(str(tmp_path / "root"), DCP2HF_ON_SUCCESS='["false"]', DCP2HF_BACKOFF_INITIAL="0")
    said = daemon.wait_for("hook_given_up", seconds=60)

    assert said["tries"] == MOST_TRIES
    assert len(daemon.events("hook_failed")) == MOST_TRIES - 1
    assert waiting(tmp_path) == 0


def test_a_command_that_is_not_there_is_a_failure_in_words(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    make_run("a", 10)
    daemon = start(str(tmp_path / "root"), DCP2HF_ON_SUCCESS='["/nowhere/notify"]')

    assert "cannot be started" in daemon.wait_for("hook_failed")["message"]
    assert daemon.events("conversion_succeeded")


def test_a_hook_killed_in_the_middle_is_made_again(make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook) -> None:
    make_run("a", 10)
    daemon = start(str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook('test "$HOOK_TRY" -ge 2 || exec sleep 600'))
    os.kill(hook.wait_for()["pid"], signal.SIGKILL)
    daemon.wait_for("hook_delivered", tries=2)

    assert daemon.events("hook_failed")[0]["message"] == "the command was ended by SIGKILL"
    assert len({said["key"] for said in hook.told()}) == 1


def test_a_daemon_killed_in_the_middle_of_a_hook_is_followed_by_one_that_makes_the_call(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    make_run("a", 10)
    daemon = start(str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook("exec sleep 600"))
    before = hook.wait_for()
    daemon.process.kill()
    daemon.end()
    wait_until(lambda: not is_running(before["pid"]))  # it dies with the daemon: two calls never run at once
    second = start(str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook())
    second.wait_for("hook_delivered", tries=2)

    assert hook.told()[1]["key"] == before["key"]
    assert not second.events("conversion_started")


@pytest.mark.parametrize("result", [None, "interrupted", "failed"])
def test_a_step_published_by_an_attempt_that_did_not_live_to_say_so_is_told(
    result: str | None, make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    run = make_run("a", 10)
    assert start("--once", str(tmp_path / "root")).end() == 0
    with sqlite3.connect(tmp_path / "state" / NAME) as db:  # as it is when the daemon dies after the rename
        db.execute("UPDATE steps SET state = 'running'")
        db.execute(
            "UPDATE attempts SET result = ?, ended = CASE WHEN ? IS NULL THEN NULL ELSE ended END", (result, result)
        )
    start(str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook()).wait_for("hook_delivered", reason="found")

    assert hook.told()[0]["output"] == str(run / "step-10-hf")


@pytest.mark.parametrize(
    ("result", "owner", "is_told"),
    [
        (None, "999999999 1", True),
        ("interrupted", "", True),
        ("failed", "", True),
        (None, "", False),
        ("succeeded", "", False),
        ("skipped", "", False),
    ],
    ids=["died", "interrupted", "failed", "running", "succeeded", "skipped"],
)
def test_whoever_finds_a_step_published_tells_only_what_its_attempt_does_not(
    result: str | None, owner: str, is_told: bool, tmp_path: Path
) -> None:
    ledger = Ledger.open(tmp_path)
    ledger.owner = owner or ledger.owner
    ledger.put(row(10, state=State.RUNNING))
    attempt = ledger.begin_attempt(row(10), 1.0)
    if result:
        ledger.end_attempt(attempt, Outcome(result=result), 2.0)
    hooks = HookEvents(ledger, settings_of=lambda root: Settings(on_success=("true",)), clock=lambda: 3.0)
    for _ in range(2):
        hooks.found_published(row(10, output="/r/a/step-10-hf"))

    assert len(ledger.due(["/r"], 3.0)) == is_told


def test_what_was_published_before_hooks_were_set_is_not_told(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    run = make_run("a", 10)
    assert start("--once", str(tmp_path / "root")).end() == 0
    (tmp_path / "state" / NAME).unlink()
    assert start("--once", str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook()).end() == 0

    assert (run / "step-10-hf").exists()
    assert hook.told() == []


def test_a_hook_that_hangs_delays_no_conversion_and_no_stop(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook, saved: Path
) -> None:
    run = make_run("a", *range(10, 10 + MOST))
    hangs = hook("trap '' TERM; while :; do sleep 1; done")
    daemon = start(str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hangs)
    daemon.wait_for("conversion_succeeded", MOST)
    hook.wait_for(MOST_OF_A_ROOT)
    add_step(saved, run, 50)
    daemon.wait_for("conversion_succeeded", step=50)

    assert len(hook.told()) == MOST_OF_A_ROOT
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 10
    assert not any(is_running(said["pid"]) for said in hook.told())
    assert waiting(tmp_path) == MOST + 1
    second = start("--once", str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook())
    assert second.end(60) == 0
    assert {said["tries"] for said in second.events("hook_delivered")} == {1}  # a stop costs no try
    assert waiting(tmp_path) == 0


def test_a_hook_that_hangs_is_ended_with_all_it_started(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    make_run("a", 10)
    script = 'sleep 600 & echo $! > "$0/child"; wait'
    daemon = start(str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook(script), DCP2HF_HOOK_TIMEOUT="1s")
    said = daemon.wait_for("hook_failed")

    assert said["message"] == "the command did not end within 1 s"
    wait_until(lambda: not is_running(int((hook.folder / "child").read_text())))


def test_once_tells_before_it_ends_and_a_failing_hook_is_no_failure_of_a_step(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    make_run("a", 10, 20)
    daemon = start("--once", str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook('test "$HOOK_STEP" = 10'))

    assert daemon.end() == 0
    assert sorted(said["step"] for said in hook.told()) == [10, 20]
    assert daemon.events("hook_failed", step=20, tries=1)
    assert waiting(tmp_path) == 1


def test_a_call_for_a_hook_that_is_no_longer_set_is_dropped(make_run: MakeRun, tmp_path: Path, start: Start) -> None:
    make_run("a", 10)
    assert start("--once", str(tmp_path / "root"), DCP2HF_ON_SUCCESS='["false"]').end() == 0
    assert waiting(tmp_path) == 1
    time.sleep(0.2)  # until its next try is due
    assert start("--once", str(tmp_path / "root")).end() == 0
    assert waiting(tmp_path) == 0


def test_two_daemons_with_one_ledger_make_each_call_once(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    make_run("a", 10, 20, 30)
    both = [start("--once", str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook("sleep 0.5")) for _ in range(2)]

    assert [daemon.end(60) for daemon in both] == [0, 0]
    assert sorted(said["step"] for said in hook.told()) == [10, 20, 30]


def test_what_a_hook_is_given_and_prints_is_not_logged_where_it_is_secret(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    make_run("a", 10)
    argv = json.dumps(["sh", "-c", 'echo "$1 $SLACK_TOKEN"; exit 1', "sh", "https://chat.example/hooks/abcdef"])
    daemon = start("--once", str(tmp_path / "root"), DCP2HF_ON_SUCCESS=argv, SLACK_TOKEN="xoxb-verysecret")
    daemon.end()
    said = json.dumps(daemon.log)

    assert daemon.events("hook_failed")[0]["hint"].endswith("[argument 4] [$SLACK_TOKEN]")
    assert "verysecret" not in said
    assert "abcdef" not in said


def test_non_finite_weights_are_an_alarm_of_their_own_once_for_each_save(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    (make_run("a", 10) / "behaviour").write_text("nan")
    daemon = start("--once", str(tmp_path / "root"), DCP2HF_ON_FAILURE=hook())
    assert daemon.end() == 1
    [alarm] = daemon.events("non_finite_weights")
    [said] = hook.told()

    assert (alarm["level"], alarm["step"], alarm["count"], alarm["nan"], alarm["inf"]) == ("error", 10, 2, 3, 1)
    assert alarm["tensors"]["layers.0.w"] == {"nan": 3, "inf": 0}
    assert hook.environment(said["pid"])["HOOK_REASON"] == said["reason"] == "non_finite"
    assert said["quarantined"] is True
    assert said["figures"]["tensors"] == alarm["tensors"]
    again = start("--once", str(tmp_path / "root"))
    assert again.end() == 1
    assert again.events("conversion_failed", error="NonFiniteTensor")
    assert not again.events("non_finite_weights")
    with sqlite3.connect(tmp_path / "state" / NAME) as db:
        assert db.execute("SELECT step, tensors, nan, inf FROM non_finite").fetchall() == [(10, 2, 3, 1)]


def test_a_path_that_looks_like_a_command_is_only_a_value(
    make_run: MakeRun, tmp_path: Path, start: Start, hook: Hook
) -> None:
    make_run("$(touch pwned); a b", 10)
    assert start("--once", str(tmp_path / "root"), DCP2HF_ON_SUCCESS=hook()).end() == 0
    [said] = hook.told()

    assert said["run"] == "$(touch pwned); a b"
    assert hook.environment(said["pid"])["HOOK_RUN"] == said["run"]
    assert not list(tmp_path.rglob("pwned"))
