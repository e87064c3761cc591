"""The status page in a real browser: what runs is seen to run, plots are drawn and read, strangers' names are text."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import State
from tests.integration.page.browser import Browser
from tests.unit.daemon.conftest import row
from tests.unit.daemon.running import REPOSITORY, Daemon, clean

pytestmark = pytest.mark.slow
SERVE = REPOSITORY / "tests" / "unit" / "daemon" / "serve.py"
DOCS = REPOSITORY / "docs"
SAVES = 8
HOSTILE = "<img src=x onerror=\"document.title='owned'\">'&"
RIGHT, LEFT, UP, ENTER = "\ue014", "\ue012", "\ue013", "\ue007"
DRAWN = "document.querySelectorAll('figure:last-of-type circle:not(.dot)').length"
TITLES = "return [...document.querySelectorAll('figure h3')].map((title) => title.textContent)"
PLOTS = ["Weights by layer", "Updates by layer", "Outside the layers", "Embedding rows of added tokens", "Conversion time"]  # fmt: skip


def test_a_demonstration_run_is_seen_to_be_converted_and_its_plots_are_read(
    window: Browser, serve: Callable[..., Daemon], address: str, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    # So slow that a conversion is not over before a browser that asks every few seconds has drawn how far it is.
    state = {"DCP2HF_STATE_DIR": str(tmp_path / "state"), "DCP2HF_IO_BANDWIDTH_LIMIT": "4MB"}
    daemon = serve("-m", "daemon", "run", tmp_path / "runs", **state)
    window.open(f"http://{address}/")
    window.wait_for("return document.querySelector('#count').textContent.includes('no run')")
    trainer = subprocess.Popen(
        [sys.executable, REPOSITORY / "examples" / "demo_run.py", tmp_path, "--steps", str(SAVES), "--every", "2"],
        env=clean({}), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        seen = window.wait_for("return document.querySelector('#now progress[value]')?.getAttribute('aria-label')", 120)
        assert re.fullmatch(r"tiny-qwen3 step \d+: [a-z, ]+", seen)
        daemon.wait_for("conversion_succeeded", SAVES - 1, seconds=200)
        window.wait_for(f"return document.querySelector('#now progress[value]') && {DRAWN} === {SAVES - 1}", 60)
        colours = [_look(window, scheme) for scheme in ("light", "dark")]
        daemon.wait_for("conversion_succeeded", SAVES, seconds=60)
        assert trainer.wait(30) == 0
    finally:
        trainer.kill()
        trainer.wait()
    window.wait_for(f"return document.querySelectorAll('tbody tr').length === {SAVES}")
    window.wait_for(f"return {DRAWN} === {SAVES}")

    assert len(set(colours)) == 2
    assert window.run(TITLES) == PLOTS
    lines = window.run(
        "return [...document.querySelectorAll('figure')].map((f) => f.querySelectorAll('.curve').length)"
    )
    assert lines == [4, 4, 2, 2, 1], "four layers; embedding and norm, for the head is tied"
    updates = "[...document.querySelectorAll('figure')][1]"
    window.run(f"{updates}.querySelector('svg').focus()")
    window.press(RIGHT, LEFT, UP)  # the last step, the one before, the second line
    read = window.run(f"return {updates}.querySelector('output').textContent")
    assert re.search(r"^step 70 against step 60: layer 0 \S+ ± \S+ %, .*layer 3 ", read)
    box = window.run(
        "const b = document.querySelector('figure svg').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
    )
    window.move_to(int(box[0] + box[2] * 0.6), int(box[1] + box[3] * 0.5))
    assert re.search(r"layer 0 \S+ ± \S+ %", window.text("figure output"))
    assert window.complaints() == []
    assert window.asked
    assert {url.partition("?")[0].removeprefix(f"http://{address}/") for url in window.asked if not url.startswith("data:")} == {
        "", "page.css", "page.js", "plots.js", "status.json", "statistics.json"
    }  # fmt: skip

    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.end() == 0
    window.wait_for("return !document.querySelector('#trouble').hidden")
    assert "has not answered since" in window.text("#trouble")
    assert window.run(TITLES) == PLOTS, "what was known stays"


def _look(window: Browser, scheme: str) -> str:
    """The colour behind the page where a person prefers `scheme`; with WRITE_DOCS also a picture for docs/."""
    window.prefer(scheme)
    if os.environ.get("WRITE_DOCS"):
        window.screenshot(DOCS / f"page-{scheme}.png")
    return str(window.run("return getComputedStyle(document.body).backgroundColor"))


def test_names_and_errors_of_strangers_are_shown_as_text(
    window: Browser, serve: Callable[..., Daemon], address: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(HOSTILE, 10, 20)
    (run / "behaviour-step-20").write_text("fail <b>NonFiniteTensor</b> never")
    daemon = serve(SERVE, tmp_path / "state", tmp_path / "root")
    daemon.wait_for("conversion_failed")
    window.open(f"http://{address}/")
    window.wait_for("return document.querySelectorAll('tbody tr').length === 2")

    assert HOSTILE in window.text("#runs")
    assert HOSTILE in window.text("#errors")
    assert "<b>NonFiniteTensor</b>" in window.text("#errors")
    assert f"{tmp_path}/root" in window.text("#roots")
    assert "watched" in window.text("#roots")
    assert "exports will be deleted" in window.text("#runs")
    assert window.run("return document.querySelectorAll('img, b, script:not([src])').length") == 0
    assert window.run("return document.title") == "dcp2hfd"
    assert window.complaints() == []


def test_a_hundred_runs_are_found_by_name_and_opened_by_keys(
    window: Browser, serve: Callable[..., Daemon], address: str, tmp_path: Path
) -> None:
    _remember(tmp_path / "state", runs=100, steps=30)
    (tmp_path / "root").mkdir()
    serve(SERVE, tmp_path / "state", tmp_path / "root")
    window.open(f"http://{address}/")
    window.wait_for("return document.querySelectorAll('#runs details').length === 100")
    names = window.run("return [...document.querySelectorAll('#runs details .name')].map((name) => name.textContent)")
    failing = [number for number in range(100) if number % 7 == 0]
    others = [number for number in range(100) if number % 7]
    assert names == [f"run-{number}" for number in failing + others]
    assert (
        len(
            window.run("return [...document.querySelectorAll('#errors-section .card')].map((card) => card.textContent)")
        )
        == 1
    )
    assert "and 14 more steps in 15 runs" in window.text("#errors")
    assert window.run("return document.querySelectorAll('#runs details[open]').length") == 0
    window.run("document.querySelector('#filter').focus()")
    window.press(*"run-42 failed")
    window.wait_for("return document.querySelectorAll('#runs details:not([hidden])').length === 1")
    assert "1 of 100" in window.text("#count")
    window.run("document.querySelector('#runs details:not([hidden]) summary').focus()")
    window.press(ENTER)
    window.wait_for("return document.querySelectorAll('tbody tr').length === 12")
    window.run("document.querySelector('.scroll button').click()")

    assert window.run("return document.querySelectorAll('tbody tr').length") == 30
    assert window.run("return document.querySelector('tbody td').textContent") == "30"
    assert window.run("return document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the window"
    assert window.complaints() == []


def _remember(state: Path, *, runs: int, steps: int) -> None:
    ledger = Ledger.open(state)
    ledger._db.execute("PRAGMA synchronous = OFF")
    for run in range(runs):
        path = f"/r/run-{run}"
        for step in range(1, steps + 1):
            more: dict[str, Any] = {"state": State.DONE, "output": f"{path}/step-{step}-hf"}
            if step == steps and run % 7 == 0:
                more = {"state": State.FAILED, "error": "NoSpace", "reason": "no room", "hint": "make room"}
            ledger.put(row(step, path=f"{path}/step-{step}", run=path, run_name=f"run-{run}", **more))
    ledger.close()
