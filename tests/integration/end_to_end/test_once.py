"""`--once` with the real converter: two at the same time, every state a step can be in, and what the exit code says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from converter.publish import manifest
from daemon.ledger.ledger import Ledger
from tests.integration.documents.schemas import against
from tests.integration.end_to_end.conftest import (
    ONE_STEP,
    PATIENCE,
    TWO_STEPS,
    Once,
    Start,
    make_shards_newer,
    ours,
    published,
    states,
    status,
    steps,
)
from tests.integration.end_to_end.equality import assert_case
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.running import tree
from tests.unit.daemon.running import dcp2hfd, wait_until

FAST = {"DCP2HF_WORKERS": "2"}


def test_two_at_once_convert_each_step_once_and_both_end_well(once: Once) -> None:
    converted = [(said["run"], said["step"]) for said in once.events("conversion_succeeded")]

    assert once.codes == (0, 0)
    assert sorted(converted) == [("a", 2), ("a", 4), ("b", 2)]
    assert not once.events("conversion_failed")
    assert ours(once.root) == []


def test_what_two_at_once_published_is_what_was_saved(once: Once) -> None:
    a, b = once.root / "a/checkpoint", once.root / "b/checkpoint"

    for number in (2, 4):
        assert_case(TWO_STEPS, a / f"step-{number}", a / f"step-{number}-hf")
    assert_case(ONE_STEP, b / "step-2", b / "hf/step-2-hf")


def test_where_two_checkpoints_are_kept_nothing_is_published_beside_them(once: Once) -> None:
    assert sorted(published(once.root)) == [
        "a/checkpoint/step-2-hf",
        "a/checkpoint/step-4-hf",
        "a/checkpoint/step-8-hf",
        "b/checkpoint/hf/step-2-hf",
    ]


def test_the_hazard_to_retention_is_said_once_and_only_where_there_is_one(once: Once) -> None:
    (said,) = once.events("retention_hazard")

    assert (said["run"], said["keep_latest_k"], said["remaining"]) == ("a", 4, 1)
    assert "subdirectory" in said["hint"]


def test_what_is_printed_and_published_is_as_the_schemas_say(once: Once) -> None:
    problems = [*against("status.json", status(once.state))]
    for path in once.root.rglob("conversion.json"):
        problems += against("conversion.json", json.loads(path.read_text()))
    for line in (line for daemon in once.daemons for line in daemon.log):
        problems += against("event.json", line)

    assert problems == []
    assert list(against("event.json", once.events("daemon_started")[0] | {"no_such_field": 1}))


def test_status_says_of_every_step_where_it_stands_and_why(once: Once) -> None:
    found = steps(once.state)

    assert states(once.state) == {
        "a/2": "done",
        "a/4": "done",
        "a/6": "incomplete",
        "a/8": "foreign",
        "a/10": "suspect",
        "b/2": "done",
    }
    done = found["b/2"]
    assert done["output"] == str(once.root / "b/checkpoint/hf/step-2-hf")
    assert done["save_id"] == found["b/2"]["save_id"]
    assert done["model_bytes"] > 0
    assert done["failed_attempts"] == 0
    assert found["a/6"]["reason"] == "no .metadata yet"
    assert "thesis.tex" in found["a/8"]["reason"]
    assert "newer than .metadata" in found["a/10"]["reason"]
    assert found["a/10"]["hint"].endswith(f"retry {once.root}/a/checkpoint/step-10 --accept-copy")
    assert status(once.state)["daemons"] == []


def test_status_for_people_names_the_option_that_accepts_a_copy(once: Once) -> None:
    line = next(line for line in dcp2hfd("status", state=once.state).splitlines() if line.startswith("10 "))

    assert "newer than .metadata" in line
    assert f"dcp2hfd retry {once.root}/a/checkpoint/step-10 --accept-copy" in line


def test_figures_of_a_conversion_are_kept_by_whoever_made_it(once: Once) -> None:
    ledger = Ledger.read(once.state)
    assert ledger is not None
    events = [attempt["event"] for attempt in ledger.last_attempts().values()]
    ledger.close()

    assert len(events) == 3
    assert all(event["save_id"] for event in events)


def test_a_rehearsal_writes_nothing_at_all_and_says_what_would_be_done(
    once: Once, tmp_path: Path, start: Start
) -> None:
    root = once.copy(tmp_path)
    shutil.rmtree(root / "a/checkpoint/step-4-hf")
    state = Path(shutil.copytree(once.state, tmp_path / "state"))
    for ledger in (state, tmp_path / "none"):
        before = tree(tmp_path, times=True)
        rehearsal = start(ledger, "--dry-run", root)

        assert rehearsal.end(PATIENCE) == 0
        assert tree(tmp_path, times=True) == before
        (would,) = rehearsal.events("would_convert")
        assert (would["run"], would["step"], would["output"]) == ("a", 4, str(root / "a/checkpoint/step-4-hf"))
        listed = {said["step"]: said["reason"] for said in rehearsal.events("conversion_skipped", run="a")}
        assert {6: "incomplete", 8: "foreign", 10: "suspect"}.items() <= listed.items()


def test_a_removed_directory_stays_removed_until_once_and_another_save_is_converted_again(
    once: Once, tmp_path: Path, start: Start
) -> None:
    root, state = once.copy(tmp_path), tmp_path / "state"
    run = root / "a/checkpoint"
    watching = start(state, root, DCP2HF_POLL_INTERVAL="0.5s")
    watching.wait_for("conversion_skipped", step=4, reason="up_to_date", seconds=PATIENCE)
    shutil.rmtree(run / "step-4-hf")
    watching.wait_for("conversion_skipped", step=4, reason="removed", seconds=PATIENCE)
    wait_until(lambda: states(state)["a/4"] == "removed")
    assert watching.stop() == 0
    assert not watching.events("conversion_started")

    os.rename(run / "step-2", tmp_path / "before")
    shutil.copytree(run / "step-4", run / "step-2")
    again = start(state, "--once", root, **FAST)
    assert again.end(PATIENCE) == 0
    assert sorted(said["step"] for said in again.events("conversion_succeeded")) == [2, 4]
    made = [manifest.read(run / f"step-{number}-hf") for number in (2, 4)]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].save_id == made[1].save_id, "the save of step 4 now lies in step-2 too"
    assert made[0].step == 2
    assert_case(TWO_STEPS, run / "step-4", run / "step-2-hf")


def test_a_run_that_hf_cannot_express_is_no_failure_but_nan_is(checkpoints: Path, tmp_path: Path, start: Start) -> None:
    root, state = tmp_path / "root", tmp_path / "state"
    bias, other, nan = (BY_NAME[name] for name in ("moe_bias", "torch_checkpointing", "nan"))
    shutil.copytree(bias.run(checkpoints), root / "bias")
    shutil.copytree(root / "bias/checkpoint/step-2", root / "bias/checkpoint/step-4")
    shutil.copytree(other.run(checkpoints), root / "other")
    before = tree(root)
    first = start(state, "--once", root)
    assert first.end(PATIENCE) == 0
    assert states(state) == {"bias/2": "unsupported", "bias/4": "unsupported", "other/2": "unsupported"}
    assert len(first.events("conversion_started")) == 1, "what holds for a run is tried once"
    said = {said["run"]: said for said in first.events("run_unsupported")}
    assert said.keys() == {"bias", "other"}
    assert "allow_routing_drift" in said["bias"]["hint"]
    assert tree(root) == before

    shutil.copytree(nan.run(checkpoints), root / "nan")
    second = start(state, "--once", root)
    assert second.end(PATIENCE) == 1
    (failed,) = second.events("conversion_failed")
    assert (failed["run"], failed["error"], failed["quarantined"]) == ("nan", "NonFiniteTensor", True)
    assert failed["hint"]
    assert states(state)["nan/2"] == "quarantined"
    assert ours(root) == []
    assert published(root) == {}


def test_state_beside_a_model_is_said_once_for_its_run_and_converted_once_it_is_ignored(
    checkpoints: Path, tmp_path: Path, start: Start
) -> None:
    root, state = tmp_path / "root", tmp_path / "state"
    shutil.copytree(BY_NAME["unknown_tensor"].run(checkpoints), root / "vision")
    shutil.copytree(root / "vision/checkpoint/step-2", root / "vision/checkpoint/step-4")
    first = start(state, "--once", root)
    assert first.end(PATIENCE) == 0
    assert states(state) == {"vision/2": "unsupported", "vision/4": "unsupported"}
    assert len(first.events("conversion_started")) == 1
    (said,) = first.events("run_unsupported")
    assert (said["error"], "vision_proj.weight" in said["message"]) == ("UnknownTensor", True)
    assert "`ignore_tensors`" in said["hint"]

    second = start(state, "--once", root, DCP2HF_IGNORE_TENSORS='["vision_*"]')
    assert second.end(PATIENCE) == 0
    assert states(state) == {"vision/2": "done", "vision/4": "done"}
    made = manifest.read(root / "vision/checkpoint/step-4-hf")
    assert made is not None
    assert made.accepted == {"ignored_tensors": ["vision_proj.weight"]}


def test_nothing_is_done_twice(once: Once, tmp_path: Path, start: Start) -> None:
    before = published(once.root)
    again = start(once.state, "--once", once.root)

    assert again.end(PATIENCE) == 0
    assert not again.events("conversion_started")
    assert published(once.root) == before


@pytest.mark.slow
def test_a_copy_is_converted_once_it_is_accepted(checkpoints: Path, tmp_path: Path, start: Start) -> None:
    """Slow: the converter watches an accepted copy for a minute."""
    root, state = tmp_path / "root", tmp_path / "state"
    root.mkdir()
    run = ONE_STEP.run(checkpoints)
    assert os.spawnlp(os.P_WAIT, "cp", "cp", "-r", str(run), str(root)) == 0
    step = ONE_STEP.step(root)
    make_shards_newer(step)
    daemon = start(state, root)
    said = daemon.wait_for("conversion_skipped", reason="suspect", seconds=PATIENCE)
    assert "newer than .metadata" in said["message"]
    assert said["hint"].endswith(f"dcp2hfd retry {step} --accept-copy")
    assert states(state) == {"one_rank/2": "suspect"}

    dcp2hfd("retry", step, "--accept-copy", state=state)
    daemon.wait_for("conversion_succeeded", seconds=2 * PATIENCE)
    assert daemon.stop() == 0
    assert states(state) == {"one_rank/2": "done"}
    made = manifest.read(step.with_name("step-2-hf"))
    assert made is not None
    assert made.accepted["copy"]
