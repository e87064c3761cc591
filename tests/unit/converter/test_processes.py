"""The command as a process of its own: what it imports, how it is stopped, and that two at once do no harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.common import errors
from converter.proof import client
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.running import ours

CopyStep = Callable[..., Path]
CASE = BY_NAME["moe-0.2-2x2-bfloat16"]
COMMAND = (sys.executable, "-P", "-m", "converter")


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments), "--events"]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )


def heed_interrupts() -> None:
    """As from a terminal: whoever runs the tests in the background has a shell that ignores SIGINT for them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(process: subprocess.Popen[str], event: str) -> list[dict[str, Any]]:
    """The events up to and including the first of that name."""
    assert process.stdout is not None
    seen: list[dict[str, Any]] = []
    for line in process.stdout:
        seen.append(json.loads(line))
        if seen[-1]["event"] == event:
            return seen
    raise AssertionError((seen, process.communicate()))


def test_what_lies_in_the_current_folder_is_not_imported(copy_step: CopyStep, tmp_path: Path) -> None:
    step = copy_step(CASE)
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    for name in ("json", "torch", "numpy", "converter", "transformers", "safetensors", "sitecustomize"):
        (cwd / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\nraise SystemExit(99)\n")
    process = start("--dcp-path", step / "__0_0.distcp", cwd=cwd)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert not (tmp_path / "imported").exists()
    said = [json.loads(line) for line in out.splitlines()]
    assert said[-1]["event"] == "conversion_succeeded"
    assert {check["verdict"] for check in said[-1]["checks"]} <= {"passed", "not run"}
    assert CASE.published(tmp_path).is_dir()
    assert ours(step.parent) == []


@pytest.mark.parametrize("event", ["conversion_started", "conversion_progress"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_stopped_conversion_exits_with_130_and_leaves_nothing(
    event: str, number: signal.Signals, copy_step: CopyStep, tmp_path: Path
) -> None:
    step = copy_step(CASE)
    process = start("--dcp-path", step, cwd=tmp_path)
    wait_for(process, event)
    assert any(name.endswith(".staging") for name in ours(step.parent)) or event == "conversion_started"
    proving = children(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert sorted(path.name for path in step.parent.iterdir()) == sorted({"step-2", *CASE.config_file.split("/")[1:]})
    assert not any(Path(f"/proc/{pid}").exists() for pid in proving)


def test_two_at_once_on_one_step_wait_for_each_other_and_both_succeed(copy_step: CopyStep, tmp_path: Path) -> None:
    step = copy_step(CASE)
    one = start("--dcp-path", step, "--if-exists", "skip", cwd=tmp_path)
    wait_for(one, "conversion_started")
    other = start("--dcp-path", step, "--if-exists", "skip", cwd=tmp_path)
    wait_for(other, "waiting_for_lock")
    for process in (one, other):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        last = json.loads(out.splitlines()[-1])
        assert last["event"] == ("conversion_succeeded" if process is one else "conversion_skipped")
    assert ours(step.parent) == []


def test_a_proving_process_that_dies_is_a_failure_of_the_machine() -> None:
    with client.Prover() as asked:
        os.kill(asked._child.pid, signal.SIGKILL)
        with pytest.raises(errors.MachineFailure, match="SIGKILL"):
            asked.ask("start")


def test_a_proving_process_ends_with_its_parent() -> None:
    code = "from converter.proof.client import Prover; p = Prover(); print(p._child.pid, flush=True); p._child.wait()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5)  # it asks the kernel for this once it has begun
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the proving process outlived its parent")
