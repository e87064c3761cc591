"""What a scan says of steps that are not the newest: all that is news, though it asks a settled step one stat only."""

import os
from pathlib import Path

import pytest

from converter.publish import manifest
from daemon.scanner import published_scan
from daemon.scanner.messages import Step
from daemon.scanner.run_scan import LISTED, TURNS
from daemon.scanner.step_scan import STALLED
from tests.unit.daemon.scanner.test_root_scan import Look, MakeRun, save_again

OLDER = tuple(range(1, TURNS + 2))
"""More steps than have a turn at any one rescan; the newest is another."""


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    return make_run("a", *OLDER, 100)


def test_older_steps_that_were_saved_again_are_all_reported_at_the_next_rescan(run: Path, tmp_path: Path) -> None:
    look = Look(tmp_path / "root")
    look.scan()
    saves = {step: save_again(run / f"step-{step}") for step in OLDER}

    assert not [m for m in look.scan() if isinstance(m, Step)], "no rescan yet"
    assert {m.step: m.answer.save_id for m in look.scan(121.0) if isinstance(m, Step)} == saves


def test_what_is_published_of_older_steps_is_reported_at_the_next_scan(run: Path, tmp_path: Path) -> None:
    look = Look(tmp_path / "root")
    look.scan()
    for step in OLDER:
        (run / f"step-{step}-hf").mkdir()

    assert [(m.step, len(m.published)) for m in look.scan() if isinstance(m, Step)] == [(step, 1) for step in OLDER]
    for step in OLDER:
        (run / f"step-{step}-hf").rmdir()
    assert not [m for m in look.scan() if isinstance(m, Step)], "believed at a second look only"
    assert [(m.step, m.published) for m in look.scan(1.0) if isinstance(m, Step)] == [(step, ()) for step in OLDER]


def test_another_dtype_in_the_run_config_is_asked_of_every_published_directory_at_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in OLDER:
        (run / f"step-{step}-hf").mkdir()
    monkeypatch.setattr(manifest, "read", lambda path: manifest.Manifest(1, "", "bfloat16", 1, 0, 0, {}, "", {}, ()))
    monkeypatch.setattr(manifest, "foreign_files", lambda path: [])
    monkeypatch.setattr(manifest, "is_up_to_date", lambda path, *, dtype, **wish: dtype == "bfloat16")
    look = Look(tmp_path / "root")
    assert all(m.published[0].up_to_date for m in look.scan() if isinstance(m, Step) and m.step in OLDER)
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace('"bfloat16"', '"float32"'))

    changed = {m.step: m.published[0].up_to_date for m in look.scan(121.0) if isinstance(m, Step)}

    assert changed == dict.fromkeys(OLDER, False)


def test_a_save_that_stood_still_for_long_and_went_on_is_found_at_the_next_rescan(run: Path, tmp_path: Path) -> None:
    (run / "step-3/.metadata").rename(tmp_path / "later")
    look = Look(tmp_path / "root")
    look.scan()
    look.scan(STALLED + 1.0)
    (tmp_path / "later").rename(run / "step-3/.metadata")

    assert not [m for m in look.scan() if isinstance(m, Step)], "no rescan yet"
    assert [(m.step, m.answer.state) for m in look.scan(121.0) if isinstance(m, Step)] == [(3, "complete")]


def test_a_step_that_was_away_while_it_was_asked_for_is_reported_at_the_next_scan(run: Path, tmp_path: Path) -> None:
    look = Look(tmp_path / "root")
    look.scan()
    (run / "step-3").rename(tmp_path / "away")
    look.survey.look(str(run / "step-3"))
    (tmp_path / "away").rename(run / "step-3")

    assert [m.step for m in look.scan(1.0) if isinstance(m, Step)] == [3]


@pytest.mark.parametrize("step", [3, 100])
def test_a_published_directory_that_was_away_when_it_was_to_be_read_is_reported_at_the_next_scan(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    look = Look(tmp_path / "root")
    look.scan()
    (run / f"step-{step}-hf").mkdir()
    real, asked = published_scan._signature, []

    def signature(path: str) -> int:
        asked.append(path)
        if len(asked) == 1:
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(published_scan, "_signature", signature)

    assert not [m for m in look.scan() if isinstance(m, Step)]
    assert [(m.step, len(m.published)) for m in look.scan(1.0) if isinstance(m, Step)] == [(step, 1)]
    asked.clear()
    assert not [m for m in look.scan() if isinstance(m, Step)]
    assert not asked


def test_every_settled_step_is_listed_once_in_so_many_rescans_and_files_rewritten_in_place_are_found(
    run: Path, tmp_path: Path
) -> None:
    look = Look(tmp_path / "root")
    look.scan()
    for step in OLDER:
        shard = run / f"step-{step}" / "__0_0.distcp"
        os.utime(shard, ns=(1, os.stat(shard).st_mtime_ns - 60_000_000_000))
    found = []
    for _ in range(LISTED):
        found += [
            m.step for m in look.scan(121.0) + look.scan(10.0) if isinstance(m, Step) and m.answer.state == "suspect"
        ]

    assert sorted(found) == list(OLDER)


def test_a_run_that_is_reported_again_is_reported_whole_and_no_metadata_is_read_for_it(
    run: Path, tmp_path: Path
) -> None:
    look = Look(tmp_path / "root")
    look.scan()
    look.probes.clear()
    look.survey.look(str(run), is_known=True)

    assert [m.step for m in look.said() if isinstance(m, Step)] == [*OLDER, 100]
    assert look.probes == []
    look.survey.look(str(run))
    assert len(look.probes) == len(OLDER) + 1, "unless it is looked at anew"
