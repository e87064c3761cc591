"""What the status page asks for is bounded and true, and the page makes nothing but text of what strangers wrote."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote

import pytest

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outcome, State
from daemon.runners.counters import Tally
from daemon.runners.progress import Progress
from daemon.scanner.known_runs import Presence
from daemon.scanner.messages import Answer
from daemon.status import status_page
from daemon.status.health import Pulse
from daemon.status.state_view import Sources
from daemon.status.status_page import MOST_ERRORS, MOST_RUNS, STEPS_EACH, STEPS_OF_ONE, StatusPage
from tests.unit.daemon.conftest import row

PAGE = Path(status_page.__file__).parent / "page"
HOSTILE = "<img src=x onerror=alert(1)>\"'&\n\u202e"
NOW = 1_000_000.0


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path)


@pytest.fixture
def page(ledger: Ledger) -> StatusPage:
    """Over a real ledger; a root that was not scanned yet, and nothing that runs."""
    watcher = SimpleNamespace(is_reachable=None, free_bytes=None)
    conversions = SimpleNamespace(running=list)
    sources = Sources(
        settings=Settings, ledger=ledger, watchers=cast(Any, {"/r": watcher}), tracker=cast(Any, None),
        conversions=cast(Any, conversions), tally=Tally(), presence=Presence(), pulse=Pulse(),
    )  # fmt: skip
    return StatusPage(sources, clock=lambda: NOW)


def fill(ledger: Ledger, runs: int, steps: int) -> None:
    for run in range(runs):
        for step in range(1, steps + 1):
            path = f"/r/run-{run}"
            ledger.put(row(step, path=f"{path}/step-{step}", run=path, run_name=f"run-{run}", state=State.DONE))


def asked(page: StatusPage, run: str = "") -> Any:
    page._made_at = float("-inf")
    return json.loads(page.status(f"run={quote(run)}" if run else "").body)


def test_of_many_steps_the_newest_are_shown_and_the_others_counted(page: StatusPage, ledger: Ledger) -> None:
    fill(ledger, 2, STEPS_OF_ONE + 20)
    said, one = asked(page), asked(page, "/r/run-1")["runs"][0]

    assert [len(run["steps"]) for run in said["runs"]] == [STEPS_EACH] * 2
    assert said["states"] == {"done": 2 * (STEPS_OF_ONE + 20)}
    assert said["runs"][0]["left_out"] == STEPS_OF_ONE + 20 - STEPS_EACH
    assert [step["step"] for step in one["steps"]] == list(range(STEPS_OF_ONE + 20, 20, -1))
    assert (one["left_out"], one["states"]) == (20, {"done": STEPS_OF_ONE + 20})


def test_of_many_runs_those_that_changed_last_are_shown_and_the_others_counted(
    page: StatusPage, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_page, "MOST_RUNS", 3)
    fill(ledger, 5, 1)
    time.sleep(0.01)
    ledger.put(row(1, path="/r/run-0/step-1", run="/r/run-0", run_name="run-0", state=State.FAILED, error="NoSpace"))
    said = asked(page)

    assert said["runs"][0]["run"] == "run-0"
    assert (len(said["runs"]), said["runs_left_out"]) == (3, 2)
    assert said["states"] == {"done": 4, "failed": 1}


def test_the_last_errors_come_with_their_hints_the_newest_first(page: StatusPage, ledger: Ledger) -> None:
    for step in range(MOST_ERRORS + 5):
        ledger.put(row(step, state=State.QUARANTINED, error="StepDamaged", reason=f"why {step}", hint="what to do"))
    found = asked(page)["errors"]

    assert len(found) == MOST_ERRORS
    assert (found[0]["step"], found[0]["message"]) == (MOST_ERRORS + 4, f"why {MOST_ERRORS + 4}")
    assert {(one["error"], one["hint"], one["state"]) for one in found} == {
        ("StepDamaged", "what to do", "quarantined")
    }


def test_errors_of_one_cause_are_one_with_how_many_steps_and_runs_it_has(page: StatusPage, ledger: Ledger) -> None:
    for run, step in (("a", 1), ("a", 2), ("b", 9)):
        path = f"/r/{run}"
        ledger.put(
            row(step, path=f"{path}/{step}", run=path, run_name=run, state=State.FAILED, error="NoSpace", reason="full")
        )
        time.sleep(0.002)
    ledger.put(row(3, state=State.QUARANTINED, error="NoSpace", reason="no quota"))
    quota, full = asked(page)["errors"]

    assert (quota["message"], quota["steps"], quota["runs"]) == ("no quota", 1, 1)
    assert (full["message"], full["steps"], full["runs"], full["run"], full["step"]) == ("full", 3, 2, "b", 9)


def test_failing_runs_come_first(page: StatusPage, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_page, "MOST_RUNS", 2)
    ledger.put(row(1, path="/r/bad/1", run="/r/bad", run_name="bad", state=State.FAILED, error="NoSpace"))
    time.sleep(0.002)
    fill(ledger, 3, 1)

    assert [run["run"] for run in asked(page)["runs"]] == ["bad", "run-2"]


def test_the_page_says_how_roots_stand_and_which_exports_will_be_deleted(page: StatusPage, ledger: Ledger) -> None:
    fill(ledger, 2, 1)
    ledger.note_retention("/r/run-1", 4)
    ledger.note_root("/r", "watched", NOW)
    ledger.note_root("/gone", "left", NOW)
    said = asked(page)

    assert [(root["root"], root["state"], root["reachable"]) for root in said["roots"]] == [
        ("/gone", "left", None),
        ("/r", "watched", None),
    ]
    assert {run["run"]: run["retention"] and run["retention"]["deletes_from_save"] for run in said["runs"]} == {
        "run-0": None,
        "run-1": 4,
    }


def test_the_page_warns_of_no_retention_of_a_run_that_is_gone(page: StatusPage, ledger: Ledger) -> None:
    fill(ledger, 2, 2)
    for run in ("/r/run-0", "/r/run-1"):
        ledger.note_retention(run, 4)
    ledger.take_inventory("/r/run-0", [], [])
    ledger.take_inventory("/r/run-1", [], [1])

    assert {run["run"]: run["retention"] is not None for run in asked(page)["runs"]} == {"run-0": False, "run-1": True}


def test_a_step_shows_what_its_last_attempt_took(page: StatusPage, ledger: Ledger) -> None:
    ledger.put(row(10, state=State.DONE))
    for began, took in ((1.0, 9.0), (20.0, 4.5)):
        key = ledger.begin_attempt(row(10), began)
        event = {"duration_seconds": took, "bytes_written": 7, "phases": {"export": 1.0}, "checks": []}
        ledger.end_attempt(key, Outcome(result="succeeded", seconds=took + 1, event=event), began + took)
    step = asked(page, "/r/a")["runs"][0]["steps"][0]

    assert (step["attempts"], step["duration_seconds"], step["bytes_written"]) == (2, 4.5, 7)


def test_what_runs_says_how_far_it_is(page: StatusPage) -> None:
    heard: list[str] = []
    progress = Progress(NOW - 5, lambda: NOW - 2)
    take = progress.then(lambda event: heard.append(event["event"]))
    take({"event": "conversion_started"})
    take({"event": "conversion_progress", "phase": "export", "bytes_done": 3, "bytes_total": 9})
    take({"event": "conversion_progress", "phase": "export", "bytes_done": "much", "bytes_total": None})
    page._s.conversions.running = lambda: [(row(10, attempts=2), progress)]  # type: ignore[method-assign]
    (found,) = asked(page)["running"]

    assert heard == ["conversion_started", "conversion_progress", "conversion_progress"]
    assert (found["step"], found["attempt"], found["phase"], found["done"], found["total"]) == (10, 3, "export", 0, 0)
    assert found["since"] < found["phase_since"] < asked(page)["now"]


def test_statistics_of_a_run_come_with_the_saves_that_hold_nan_and_are_bounded(
    page: StatusPage, ledger: Ledger
) -> None:
    answer = Answer(state="complete", save_id="save-1", model_elements=1000)
    for step in range(STEPS_OF_ONE + 3):
        ledger.put(row(step, answer=answer))
        ledger.put_statistics(row(step), {"rms": [float(step)]})
    ledger.put(row(9000, state=State.QUARANTINED, answer=answer))
    ledger.note_non_finite(row(9000), tensors=2, nan=30, inf=1, now=NOW)
    said = json.loads(page.statistics("run=%2Fr%2Fa").body)

    assert [one["step"] for one in said["steps"]] == list(range(STEPS_OF_ONE + 2, 2, -1))
    assert said["steps"][0]["figures"] == {"rms": [STEPS_OF_ONE + 2]}
    assert said["left_out"] == 3
    assert said["non_finite"] == [{"step": 9000, "tensors": 2, "nan": 30, "inf": 1, "elements": 1000}]


@pytest.mark.parametrize("query", ["", "run=", "run=%2Fnowhere", "run=%ff", "run=" + "x" * 8000, "x=1&run=a&run=b"])
def test_a_run_that_nobody_knows_has_no_steps_and_no_statistics(page: StatusPage, query: str) -> None:
    assert json.loads(page.statistics(query).body)["steps"] == []
    assert json.loads(page.status(query).body)["runs"] == []


def test_hostile_names_and_errors_are_data(page: StatusPage, ledger: Ledger) -> None:
    path = f"/r/{HOSTILE}"
    ledger.put(
        row(10, path=f"{path}/step-10", run=path, run_name=HOSTILE, state=State.FAILED, error=HOSTILE, hint=HOSTILE)
    )
    answer = page.status("")
    (run,) = json.loads(answer.body)["runs"]

    assert answer.type == "application/json"
    assert (run["run"], run["path"]) == (HOSTILE, path)
    assert asked(page, path)["runs"][0]["steps"][0]["hint"] == HOSTILE


def test_ten_thousand_steps_are_answered_before_anybody_waits(page: StatusPage, ledger: Ledger) -> None:
    ledger._db.execute("PRAGMA synchronous = OFF")
    fill(ledger, 100, 100)
    began = time.monotonic()
    body = page.status("").body
    first = time.monotonic() - began

    assert len(json.loads(body)["runs"]) == min(100, MOST_RUNS)
    assert len(body) < 300_000
    assert first < 1.0


def test_the_page_is_light_whole_and_asks_nobody_else() -> None:
    found = {path.name: path.read_text() for path in PAGE.iterdir()}

    assert set(found) == {name for name, _ in status_page.FILES.values()}
    assert sum(map(len, found.values())) < 40_000
    for name, text in found.items():
        addresses = set(re.findall(r"[a-z]+://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, name
        assert "@import" not in text


def test_the_page_has_no_way_to_make_markup_of_text() -> None:
    sinks = r"\.(inner|outer)HTML\s*\+?=[^=]|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc|createContextualFragment|DOMParser|setHTML"  # fmt: skip
    for path in PAGE.glob("*.js"):
        assert not re.search(sinks, path.read_text()), path.name
    markup = (PAGE / "index.html").read_text()
    assert not re.search(r"\son\w+=|<style|\sstyle=|<script(?![^>]*\ssrc=)", markup), "the policy would refuse it"
