"""What `dcp2hf inspect` and a conversion show on a terminal, and what they print where there is none."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from converter import inspect
from converter.cli import progress, tables
from daemon.runners.converter_output import event_of
from tests.support.checkpoints.cases import BY_NAME
from tests.support.labs.terminal import Said, on_terminal
from tests.unit.converter.running import Convert

REPOSITORY = Path(__file__).parents[4]
TWO = BY_NAME["two_steps"]
COMMAND = [sys.executable, "-m", "converter"]


@pytest.fixture
def run(copy_run: Callable[..., Path]) -> Path:
    """Step 2, which is complete, and step 4, which is not."""
    run = TWO.checkpoint(copy_run(TWO))
    (run / "step-4" / "__1_0.distcp").unlink()
    return run


def dcp2hf(*arguments: object, columns: int = 100, **environ: str) -> Said:
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env |= {"TERM": "xterm-256color", **environ}
    return on_terminal([*COMMAND, *map(str, arguments)], environ=env, folder=REPOSITORY, columns=columns)


def test_a_pipe_gets_whole_lines_without_colours(run: Path) -> None:
    env = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "20"}
    said = subprocess.run(
        [*COMMAND, "inspect", run], env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    head, first, _, reason, counted = said.stdout.splitlines()
    assert head.startswith("step    state ")
    assert first.split()[:3] == ["step-2", "complete", "dcp"]
    assert reason == "step-4: __1_0.distcp is missing"
    assert counted.startswith("step-2: stored parameters are counted")
    assert "\x1b" not in said.stdout


@pytest.mark.parametrize("columns", [100, 80, 40])
def test_a_terminal_gets_the_same_facts_in_its_width(run: Path, columns: int) -> None:
    said = dcp2hf("inspect", run, columns=columns)

    assert said.code == 1
    assert "step-4: __1_0.distcp is missing" in said.text
    assert "1 complete, 1 incomplete" in said.text
    assert max(map(len, said.text.splitlines())) <= columns
    tensors = dcp2hf("inspect", run / "step-2", columns=columns)
    assert "tok_embeddings.weight" in tensors.text
    assert max(map(len, tensors.text.splitlines())) <= columns


def test_a_step_that_is_purged_meanwhile_is_said_and_hides_no_other(tmp_path: Path) -> None:
    described = inspect.describe(tmp_path / "step-2")

    assert (described["state"], described["path"]) == ("unreadable", str(tmp_path / "step-2"))
    assert "ENOENT" in described["reason"]


def test_colours_go_to_terminals_and_not_where_no_color_is_set(run: Path) -> None:
    assert dcp2hf("inspect", run).has_colour()
    assert not dcp2hf("inspect", run, NO_COLOR="1").has_colour()


def test_names_that_a_terminal_would_obey_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2J\n[bold]"
    facts = {"dtype": name, "shape": [2, 3], "chunks": 1}
    described = {"path": f"/r/{name}", "state": "complete", "reason": name, "dtypes": [name], "save_id": name}
    tables.show([described | {"tensors": {name: facts}}])

    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert said.count(r"a\x1b[2J\n[bold]") == 7


def test_what_other_people_wrote_is_not_obeyed_in_what_a_conversion_says(tmp_path: Path) -> None:
    code = """
from converter.cli.progress import reporter
bad = "x\\x1b[2Jy [bold]z[/bold]"
with reporter(events=False) as report:
    report("conversion_started", {"step": 2, "output": bad})
    report("warning", {"step": 2, "message": bad})
    report("conversion_skipped", {"step": 2, "reason": bad})
    report("conversion_failed", {"step": 2, "error": "E", "message": bad, "path": bad, "hint": bad})
"""
    said = on_terminal(
        [sys.executable, "-c", code], environ=os.environ | {"TERM": "xterm"}, folder=REPOSITORY, columns=80
    )

    assert said.code == 0
    assert "\x1b[2Jy" not in said.raw
    assert said.text.count("[bold]z[/bold]") == 6


def test_an_event_is_json_for_every_reader_whatever_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"max_abs_difference": math.nan, "kl_divergence": -math.inf, "positions": 16, "of": (math.inf, 1.5)}
    with progress.reporter(events=True) as say:
        say("conversion_failed", {"error": "ForwardMismatch", "path": "/r/\x1b", "figures": figures})
    line = capsys.readouterr().out.encode()
    said = event_of(line)

    assert said is not None
    assert said["figures"] == {"max_abs_difference": None, "kl_divergence": None, "positions": 16, "of": [None, 1.5]}


def test_a_bar_has_bytes_rate_and_time_left_and_a_forward_pass_layers() -> None:
    assert progress._moved("export", 610_000_000, 1_190_000_000, 412e6, 62.0) == "0.61/1.19 GB    412 MB/s   1:02"
    assert progress._moved("read_back", 0, 5_000, None, None) == "0.00/5.00 kB               -:--"
    assert progress._moved("forward", 14, 56, 3.0, 20.0) == "14/56 layers"


@pytest.mark.parametrize("phase", ["export", "read_back"])
def test_every_bar_of_bytes_ends_full_though_a_tied_head_is_not_moved(phase: str, run: Path, convert: Convert) -> None:
    told = [fields for event, fields in convert(run / "step-2").events if fields.get("phase") == phase]

    assert told[-1]["bytes_done"] == told[-1]["bytes_total"] > 0


def test_a_conversion_on_a_narrow_terminal_ends_with_what_was_checked(run: Path) -> None:
    shutil.rmtree(run / "step-4")
    said = dcp2hf("convert", "--dcp-path", run, columns=40)

    assert said.code == 0
    assert "step 2: done" in said.text
    assert "checks passed" in said.text
