"""What a scanner reports of a root, and what that costs: real folders, real checkpoints, a clock of our own."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.checkpoint import probe
from converter.publish import manifest
from converter.run import run_config
from daemon.config.settings import Settings
from daemon.scanner import messages
from daemon.scanner.messages import (
    Answer,
    Config,
    Gone,
    Inventory,
    Run,
    RunGone,
    Said,
    Scanned,
    Step,
    Swept,
    Unreachable,
    answer_of,
)
from daemon.scanner.root_scan import Survey
from tests.unit.daemon.conftest import add_step
from tests.unit.daemon.scanner.test_lock_ages import leave


class Look:
    """A survey of a root with its own clock, and what it emitted since last asked."""

    def __init__(
        self, root: Path, known: dict[str, Answer] | None = None, *, is_watched: bool = False, **changes: object
    ) -> None:
        s = Settings()
        config = (
            {name: getattr(s, name) for name in Config.__struct_fields__ if hasattr(s, name)}
            | {"root": str(root)}
            | changes
        )
        self.now = 1000.0
        self.probes: list[str] = []
        self.emitted: list[messages.FromScanner] = []
        self.survey = Survey(
            Config(**config),
            self.emitted.append,
            known=known,
            look_into=self._probe,
            clock=lambda: self.now,
            watch=lambda folder: is_watched,
        )

    def _probe(self, path: str, metadata_size: int) -> Answer:
        self.probes.append(path)
        return answer_of(probe.probe(Path(path)))

    def scan(self, after: float = 10.0) -> list[messages.FromScanner]:
        """What a scan says, `after` seconds later, but for signs of life."""
        self.now += after
        self.survey.scan()
        return self.said()

    def said(self) -> list[messages.FromScanner]:
        found = [message for message in self.emitted if not isinstance(message, messages.Alive | messages.Scanning)]
        self.emitted.clear()
        return found


def steps(said: list[messages.FromScanner]) -> dict[str, str]:
    return {f"{Path(m.run).name}/{m.step}": m.answer.state for m in said if isinstance(m, Step)}


MakeRun = Callable[..., Path]


def save_again(step: Path) -> str:
    """The step's `.metadata` as that of another save, there at once; its save id."""
    payload, save_id = (step / ".metadata").read_bytes(), probe.probe(step)["save_id"]
    other = str(save_id[:-4] + ("0000" if save_id[-4:] != "0000" else "1111"))
    (step / ".metadata.tmp").write_bytes(payload.replace(save_id.encode(), other.encode()))
    newest = os.stat(step / "__0_0.distcp").st_mtime_ns + 1
    os.utime(step / ".metadata.tmp", ns=(newest, newest))
    os.rename(step / ".metadata.tmp", step / ".metadata")
    return other


