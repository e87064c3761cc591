"""What every release wrote, today's program opens: ledgers are brought up to date and lose nothing, manifests are known."""

from __future__ import annotations

import shutil
import sqlite3
import tomllib
from pathlib import Path

import pytest

from converter.publish import manifest
from daemon.config.settings import Settings
from daemon.ledger import database
from daemon.ledger.database import MIGRATIONS, NAME
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import State
from daemon.rules.judge_step import judge
from daemon.scanner.messages import Answer, Published, Step
from daemon.status import report
from tests.releases.__main__ import KEPT, ROOT, RUNS
from tests.unit.daemon.conftest import run_facts

VERSIONS = sorted(path.name for path in KEPT.iterdir() if (path / "ledger.sql").exists())
STATES = {
    "good": State.DONE,
    "broken": State.QUARANTINED,
    "copied": State.PENDING,
    "unfinished": State.INCOMPLETE,
}


@pytest.fixture(params=VERSIONS)
def state_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A state_dir as a release left it."""
    _write(tmp_path, (KEPT / request.param / "ledger.sql").read_text())
    return tmp_path


def _write(folder: Path, sql: str) -> None:
    db = sqlite3.connect(folder / NAME)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(sql)
    db.close()


def schema(folder: Path) -> set[tuple[str, str]]:
    """Every table and index of a ledger, and the statement that makes it."""
    db = sqlite3.connect(folder / NAME)
    found = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    db.close()
    return {(name, " ".join(sql.split())) for name, sql in found}


def test_the_version_of_this_checkout_is_kept_too() -> None:
    version = tomllib.loads((KEPT.parents[1] / "pyproject.toml").read_text())["project"]["version"]

    assert version in VERSIONS, "python -m tests.releases CHECKPOINTS"


def test_a_ledger_of_each_release_is_brought_up_to_date_and_says_what_it_said(state_dir: Path) -> None:
    ledger = Ledger.open(state_dir)
    rows = {row.run_name: row for row in ledger.rows()}

    assert {name: row.state for name, row in rows.items()} == STATES
    assert STATES.keys() == RUNS.keys()
    assert rows["good"].output == f"{ROOT}/good/checkpoint/step-2-hf"
    assert rows["copied"].accept_copy
    assert ledger.last_attempts()[rows["good"].path]["event"]["tensors"] > 0
    assert ledger.last_attempts()[rows["broken"].path]["error"] == "NonFiniteTensor"
    assert ledger.take_requests([ROOT]) == [f"{ROOT}/copied/checkpoint"]
    assert [delivery.hook for delivery in ledger.due([ROOT], 4e9)] == ["on_failure"]


def test_a_listing_that_a_release_hashed_otherwise_is_no_change_of_what_it_converted_or_refused(
    state_dir: Path,
) -> None:
    rows = {row.run_name: row for row in Ledger.open(state_dir).rows()}
    now, settings, run = 4e9, Settings(), run_facts()

    for name, state in (("good", State.DONE), ("broken", State.QUARANTINED)):
        row = rows[name]
        place = Published(place="alongside", ours=True, up_to_date=True, save_id=row.save_id)
        answer = Answer(state="complete", fingerprint="as it is hashed today", save_id=row.save_id)
        step = Step(run=row.run, step=2, path=row.path, answer=answer, published=(place,) if name == "good" else ())
        assert judge(step, run, row, None, settings, now=now).state == state
        assert row.converted == row.refused == ""


def test_brought_up_to_date_it_has_the_schema_of_a_new_one_so_released_migrations_did_not_change(
    state_dir: Path, tmp_path: Path
) -> None:
    Ledger.open(state_dir).close()
    Ledger.open(tmp_path / "new").close()

    assert schema(state_dir) == schema(tmp_path / "new")


def test_status_reads_it_before_a_daemon_brought_it_up_to_date_and_changes_nothing(state_dir: Path) -> None:
    before = (state_dir / NAME).read_bytes()
    found = report.look(state_dir)

    assert {run["run"]: run["steps"][0]["state"] for run in found["runs"]} == STATES
    assert (state_dir / NAME).read_bytes() == before


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_a_ledger_of_any_earlier_schema_is_read_as_if_it_were_up_to_date(version: int, tmp_path: Path) -> None:
    _write(tmp_path, "".join(MIGRATIONS[:version]) + f"PRAGMA user_version = {version};")
    db = database.open_for_reading(tmp_path)
    assert db is not None
    read = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")}
    db.close()
    Ledger.open(tmp_path / "new").close()

    assert read == {name for name, _ in schema(tmp_path / "new")}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_manifest_of_each_release_is_known_and_intact(version: str, tmp_path: Path) -> None:
    shutil.copy(KEPT / version / "conversion.json", tmp_path)
    found = manifest.read(tmp_path)

    assert found is not None
    assert (found.step, found.tools["dcp2hf"]) == (2, version)
    assert manifest.is_intact(tmp_path)
