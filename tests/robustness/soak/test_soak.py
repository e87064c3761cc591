"""A short soak with a fixed seed breaks nothing. `make soak` plays a long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.daemon.running import REPOSITORY


@pytest.mark.slow
def test_a_short_soak_breaks_nothing(checkpoints: Path, tmp_path: Path) -> None:
    """Slow: real daemons, real conversions, over a minute of it."""
    options = ["--seed=6", "--steps=12", "--pace=2", f"--place={tmp_path / 'soak'}", f"--checkpoints={checkpoints}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.robustness.soak", *options], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing broken" in done.stdout
