"""What `dcp2hfd status` draws on a terminal of any size, what of a long run it leaves out, and how `--watch` ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outcome, State
from daemon.status import report
from tests.support.labs.terminal import Said, on_terminal
from tests.unit.daemon.conftest import row
from tests.unit.daemon.running import REPOSITORY, clean

COMMAND = [sys.executable, "-m", "daemon", "status"]
Status = Callable[..., Said]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "state")


@pytest.fixture
def drawn(tmp_path: Path) -> Status:
    """`dcp2hfd status ARGUMENTS` on a terminal."""

    def run(*arguments: str, environ: dict[str, str] | None = None, **how: object) -> Said:
        env = clean({"DCP2HF_STATE_DIR": str(tmp_path / "state"), "TERM": "xterm-256color"} | (environ or {}))
        return on_terminal([*COMMAND, *arguments], environ=env, folder=REPOSITORY, **how)  # type: ignore[arg-type]

    return run


def finish(ledger: Ledger, *steps: int, run: str = "/r/a", ago: float = 0.0) -> None:
    """Steps of a run that were converted, so many seconds ago."""
    now = time.time() - ago
    for step in steps:
        path = f"{run}/step-{step}"
        done = row(step, path=path, run=run, run_name=run[3:], state=State.DONE, output=f"{path}-hf")
        ledger.put(done)
        ledger.end_attempt(ledger.begin_attempt(done, now), Outcome(result="succeeded", seconds=3.5), now)


def step_lines(said: Said) -> list[str]:
    """The first word of each line that begins with a number of a step."""
    return [line.split()[0] for line in said.text.splitlines() if line[:5].strip().isdigit()]


def test_a_terminal_is_shown_the_newest_steps_of_a_long_run_and_those_that_need_somebody(
    ledger: Ledger, drawn: Status
) -> None:
    finish(ledger, *range(1, 41))
    ledger.put(row(7, state=State.QUARANTINED, error="NonFiniteTensor", reason="NaN in x", hint="look at the run"))
    said = drawn()

    assert said.code == 0
    assert step_lines(said) == ["7", *map(str, range(31, 41))]
    assert "39 done, 1 quarantined" in said.text
    assert "29 more steps: dcp2hfd status --all" in said.text
    assert "7: NaN in x → look at the run" in said.text
    assert step_lines(drawn("--all")) == [str(step) for step in range(1, 41)]


def test_many_steps_that_are_not_done_are_not_all_shown_either(ledger: Ledger, drawn: Status) -> None:
    for step in range(1, 41):
        ledger.put(row(step, state=State.UNSUPPORTED, error="UnsupportedModel", reason="LoRA"))
    said = drawn()

    assert step_lines(said) == [str(step) for step in range(21, 41)]
    assert said.text.count("LoRA") == 1


def test_a_pipe_gets_every_step_whatever_a_terminal_is_shown(ledger: Ledger, tmp_path: Path) -> None:
    finish(ledger, *range(1, 41))
    env = clean({"DCP2HF_STATE_DIR": str(tmp_path / "state"), "FORCE_COLOR": "1"})
    piped = subprocess.run(COMMAND, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    assert [line.split()[0] for line in piped.splitlines()[4:]] == [str(step) for step in range(1, 41)]
    assert "\x1b" not in piped


@pytest.mark.parametrize("columns", [200, 80, 59, 30, 10])
def test_no_line_is_wider_than_the_terminal(ledger: Ledger, drawn: Status, columns: int) -> None:
    finish(ledger, 10, run="/r/" + "long/" * 30)
    ledger.put(
        row(20, state=State.FAILED, error="MachineFailure", reason="word " * 50, hint="x" * 300, next_attempt=4e9)
    )
    said = drawn(columns=columns)

    assert max(map(len, said.text.splitlines())) <= columns
    assert "failed" in said.text


def test_colours_go_to_terminals_and_not_where_no_color_is_set(ledger: Ledger, drawn: Status) -> None:
    finish(ledger, 10)

    assert drawn().has_colour()
    assert not drawn(environ={"NO_COLOR": "1"}).has_colour()
    assert "\x1b" not in drawn(environ={"TERM": "dumb"}).raw


@pytest.mark.parametrize("arguments", [(), ("--all",)])
def test_a_terminal_of_another_encoding_is_shown_escapes(ledger: Ledger, drawn: Status, arguments: tuple[str]) -> None:
    finish(ledger, 10, run="/r/日本")
    said = drawn(*arguments, environ={"PYTHONIOENCODING": "latin-1"})

    assert said.code == 0
    assert r"\u65e5\u672c" in said.text


def test_names_that_a_terminal_would_obey_are_shown_and_not_obeyed(ledger: Ledger, drawn: Status) -> None:
    name = "a\x1b]0;owned\x07\x1b[2J\n[bold]:smile:"
    finish(ledger, 10, run=f"/r/{name}")
    ledger.put(row(20, state=State.FOREIGN, error="OutputForeign", reason=f"it holds {name}", hint=f"mv {name}"))
    for arguments, how in (((), {}), (("--watch",), {"interrupt_after": "OutputForeign"})):
        said = drawn(*arguments, columns=200, **how)
        assert "owned\x07" not in said.raw
        assert "\x1b[2J\\n" not in said.raw
        assert r"a\x1b]0;owned\x07\x1b[2J\n[bold]:smile:" in said.text


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_watch_shows_what_changes_and_gives_the_screen_back_when_it_is_ended(
    ledger: Ledger, drawn: Status, by: signal.Signals
) -> None:
    finish(ledger, 10)
    said = drawn("--watch", interrupt_after="step-10-hf", by=by)

    assert said.code == 0
    assert "Traceback" not in said.text
    assert said.raw.index("\x1b[?1049h") < said.raw.index("step-10-hf") < said.raw.index("\x1b[?1049l")
    assert said.raw.rindex("\x1b[?25h") > said.raw.index("step-10-hf")


def test_watch_begins_before_there_is_a_ledger(drawn: Status) -> None:
    assert drawn("--watch", interrupt_after="no ledger there").code == 0


def test_watch_fits_the_screen_and_says_how_many_runs_do_not(ledger: Ledger, drawn: Status) -> None:
    for name in range(30):
        finish(ledger, *range(1, 6), run=f"/r/run{name}", ago=60.0 * (30 - name))
    said = drawn("--watch", lines=24, interrupt_after="more runs")

    _, picture, *_ = said.text.split("○ ")
    assert len(picture.rstrip().splitlines()) <= 24
    assert "23 more runs: dcp2hfd status" in picture
    assert "run29" in picture


@pytest.mark.parametrize("environ", [{}, {"FORCE_COLOR": "1"}])
def test_watch_without_a_terminal_is_a_usage_error(tmp_path: Path, environ: dict[str, str]) -> None:
    env = clean({"DCP2HF_STATE_DIR": str(tmp_path)} | environ)
    said = subprocess.run([*COMMAND, "--watch"], env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert (said.returncode, said.stdout) == (2, "")
    assert "--json" in said.stderr


def test_who_looks_again_sees_new_steps_and_that_a_daemon_is_gone(ledger: Ledger, tmp_path: Path) -> None:
    finish(ledger, 10)
    sleeper = subprocess.Popen([sys.executable, "-c", f"""
import sys
from pathlib import Path
from daemon.ledger.ledger import Ledger
Ledger.open(Path({str(tmp_path / "state")!r})).register("watch")
print("there", flush=True)
sys.stdin.read()
"""], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    look = report.looking_again(tmp_path / "state")
    try:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        assert [daemon["pid"] for daemon in look()["daemons"]] == [sleeper.pid]
        assert look() is look()
    finally:
        sleeper.kill()
        sleeper.communicate()
    assert look()["daemons"] == []
    finish(ledger, 20)
    assert [step["step"] for step in look()["runs"][0]["steps"]] == [10, 20]
    assert json.loads(report.as_json(look())) == report.look(tmp_path / "state")


def test_looking_writes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    finish(ledger, 10)
    ledger.close()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "state").iterdir()}
    look = report.looking_again(tmp_path / "state")
    look()
    look()

    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "state").iterdir()} == before
    assert os.listdir(tmp_path / "state") == ["ledger.sqlite"]
