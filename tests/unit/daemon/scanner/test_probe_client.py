"""A step is looked into by a small process whose memory and time are limited; what it cannot say is said for it."""

import pickle
import shutil
import sys
import time
from pathlib import Path

import pytest

from converter.common.metadata_limits import Limits
from daemon.host import process
from daemon.scanner.messages import Answer
from daemon.scanner.probe_client import ProbeError, probe_step

MEMORY = 512 << 20
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))"
"""As the real process limits itself."""


def look(path: Path, *, code: str | None = None, seconds: float = 30.0, memory: int = MEMORY) -> Answer:
    """Probes for real, or with a stand-in process that runs `code` (for what a real one does only by accident)."""
    command = process.python("converter.checkpoint.probe") if code is None else [sys.executable, "-c", code]
    return probe_step(str(path), metadata_size=1000, limits=Limits(memory, seconds), beat=lambda: None, command=command)


def test_a_real_step_is_complete_with_what_estimates_need(saved: Path) -> None:
    answer = look(saved / "step-10")

    assert (answer.state, answer.model_elements, answer.format) == ("complete", 64 * 16, "dcp")
    assert answer.save_id
    assert answer.largest_item > 64 * 16 * 4
    assert answer.fingerprint


def test_a_bomb_is_damaged_within_the_limits_and_the_key_is_named(tmp_path: Path) -> None:
    """LONG_BINPUT with a huge index: nine bytes that ask for gigabytes."""
    step = tmp_path / "step-1"
    step.mkdir()
    (step / ".metadata").write_bytes(b"\x80\x04Nr" + (200_000_000).to_bytes(4, "little") + b".")

    answer = look(step)
    assert (answer.state, answer.error) == ("damaged", "MetadataLimit"), "it may be honest and large"
    assert "--metadata-memory-limit" in answer.hint


def test_nothing_that_a_step_names_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path}/ran",)

    step = tmp_path / "step-1"
    step.mkdir()
    (step / ".metadata").write_bytes(pickle.dumps(Evil()))

    assert look(step).error == "HostileCheckpoint"
    assert not (tmp_path / "ran").exists()


def test_nothing_that_lies_beside_a_step_is_imported(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Path(shutil.copytree(saved / "step-10", tmp_path / "step-10"))
    for folder in (tmp_path, step):
        (folder / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(step)
    monkeypatch.setenv("PYTHONPATH", str(step))
    look(step)

    assert not (tmp_path / "ran").exists()


def test_one_that_computes_for_too_long_is_damaged_and_the_key_is_named(tmp_path: Path) -> None:
    answer = look(tmp_path, code=f"{LIMIT}; exec('while True: pass')", seconds=1.0)

    assert (answer.state, answer.error) == ("damaged", "MetadataLimit")
    assert "metadata_deadline" in answer.hint


def test_one_that_waits_for_the_file_system_says_nothing_about_the_step(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="the file system is slow"):
        look(tmp_path, code="import time; time.sleep(60)", seconds=1.0)


def test_one_that_dies_for_want_of_memory_is_damaged_and_the_key_is_named(tmp_path: Path) -> None:
    answer = look(tmp_path, code="raise MemoryError")

    assert answer.state == "damaged"
    assert "metadata_memory_limit" in answer.hint


def test_one_that_cannot_run_says_nothing_about_the_step(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="No module named 'nowhere'"):
        look(tmp_path, code="import nowhere")


def test_signs_of_life_are_given_while_it_is_waited_for(tmp_path: Path) -> None:
    beats: list[float] = []
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(ProbeError):
        probe_step(
            str(tmp_path),
            metadata_size=0,
            limits=Limits(MEMORY, 1.0),
            beat=lambda: beats.append(time.monotonic()),
            command=sleeps,
        )

    assert len(beats) >= 3


def test_one_that_the_machine_killed_says_nothing_about_the_step(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="out of memory"):
        look(tmp_path, code="import os; os.kill(os.getpid(), 9)")
