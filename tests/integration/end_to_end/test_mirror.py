"""A mirror of another save over a step, cut off and run to its end: never the old tensors under the new save's id, or not for long."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from converter.checkpoint import probe
from converter.publish import manifest
from tests.integration.end_to_end.conftest import PATIENCE, Start, states
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.daemon.running import REPOSITORY, wait_until

TWO_STEPS = BY_NAME["two_steps"]
QUICK = {"DCP2HF_POLL_INTERVAL": "0.3s", "DCP2HF_RESCAN_INTERVAL": "1s", "DCP2HF_FORWARD_CHECK": "off"}


def mirror(source: Path, target: Path, *, only: str | None = None) -> None:
    """`rsync -a source/ target/`; of one that is cut off, the files in which `only` is part of the name."""
    if shutil.which("rsync"):
        which = [f"--include=*{only}*", "--exclude=*"] if only else []
        subprocess.run(["rsync", "-a", *which, f"{source}/", f"{target}/"], check=True)
        return
    for path in sorted(source.iterdir()):
        if only is None or only in path.name:
            shutil.copy2(path, target / f".{path.name}.AbC123")
            os.rename(target / f".{path.name}.AbC123", target / path.name)


@pytest.fixture
def run(checkpoints: Path, tmp_path: Path) -> Path:
    """A run with step-10, which is save A; beside the root, `b` is save B of the same model, in files as large."""
    case = TWO_STEPS.checkpoint(checkpoints)
    run = tmp_path / "root" / "run"
    run.mkdir(parents=True)
    shutil.copy2(case / "config.json", run)
    first, last = TWO_STEPS.steps[0], TWO_STEPS.steps[-1]
    b = Path(shutil.copytree(case / f"step-{last}", tmp_path / "b"))
    for path in b.iterdir():  # rsync takes files as large and of the same second for the same
        at = path.stat().st_mtime_ns + 600_000_000_000
        os.utime(path, ns=(at, at))
    shutil.copytree(case / f"step-{first}", run / "step-10")
    return run


def save_of(run: Path) -> str:
    found = manifest.read(run / "step-10-hf")
    return found.save_id if found is not None else ""


def tensors(run: Path) -> bytes:
    return (run / "step-10-hf" / "model.safetensors").read_bytes()


def tensors_of(step: Path, run: Path, folder: Path) -> bytes:
    """What the converter makes of a checkpoint by hand."""
    shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("step-*"))
    shutil.copytree(step, folder / "run" / "step-10")
    command = [
        sys.executable,
        "-m",
        "converter",
        "convert",
        "--dcp-path",
        folder / "run" / "step-10",
        "--forward-check",
        "off",
    ]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return tensors(folder / "run")


def test_a_mirror_that_was_cut_off_is_suspect_and_its_end_is_converted(run: Path, tmp_path: Path, start: Start) -> None:
    b = tmp_path / "b"
    one, other = (str(probe.probe(step)["save_id"]) for step in (run / "step-10", b))
    assert one != other
    daemon = start(tmp_path / "state", tmp_path / "root", **QUICK)
    daemon.wait_for("conversion_succeeded", seconds=PATIENCE)
    before = tensors(run)

    mirror(b, run / "step-10", only=".metadata")
    said = daemon.wait_for("conversion_skipped", reason="suspect", seconds=PATIENCE)
    assert "the save that was here before" in said["message"]
    assert (save_of(run), tensors(run)) == (one, before)

    mirror(b, run / "step-10")
    daemon.wait_for("conversion_succeeded", 2, seconds=PATIENCE)
    assert daemon.stop() == 0
    assert save_of(run) == other
    assert tensors(run) == tensors_of(b, run, tmp_path / "alone") != before
    assert states(tmp_path / "state") == {"run/10": "done"}


@pytest.mark.slow
def test_what_could_not_be_told_heals_when_the_mirror_ends(run: Path, tmp_path: Path, start: Start) -> None:
    """Nobody saw save A before: shards of an earlier save are as good as any."""
    b = tmp_path / "b"
    mirror(b, run / "step-10", only=".metadata")
    daemon = start(tmp_path / "state", tmp_path / "root", **QUICK)
    daemon.wait_for("conversion_succeeded", seconds=PATIENCE)
    wrong = tensors(run)

    mirror(b, run / "step-10")
    daemon.wait_for("step_waiting", seconds=PATIENCE)
    daemon.wait_for("conversion_succeeded", 2, seconds=PATIENCE)
    assert tensors(run) == tensors_of(b, run, tmp_path / "alone") != wrong
    assert daemon.stop() == 0


@pytest.mark.slow
def test_what_happened_while_no_daemon_ran_is_noticed_by_the_next_and_costs_one_conversion(
    run: Path, tmp_path: Path, start: Start
) -> None:
    b = tmp_path / "b"
    mirror(b, run / "step-10", only=".metadata")
    first = start(tmp_path / "state", tmp_path / "root", **QUICK)
    first.wait_for("conversion_succeeded", seconds=PATIENCE)
    assert first.stop() == 0
    mirror(b, run / "step-10")

    second = start(tmp_path / "state", tmp_path / "root", **QUICK)
    second.wait_for("conversion_succeeded", seconds=PATIENCE)
    wait_until(lambda: states(tmp_path / "state") == {"run/10": "done"}, PATIENCE)
    assert second.stop() == 0
    assert tensors(run) == tensors_of(b, run, tmp_path / "alone")
    assert start(tmp_path / "state", "--once", tmp_path / "root", **QUICK).end(PATIENCE) == 0
    assert len(second.events("conversion_started")) == 1
