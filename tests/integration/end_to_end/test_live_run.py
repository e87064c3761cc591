"""A daemon beside a run that TorchTitan's CheckpointManager saves asynchronously: every step once, none early."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from converter.checkpoint import probe
from converter.publish import manifest
from examples import demo_run, titan_model
from tests.integration.end_to_end.conftest import PATIENCE, Start, ours, published, states
from tests.integration.end_to_end.equality import assert_run
from tests.unit.daemon.running import REPOSITORY, Daemon, wait_until

PACE = {
    "inotify": {"DCP2HF_OBSERVER": "inotify", "DCP2HF_POLL_INTERVAL": "10min"},
    "polling": {"DCP2HF_OBSERVER": "polling", "DCP2HF_POLL_INTERVAL": "0.5s"},
}
"""inotify alone, and listing alone."""


@pytest.mark.parametrize(("observer", "saves"), [("inotify", 3), pytest.param("polling", 2, marks=pytest.mark.slow)])
def test_a_run_being_saved_is_converted_once_and_not_early_through_a_stop_and_a_start(
    observer: str, saves: int, tmp_path: Path, start: Start
) -> None:
    steps = [demo_run.INTERVAL * (i + 1) for i in range(saves)]
    root, state = tmp_path / "runs", tmp_path / "state"
    root.mkdir()
    run = root / demo_run.NAME / "checkpoint"
    trainer = subprocess.Popen(
        [sys.executable, REPOSITORY / "examples/demo_run.py", tmp_path, f"--steps={saves}", "--every=1"],
        stdout=subprocess.DEVNULL,
    )
    try:
        first = start(state, root, **PACE[observer])
        first.wait_for("conversion_started", step=steps[-1], seconds=PATIENCE)
        wait_until(lambda: any(name.endswith(".staging") for name in ours(root)), PATIENCE)
        began = time.monotonic()
        assert first.stop() == 0
        assert time.monotonic() - began < 10
        assert ours(root) == []
        assert trainer.wait(PATIENCE) == 0
    finally:
        trainer.kill()
        trainer.wait()
    before = published(root)
    assert len(before) == saves - 1

    second = start(state, root, **PACE[observer])
    second.wait_for("conversion_succeeded", step=steps[-1], seconds=PATIENCE)
    assert second.stop() == 0
    third = start(state, root, **PACE[observer])
    third.wait_for("root_watched")
    time.sleep(2.0)
    assert third.stop() == 0

    assert {said["observer"] for said in first.events("root_watched")} == {observer}
    assert [said["step"] for said in first.events("conversion_succeeded")] == steps[:-1]
    assert [said["step"] for said in second.events("conversion_started")] == [steps[-1]]
    assert {said["event"] for said in third.log} == {"daemon_started", "root_watched", "daemon_stopped"}
    assert not [said for daemon in (first, second) for said in daemon.events("conversion_failed")]
    for number in steps:
        assert_none_early(first, second, run / f"step-{number}")
    assert states(state) == {f"{demo_run.NAME}/{number}": "done" for number in steps}
    assert published(root).items() >= before.items(), "what was published is left alone"
    assert len(published(root)) == saves
    assert ours(root) == []


def assert_none_early(first: Daemon, second: Daemon, step: Path) -> None:
    """Started once the final `.metadata` was there, of its save, and every bit of that save was converted."""
    number = int(step.name.removeprefix("step-"))
    started = (first.events("conversion_started", step=number) + second.events("conversion_started", step=number))[0]
    written = (step / ".metadata").stat().st_mtime
    assert datetime.fromisoformat(started["timestamp"]).timestamp() >= written
    folder = step.with_name(f"{step.name}-hf")
    made = manifest.read(folder)
    assert made is not None
    assert made.save_id == started["save_id"] == probe.probe(step)["save_id"]
    architecture = demo_run.write_assets(step.parents[3] / "assets" / demo_run.NAME)
    assert_run(titan_model.model_config(architecture), step, folder)
