"""Owns what a machine's conversions are compared with: the same step converted on this host, by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.checkpoints.cases import Case
from tests.unit.daemon.running import REPOSITORY, clean


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def converted_here(case: Case, checkpoints: Path, output: Path, number: int | None = None) -> dict[str, bytes]:
    """What `dcp2hf convert` publishes of a step of `case`, the manifest with every check included."""
    step = case.step(checkpoints, number)
    command = [sys.executable, "-m", "converter", "convert", "--dcp-path", step, "--output", output]
    subprocess.run(command, env=clean({}), cwd=REPOSITORY, check=True, capture_output=True)
    return contents(output / f"{step.name}-hf")
