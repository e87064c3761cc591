"""All four hooks with the real converter: what they add is ours from then on, NaN is told, and a stop ends what hangs."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from tests.integration.end_to_end.conftest import ONE_STEP, PATIENCE, Start, ours, published
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.daemon.running import REPOSITORY, wait_until


def test_what_hooks_add_is_published_and_up_to_date_and_nan_is_told(
    checkpoints: Path, tmp_path: Path, start: Start
) -> None:
    root, told = tmp_path / "root", tmp_path / "told"
    told.mkdir()
    shutil.copytree(ONE_STEP.checkpoint(checkpoints), root / "good")
    shutil.copytree(BY_NAME["nan"].checkpoint(checkpoints), root / "broken")
    tell = json.dumps(["sh", "-c", 'cat > "$0/$HOOK_RUN"', str(told)])
    hooks = {
        "DCP2HF_BEFORE_PUBLISH": json.dumps(["python3", str(REPOSITORY / "examples/hooks/model_card.py")]),
        "DCP2HF_SIGN": json.dumps(["sh", "-c", "echo signature > model.sig"]),
        "DCP2HF_ON_SUCCESS": tell,
        "DCP2HF_ON_FAILURE": tell,
    }
    first = start(tmp_path / "state", "--once", root, **hooks)
    assert first.end(PATIENCE) == 1
    (output,) = root.rglob("step-*-hf")
    success, failure = (json.loads((told / run).read_text()) for run in ("good", "broken"))

    assert {"README.md", "model.sig", "conversion.json"} <= {path.name for path in output.iterdir()}
    assert success["output"] == str(output)
    assert {check["verdict"] for check in success["checks"]} <= {"passed", "not run"}
    assert (failure["reason"], failure["quarantined"]) == ("non_finite", True)
    (alarm,) = first.events("non_finite_weights")
    assert (alarm["nan"], alarm["inf"], alarm["count"]) == (1, 0, 1)
    before = published(root)
    second = start(tmp_path / "other-state", "--once", root / "good", **hooks)
    assert second.end(PATIENCE) == 0
    assert second.events("conversion_skipped", reason="up_to_date")
    assert published(root) == before


def test_a_stop_ends_a_hook_that_hangs_within_ten_seconds_and_leaves_nothing(
    checkpoints: Path, tmp_path: Path, start: Start
) -> None:
    root, pid = tmp_path / "root", tmp_path / "pid"
    shutil.copytree(ONE_STEP.checkpoint(checkpoints), root / "a")
    hangs = json.dumps(
        ["sh", "-c", 'echo $$ > "$0.part"; mv "$0.part" "$0"; trap "" TERM; sleep 600; sleep 600', str(pid)]
    )
    daemon = start(tmp_path / "state", root, DCP2HF_BEFORE_PUBLISH=hangs)
    wait_until(pid.exists, PATIENCE)
    began = time.monotonic()

    assert daemon.stop() == 0
    assert time.monotonic() - began < 10
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert published(root) == {}
    assert ours(root) == []
