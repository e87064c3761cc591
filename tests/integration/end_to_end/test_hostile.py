"""The real daemon and converter as processes, started in a folder of modules that lie in wait, over a stranger's checkpoints."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.end_to_end.conftest import ONE_STEP, PATIENCE, states
from tests.integration.end_to_end.equality import assert_case
from tests.unit.daemon.running import clean

LYING = (
    "json",
    "torch",
    "numpy",
    "converter",
    "daemon",
    "transformers",
    "safetensors",
    "sqlite3",
    "sitecustomize",
    "usercustomize",
)
SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n"


class Runs:
    """Pickles as a call of `os.system`."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def lay_in_wait(folder: Path, ran: Path) -> None:
    """Modules that our processes import from elsewhere."""
    for name in LYING:
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w').close()\nraise SystemExit(99)\n")


def call(*arguments: str | Path, cwd: Path, state: Path) -> subprocess.CompletedProcess[str]:
    """A module of ours, started in `cwd`."""
    environ = clean({"DCP2HF_STATE_DIR": str(state), "HOME": str(cwd)})
    del environ["PYTHONPATH"]
    return subprocess.run(
        [sys.executable, "-P", "-m", *map(str, arguments)],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_nothing_of_a_strangers_checkpoints_is_run_imported_or_brought_to_light(
    checkpoints: Path, tmp_path: Path
) -> None:
    root, state, ran, secret = tmp_path / "root", tmp_path / "state", tmp_path / "ran", tmp_path / "id_ed25519"
    for name in ("honest", "evil", "nosy"):
        shutil.copytree(ONE_STEP.run(checkpoints), root / name)
        run = root / name / "checkpoint"
        lay_in_wait(run, ran)
        lay_in_wait(run / "step-2", ran)
    (root / "evil/checkpoint/step-2/.metadata").write_bytes(pickle.dumps(Runs(f"touch {ran}")))
    secret.write_text(SECRET)
    run = root / "nosy/checkpoint"
    said = json.loads((run / "config.json").read_text())
    said["model"]["tokenizer_override"] = str(run / "mine")
    (run / "config.json").write_text(json.dumps(said))
    (run / "mine").mkdir()
    (run / "mine/tokenizer.json").symlink_to(secret)
    cwd = root / "honest/checkpoint"

    daemon = call("daemon", "run", "--once", root, cwd=cwd, state=state)
    assert states(state) == {"honest/2": "done", "evil/2": "quarantined", "nosy/2": "quarantined"}, daemon.stderr
    assert_case(ONE_STEP, cwd / "step-2", cwd / "step-2-hf")
    by_hand = [call("converter", "convert", "--dcp-path", root / "evil/checkpoint", cwd=cwd, state=state)]
    by_hand += [
        call("converter", "inspect", root / name / "checkpoint", cwd=cwd, state=state) for name in ("evil", "honest")
    ]
    by_hand += [call("daemon", "status", cwd=cwd, state=state)]
    everything = "".join(done.stdout + done.stderr for done in (daemon, *by_hand))
    assert [done.returncode for done in by_hand] == [1, 1, 0, 0]
    assert not ran.exists()
    assert "KEY" not in everything
    assert "Traceback" not in everything
    assert all(line.isprintable() for line in everything.splitlines())
