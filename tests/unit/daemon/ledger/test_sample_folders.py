"""Samples of a run lie where they can, are asked for where they are wanted, and go with the run."""

import time
from pathlib import Path

import pytest

from daemon.config.settings import Settings
from daemon.host.logs import logger
from daemon.ledger.disk_fallback import KeptLedger
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outcome
from daemon.ledger.sample_folders import FOLDER, KEPT_AWAY, Samples, name
from tests.unit.daemon.conftest import row

S = Settings()
FIGURES = {"parts": ["0"], "rms": [0.5]}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return KeptLedger(tmp_path, logger())


@pytest.mark.parametrize("run", ["/r/a", "/r/../../etc", "/r/a\nb", "/" + "x" * 4000, "/r/\udcff"])
def test_a_run_of_any_name_has_a_folder_of_its_own_below_state_dir(ledger: Ledger, tmp_path: Path, run: str) -> None:
    folder = Path(Samples(ledger).folder(run, S))

    assert folder.parent == tmp_path / FOLDER
    assert folder.name.isalnum()
    assert folder != Path(Samples(ledger).folder(f"{run}2", S))


def test_none_are_kept_where_they_are_not_wanted_or_there_is_no_disk(ledger: Ledger, tmp_path: Path) -> None:
    assert Samples(ledger).folder("/r/a", Settings(statistics=False)) == ""
    assert Samples(Ledger.rehearsal(tmp_path)).folder("/r/a", S) == ""
    ledger.is_away = True
    assert Samples(ledger).folder("/r/a", S) == ""


def test_figures_go_into_the_ledger_and_out_of_the_event(ledger: Ledger) -> None:
    ledger.put(row(10))
    event = {"event": "conversion_succeeded", "bytes_written": 7, "statistics": FIGURES}
    Samples(ledger).remember(row(10), Outcome(result="succeeded", event=event))
    (found,), left_out = ledger.statistics("/r/a", 5)

    assert event == {"event": "conversion_succeeded", "bytes_written": 7}
    assert (found.step, bytes(found.figures), left_out) == (10, b'{"parts":["0"],"rms":[0.5]}', 0)


def test_a_step_saved_again_shows_what_is_said_of_its_present_save_alone(ledger: Ledger) -> None:
    for save in ("save-1", "save-2"):
        ledger.put(row(10, save_id=save))
        if save == "save-1":
            ledger.put_statistics(row(10, save_id=save), FIGURES)

    assert ledger.statistics("/r/a", 5) == ([], 0)


def test_runs_that_are_gone_take_all_with_them_and_others_stay(ledger: Ledger, tmp_path: Path) -> None:
    runs = ["/r/a", "/r/b", "/r2/a", "/r/a/nested"]
    for run in runs:
        known = row(10, path=f"{run}/step-10", run=run, root="/r")
        ledger.put(known)
        ledger.put_statistics(known, FIGURES)
        (tmp_path / FOLDER / name(run)).mkdir(parents=True)
    now = 1e9
    samples = Samples(ledger, clock=lambda: now)
    samples.keep("/r", None)
    assert len(ledger.runs_with_statistics()) == 4, "nobody has looked yet"
    samples.keep("/r", {"/r/b", "/r/a/nested"})
    now += KEPT_AWAY - 1
    samples.keep("/r", {"/r/b", "/r/a/nested"})
    assert len(ledger.runs_with_statistics()) == 4, "its mount may be back"
    now += 1
    samples.keep("/r", {"/r/b", "/r/a/nested"})

    assert sorted(ledger.runs_with_statistics()) == ["/r/a/nested", "/r/b", "/r2/a"]
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {name(run) for run in runs[1:]}


@pytest.mark.parametrize(("save", "is_kept"), [("save-1", True), ("save-2", False)])
def test_a_run_that_is_back_has_what_was_measured_unless_it_is_another(
    ledger: Ledger, save: str, is_kept: bool
) -> None:
    ledger.put(row(10))
    ledger.put_statistics(row(10), FIGURES)
    ledger.take_inventory("/r/a", (10,), ())
    samples = Samples(ledger, clock=lambda: time.time() + 1)
    samples.keep("/r", set())
    ledger.take_inventory("/r/a", (), ())
    samples.keep("/r", {"/r/a"})
    assert ledger.runs_with_statistics() == ["/r/a"], "none of its steps has been looked at"
    assert "/r/a" in ledger.away()

    if save == "save-2":
        ledger._db.execute("UPDATE steps SET first_seen = first_seen - 10")
        ledger.note_away("/r/a", time.time() - 5)
    ledger.put(row(10, save_id=save))
    ledger.take_inventory("/r/a", (10,), ())
    samples.keep("/r", {"/r/a"})

    assert ledger.runs_with_statistics() == (["/r/a"] if is_kept else [])
    assert ledger.away() == {}


def test_folders_that_nobody_knows_go_at_the_start(ledger: Ledger, tmp_path: Path) -> None:
    known = row(10)
    ledger.put(known)
    ledger.put_statistics(known, FIGURES)
    for folder in (name("/r/a"), name("/r/of-a-ledger-that-was-moved-away")):
        (tmp_path / FOLDER / folder).mkdir(parents=True)
    Samples(ledger).begin()

    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [name("/r/a")]
