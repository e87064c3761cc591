"""Lines that machines, the journal and people can read, whatever is in a file's name."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

from daemon.host import logs


def test_without_a_terminal_every_line_is_json_with_event_level_and_time() -> None:
    stream = io.StringIO()
    logs.logger(stream, environ={}).bind(root="/r", run="a", step=1, path="/r/a/step-1").warning(
        "step_vanished", reason="x\ny\x1b[31m"
    )

    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said["timestamp"].endswith("Z")
    assert {**said, "timestamp": ""} == {
        "event": "step_vanished", "level": "warning", "timestamp": "", "root": "/r", "run": "a", "step": 1, "path": "/r/a/step-1",
        "reason": "x\ny\x1b[31m",
    }  # fmt: skip
    assert "\x1b" not in line


def test_under_the_journal_a_line_begins_with_its_priority(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+") as stream:
        found = os.fstat(stream.fileno())
        log = logs.logger(stream, environ={"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        log.info("a")
        log.error("b")
        log.warning("c")
    lines = (tmp_path / "out").read_text().splitlines()

    assert [line[:3] for line in lines] == ["<6>", "<3>", "<4>"]
    assert json.loads(lines[0][3:])["event"] == "a"


def test_a_redirected_stream_under_the_journal_has_no_priorities(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+") as stream:
        logs.logger(stream, environ={"JOURNAL_STREAM": "1:2"}).info("a")

    assert (tmp_path / "out").read_text().startswith("{")


def test_on_a_terminal_lines_are_readable_and_names_cannot_drive_it() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        logs.logger(stream, environ={"NO_COLOR": "1"}).info("step_discovered", path="/r/\x1b[2Jstep-1")
        said = os.read(ours, 10_000).decode()
    os.close(ours)

    assert "step_discovered" in said
    assert "\x1b" not in said
    assert not said.startswith("{")


def test_on_a_terminal_checks_are_counted_and_those_that_did_not_pass_are_named() -> None:
    ours, theirs = pty.openpty()
    checks = [{"name": "finite", "verdict": "passed"}, {"name": "forward", "verdict": "not run"}]
    with os.fdopen(theirs, "w") as stream:
        logs.logger(stream, environ={"NO_COLOR": "1"}).info(
            "conversion_succeeded", path="/r/step-1", step=1, checks=checks
        )
        said = os.read(ours, 10_000).decode()
    os.close(ours)

    assert "checks='1 passed, not run or accepted: forward'" in said
    assert "/r/step-1" not in said


def test_logging_imports_no_rich_and_leaves_it_importable_for_status() -> None:
    code = "import sys; from daemon.host import logs; assert 'rich' not in sys.modules; import rich; assert rich.__name__ == 'rich'"

    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[4], check=True)
