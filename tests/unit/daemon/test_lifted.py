"""A quarantine for a reason that is gone is lifted, by nobody's hand; it is told once, however often it is looked at again."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.daemon.running import Daemon, daemons, dcp2hfd
from tests.unit.daemon.test_service import FAST, SERVE, conversions, states

MakeRun = Callable[..., Path]
Start = Callable[..., Daemon]
SOON = {"DCP2HF_BACKOFF_MAX": "0.3", "DCP2HF_MAX_ATTEMPTS": "2", "DCP2HF_RESCAN_INTERVAL": "0.5"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with daemons() as begin:
        yield lambda **environ: begin(SERVE, tmp_path / "state", str(tmp_path / "root"), **FAST | environ)


@pytest.mark.parametrize(
    "failure",
    [
        "AssetsMissing backoff",
        "MachineFailure backoff",
        "AssetsInvalid never",
        "RunConfigUnreadable config",
    ],
)
def test_what_was_quarantined_for_a_reason_outside_of_it_is_converted_once_that_is_gone(
    failure: str, make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text(f"fail {failure}")
    daemon = start(**SOON)
    daemon.wait_for("conversion_failed", quarantined=True)
    daemon.wait_for("still_quarantined")
    assert states(tmp_path) in ({10: "quarantined"}, {10: "running"})
    (run / "behaviour").unlink()

    daemon.wait_for("conversion_succeeded")
    assert states(tmp_path) == {10: "done"}
    assert len(daemon.events("conversion_failed", quarantined=True)) == 1, "told once"


def test_a_quarantine_that_is_looked_at_again_is_told_to_a_hook_once(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run, told = make_run("a", 10), tmp_path / "told"
    (run / "behaviour").write_text("fail AssetsMissing backoff")
    hook = json.dumps(["/bin/sh", "-c", f"cat >> {told}"])
    daemon = start(**SOON, DCP2HF_ON_FAILURE=hook)
    daemon.wait_for("still_quarantined", count=2)

    said = [json.loads(line) for line in told.read_text().splitlines()]
    assert [call["reason"] for call in said] == ["failed", "quarantined"]


def test_another_run_config_lifts_what_the_run_was_quarantined_for_at_once(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("fail TiedWeightsDiffer never")
    daemon = start(DCP2HF_RESCAN_INTERVAL="0.5")
    daemon.wait_for("conversion_failed", quarantined=True)
    (run / "behaviour").unlink()
    said = json.loads((run / "config.json").read_text())
    said["training"]["seq_len"] = 256
    (run / "config.json").write_text(json.dumps(said))

    assert daemon.wait_for("quarantine_lifted")["steps"] == 1
    daemon.wait_for("conversion_succeeded")


def test_a_run_config_that_is_written_anew_and_says_the_same_lifts_nothing(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour").write_text("fail TiedWeightsDiffer never")
    daemon = start(DCP2HF_RESCAN_INTERVAL="0.5")
    daemon.wait_for("conversion_failed", quarantined=True)
    text = (run / "config.json").read_text()
    for other in (text + " ", json.dumps(json.loads(text) | {"comment": "the same"}), "{", text):
        (run / "config.json").write_text(other)
        time.sleep(1.2)

    assert not daemon.events("quarantine_lifted")
    assert conversions(run) == ["step-10"]


def test_what_is_wrong_with_the_step_itself_is_not_tried_again_and_names_the_command_that_would(
    make_run: MakeRun, tmp_path: Path, start: Start
) -> None:
    run = make_run("a", 10)
    (run / "behaviour-step-10").write_text("fail PayloadCorrupt never")
    daemon = start(**SOON)
    failed = daemon.wait_for("conversion_failed", quarantined=True)
    command = f"dcp2hfd retry {run / 'step-10'}"
    assert failed["hint"].endswith(command)
    assert command in dcp2hfd("status", state=tmp_path / "state")
    make_run("b", 20)
    daemon.wait_for("conversion_succeeded", run="b")
    make_run("c", 30)
    daemon.wait_for("conversion_succeeded", run="c")

    assert conversions(run) == ["step-10"]
    (run / "behaviour-step-10").unlink()
    dcp2hfd("retry", run / "step-10", state=tmp_path / "state")
    daemon.wait_for("conversion_succeeded", run="a")