def test_runs_are_found_to_max_depth(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", 10)
    make_run("x/y/deep", 10)
    make_run("x/y/z/too-deep", 10)

    assert steps(Look(tmp_path / "root").scan()) == {"a/10": "complete", "deep/10": "complete"}


def test_a_root_may_itself_be_a_run(make_run: MakeRun) -> None:
    run = make_run("a", 10)

    (found,) = [m for m in Look(run).scan() if isinstance(m, Run)]
    assert found.name == "a"


def test_the_run_is_said_before_its_steps_with_what_decides_where_they_go(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a/checkpoint", 10)
    said = Look(tmp_path / "root").scan()

    assert [type(message) for message in said] == [Run, Step, Inventory, Scanned]
    assert isinstance(said[0], Run)
    assert said[0].name == "a"
    assert said[0].config is not None
    assert (said[0].config.dtype, said[0].config.keep_latest_k) == ("bfloat16", 4)


def test_nothing_is_said_twice_and_nothing_read_twice(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", 10, 20)
    look = Look(tmp_path / "root")
    look.scan()

    for _ in range(20):
        assert [type(message) for message in look.scan()] == [Scanned]
    assert len(look.probes) == 2


def test_an_idle_scan_touches_no_settled_step_but_the_newest(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("a", *range(1, 30))
    look = Look(tmp_path / "root")
    look.scan()
    looked: list[str] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **kwargs: (looked.append(str(path)), real(path, **kwargs))[1])
    look.scan()

    assert looked == [str(tmp_path / "root/a/step-29"), str(tmp_path / "root/a/step-29/.metadata")]


def test_a_new_step_is_reported_at_the_next_scan(make_run: MakeRun, tmp_path: Path, saved: Path) -> None:
    run = make_run("a", 10)
    look = Look(tmp_path / "root")
    look.scan()
    add_step(saved, run, 20)

    assert steps(look.scan()) == {"a/20": "complete"}


def test_an_event_in_a_step_looks_at_that_step_alone(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 10, 20)
    os.rename(run / "step-20/.metadata", run / "saved")
    look = Look(tmp_path / "root")
    assert steps(look.scan()) == {"a/10": "complete", "a/20": "incomplete"}

    os.rename(run / "saved", run / "step-20/.metadata")
    look.survey.changed(str(run / "step-20"))
    assert steps(look.said()) == {"a/20": "complete"}


def test_an_event_in_a_run_finds_the_new_step(make_run: MakeRun, tmp_path: Path, saved: Path) -> None:
    run = make_run("a", 10)
    look = Look(tmp_path / "root")
    look.scan()
    add_step(saved, run, 20)
    look.survey.changed(str(run))

    assert steps(look.said()) == {"a/20": "complete"}


def test_a_folder_whose_changes_are_reported_is_listed_when_one_was_or_events_were_lost_or_at_rescans(
    make_run: MakeRun, tmp_path: Path, saved: Path
) -> None:
    run = make_run("a", 10)
    look = Look(tmp_path / "root", is_watched=True)
    look.scan()
    for number, notice in (
        (20, lambda: look.survey.changed(str(run))),
        (30, lambda: (look.survey.events_were_lost(), look.survey.scan())),
        (40, lambda: look.scan(200.0)),
    ):
        add_step(saved, run, number)
        assert steps(look.scan(1.0)) == {}
        seen = notice()
        assert steps(seen if isinstance(seen, list) else look.said()) == {f"a/{number}": "complete"}


def test_open_steps_and_folders_are_what_needs_watching(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 10, 20)
    (run / "step-20/.metadata").unlink()
    look = Look(tmp_path / "root")
    look.scan()

    assert look.survey.folders() == {str(tmp_path / "root"), str(run), str(run / "step-20")}


def test_gone_is_said_at_a_second_look_only(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 10, 20)
    look = Look(tmp_path / "root")
    look.scan()
    os.rename(run / "step-10", tmp_path / "aside")
    assert not [m for m in look.scan() if isinstance(m, Gone)]
    assert look.survey.wake_at == look.now + 1.0

    os.rename(tmp_path / "aside", run / "step-10")
    assert not [m for m in look.scan(1.0) if isinstance(m, Gone)], "a rename on another host shows as neither name"

    shutil.rmtree(run / "step-10")
    look.scan()
    assert [m.path for m in look.scan(1.0) if isinstance(m, Gone)] == [str(run / "step-10")]


def test_a_whole_run_that_is_gone_takes_its_steps_along(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 10, 20)
    look = Look(tmp_path / "root")
    look.scan()
    shutil.rmtree(run)
    look.scan()

    said = look.scan(1.0)
    assert len([m for m in said if isinstance(m, Gone)]) == 2
    assert [m.run for m in said if isinstance(m, RunGone)] == [str(run)]
    assert [m.steps for m in look.scan() if isinstance(m, Scanned)] == [0]


def test_a_step_saved_again_is_reported_with_its_new_save(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 10, 20)
    look = Look(tmp_path / "root")
    look.scan()
    other = save_again(run / "step-20")

    assert [m.answer.save_id for m in look.scan() if isinstance(m, Step)] == [other]


def test_a_missing_run_config_is_said_of_the_run_and_names_no_other_steps_folder(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run("a", 10, 20, config=False)
    (said,) = [m for m in Look(tmp_path / "root").scan() if isinstance(m, Run)]

    assert f"{run}/config.json" in said.message
    assert f"{run}/step-" not in said.message


def test_a_run_without_config_is_looked_at_until_there_is_one(make_run: MakeRun, tmp_path: Path, saved: Path) -> None:
    run = make_run("a", 10, config=False)
    look = Look(tmp_path / "root")
    assert [m.error for m in look.scan() if isinstance(m, Run)] == ["RunConfigMissing"]
    assert not [m for m in look.scan() if isinstance(m, Run)]

    (run / "config.json").write_text("{")
    assert [m.error for m in look.scan() if isinstance(m, Run)] == ["RunConfigUnreadable"]
    shutil.copy(saved / "config.json", run / "config.json")
    assert [m.config is not None for m in look.scan() if isinstance(m, Run)] == [True]


def test_answers_of_an_earlier_life_save_all_the_reading(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", 10, 20)
    first = Look(tmp_path / "root")
    known = {m.path: m.answer for m in first.scan() if isinstance(m, Step)}
    second = Look(tmp_path / "root", known)

    assert steps(second.scan()) == {"a/10": "complete", "a/20": "complete"}
    assert second.probes == []


def test_only_wanted_steps_are_looked_at(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", 10, 15, 20, 30)

    assert steps(Look(tmp_path / "root", min_step=20, every=20).scan()) == {"a/20": "complete"}


def test_a_run_that_cannot_be_looked_at_for_a_reason_nobody_foresaw_is_named_once_and_holds_no_other_up(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("a", 10)
    make_run("b", 10)
    find = run_config.find

    def fails(step: Path, **options: object) -> run_config.RunConfig:
        if step.parent.name == "a":
            raise TypeError("of a config that nobody has seen")
        return find(step, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run_config, "find", fails)
    look = Look(tmp_path / "root")
    said = look.scan() + look.scan() + look.scan(121.0)

    assert steps(said) == {"b/10": "complete"}
    assert [(m.event, Path(m.path).name) for m in said if isinstance(m, messages.Said)] == [("run_failed", "a")]


def test_links_are_named_once_and_not_followed(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 10)
    (run / "step-20").symlink_to(run / "step-10")
    (tmp_path / "root" / "b").symlink_to(run)
    look = Look(tmp_path / "root")
    said = look.scan() + look.scan() + look.scan(200.0)

    assert sorted(m.path for m in said if isinstance(m, Said)) == [str(run / "step-20"), str(tmp_path / "root" / "b")]
    assert set(steps(said)) == {"a/10"}


def test_a_step_that_is_a_torch_checkpointing_one_is_unsupported(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a")
    (run / "step-10").mkdir()
    (run / "step-10/metadata.pkl").write_bytes(b"never opened")
    (run / "step-10/model_0.pt").write_bytes(b"")
    (run / "tmp_step-20").mkdir()

    assert steps(Look(tmp_path / "root").scan()) == {"a/10": "unsupported"}


def test_the_steps_of_a_fault_tolerance_replica_hold_no_model(make_run: MakeRun, tmp_path: Path, saved: Path) -> None:
    run = make_run("a", 10)
    (run / "ft-replicat-0").mkdir()
    shutil.copytree(saved / "no-model", run / "ft-replicat-0/step-10")
    look = Look(tmp_path / "root")

    assert steps(look.scan()) == {"a/10": "complete", "ft-replicat-0/10": "no_model"}
    assert not [m for m in look.scan() + look.scan(2.0) if isinstance(m, Gone)]


def test_somebody_elses_directory_and_ours_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 10)
    (run / "step-10-hf").mkdir()
    (run / "step-10-hf" / "notes.txt").write_text("mine")

    (found,) = [m for m in Look(tmp_path / "root").scan() if isinstance(m, Step)]
    (there,) = found.published
    assert (there.place, there.ours, there.up_to_date, there.foreign) == ("alongside", False, False, ("notes.txt",))
    assert not there.empty


def test_an_empty_directory_is_told_from_an_export_without_our_manifest(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 10, 11)
    (run / "step-10-hf").mkdir()
    (run / "step-11-hf").mkdir()
    (run / "step-11-hf" / "model.safetensors").touch()

    found = {m.step: m.published[0] for m in Look(tmp_path / "root").scan() if isinstance(m, Step)}
    assert {step: (p.ours, p.empty, p.foreign) for step, p in found.items()} == {
        10: (False, True, ()), 11: (False, False, ()),
    }  # fmt: skip


def test_a_published_directory_that_is_removed_is_missed_at_the_second_look(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 10)
    (run / "hf").mkdir()
    (run / "hf/step-10-hf").mkdir()
    look = Look(tmp_path / "root")
    assert [len(m.published) for m in look.scan() if isinstance(m, Step)] == [1]

    (run / "hf/step-10-hf").rmdir()
    assert not [m for m in look.scan() if isinstance(m, Step)]
    assert [m.published for m in look.scan(1.0) if isinstance(m, Step)] == [()]


def test_every_published_directory_is_entered_again_within_five_rescans(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 9, 10)
    for step in (9, 10):
        (run / f"step-{step}-hf").mkdir()
    look = Look(tmp_path / "root")
    look.scan()
    for step in (9, 10):
        (run / f"step-{step}-hf" / "notes.txt").write_text("mine")

    changed = [[m.step for m in look.scan(121.0) if isinstance(m, Step)] for _ in range(5)]

    assert sorted(step for turn in changed for step in turn) == [9, 10]
    assert max(map(len, changed)) == 1


def test_a_published_directory_that_seemed_outdated_is_looked_at_again_at_the_next_rescan(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of it was not there for a moment, as NFS may say."""
    run = make_run("a", 11)
    (run / "step-11-hf").mkdir()
    answers = iter([False, True])
    monkeypatch.setattr(manifest, "read", lambda path: manifest.Manifest(11, "", "float32", 1, 0, 0, {}, "", {}, ()))
    monkeypatch.setattr(manifest, "foreign_files", lambda path: [])
    monkeypatch.setattr(manifest, "is_up_to_date", lambda path, **wish: next(answers))
    look = Look(tmp_path / "root")

    told = [m.published[0].up_to_date for after in (10.0, 121.0) for m in look.scan(after) if isinstance(m, Step)]

    assert told == [False, True]


def test_what_a_dead_owner_left_is_swept_and_a_rehearsal_sweeps_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", 10)
    left = run / ".dcp2hf-10.0123456789abcdef.staging"
    left.mkdir()
    (left / "model.safetensors").write_text("half")

    assert not [m for m in Look(tmp_path / "root", read_only=True).scan() if isinstance(m, Swept)]
    assert left.exists()
    assert [m.names for m in Look(tmp_path / "root").scan() if isinstance(m, Swept)] == [(left.name,)]
    assert not left.exists()


def test_files_of_a_person_that_a_sweep_keeps_are_named_in_the_log_and_not_called_removed(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run("a", 10)
    (run / "step-10-hf").mkdir()
    left = run / ".dcp2hf-10.0123456789abcdef.replaced"
    left.mkdir()
    (left / "notes.md").write_text("mine")
    messages = Look(tmp_path / "root").scan()

    (said,) = (m for m in messages if isinstance(m, Said))
    assert (said.event, said.path) == ("files_kept", str(left))
    assert "notes.md" in said.message
    assert [m.names for m in messages if isinstance(m, Swept)] == [()]


def test_what_an_owner_elsewhere_left_is_swept_at_a_rescan_once_its_lock_did_not_change_for_long(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run("a", 10)
    lock = leave(run, 20)
    look = Look(tmp_path / "root")
    assert [m.names for m in look.scan() if isinstance(m, Swept)] == [()]
    os.utime(lock)
    assert [m.names for m in look.scan(150.0) if isinstance(m, Swept)] == [()]
    assert [m.names for m in look.scan(150.0) if isinstance(m, Swept)] == [()]
    assert [m.names for m in look.scan(150.0) if isinstance(m, Swept)] == [()]
    (names,) = [m.names for m in look.scan(150.0) if isinstance(m, Swept)]
    assert len(names) == 2
    assert not [path.name for path in run.iterdir() if path.name.startswith(".dcp2hf-")]


def test_a_root_that_is_away_is_said_at_the_second_look_and_its_steps_are_not_gone(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("a", 10)
    look = Look(tmp_path / "root")
    look.scan()
    os.rename(tmp_path / "root", tmp_path / "away")
    assert look.scan() == []
    assert [type(message) for message in look.scan(1.0)] == [Unreachable]

    os.rename(tmp_path / "away", tmp_path / "root")
    assert [type(message) for message in look.scan()] == [Scanned]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_may_not_be_listed_is_named_once_and_its_steps_are_not_gone(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run("a", 10)
    look = Look(tmp_path / "root")
    look.scan()
    run.chmod(0)
    said = look.scan() + look.scan()
    run.chmod(0o755)

    assert [m.event for m in said if isinstance(m, Said)] == ["folder_unreadable"]
    assert not [m for m in said if isinstance(m, Gone)]


def test_a_transient_error_of_a_healthy_mount_loses_no_step(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("a", 10)
    look = Look(tmp_path / "root")
    look.scan()
    real = os.listdir

    def remote_io(path: str) -> list[str]:
        if str(path) == str(run):
            raise OSError(121, "Remote I/O error", path)
        return real(path)

    monkeypatch.setattr(os, "listdir", remote_io)
    said = look.scan() + look.scan() + look.scan()
    monkeypatch.undo()

    assert not [m for m in said if isinstance(m, Gone)]
    assert [type(message) for message in look.scan()] == [Scanned]


def test_a_conflict_between_two_run_configs_is_reported(make_run: MakeRun, tmp_path: Path, saved: Path) -> None:
    run = make_run("a", 10)
    config = json.loads((saved / "config.json").read_text())
    config["training"]["dtype"] = "float32"
    (run / "job_config.json").write_text(json.dumps(config))

    (found,) = [m for m in Look(tmp_path / "root").scan() if isinstance(m, Run)]
    assert found.config is not None
    assert (found.config.dtype, found.config.conflict, found.config.differs) == (
        "bfloat16",
        str(run / "job_config.json"),
        ("dtype",),
    )
