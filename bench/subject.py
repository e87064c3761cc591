"""Owns what is measured: a real checkpoint of the size asked for, built once, and the commands that convert it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent
PARAMETERS = {"debugmodel": 24e6, "0.6B": 0.6e9, "1.7B": 1.7e9, "4B": 4.0e9, "8B": 8.2e9, "moe-3b": 3.7e9}
THEIR_BYTES = 14
"""Memory that TorchTitan's conversion takes for each parameter (8.4 GB for 0.6B in float32, measured)."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint on disk."""

    size: str
    dtype: str
    """Of the checkpoint."""
    adam: bool
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.size}-{self.dtype}{'-adam' if self.adam else ''}"

    @property
    def run(self) -> Path:
        return self.folder / self.name

    @property
    def step(self) -> Path:
        return self.run / "checkpoint" / "step-2"

    @property
    def needs_disk(self) -> float:
        """Bytes: the checkpoint and three exports."""
        item = 4 if self.dtype == "float32" else 2
        return PARAMETERS[self.size] * (item * (3 if self.adam else 1) + 3 * 2) * 1.3

    @property
    def theirs_fits(self) -> bool:
        """Whether TorchTitan's conversion has the memory it takes."""
        item = THEIR_BYTES if self.dtype == "float32" else THEIR_BYTES * 0.6
        return PARAMETERS[self.size] * item < available_memory()

    def build(self) -> None:
        """Writes it if it is not there."""
        if not (self.run / "checkpoint" / "config.json").exists():
            shutil.rmtree(self.run, ignore_errors=True)
            subprocess.run(
                [sys.executable, "-m", "tests.support.checkpoints.big", self.run, "--size", self.size, "--dtype", self.dtype,
                 "--adam" if self.adam else "--no-adam", "--ranks", "4"], cwd=_REPOSITORY, check=True,
            )  # fmt: skip

    # Commands
    def ours(self, out: Path, *flags: str) -> list[str]:
        """Our whole command."""
        return [
            sys.executable, "-P", "-m", "converter", "convert", "--dcp-path", str(self.step), "--output", str(out),
            "--dtype", "bfloat16", "--events", *flags,
        ]  # fmt: skip

    def theirs(self, out: Path) -> list[str]:
        """TorchTitan's."""
        module = "bench.torchtitan_conversion"
        return [sys.executable, "-m", module, str(self.step), str(out), "--size", self.size, "--dtype", "bfloat16"]

    def export_alone(self, out: Path, threads: int) -> list[str]:
        """Our export, nothing else."""
        flags = ["--dtype", "bfloat16", "--threads", str(threads)]
        return [sys.executable, "-m", "bench.export_alone", str(self.step), str(out), *flags]

    def floor(self, out: Path, export_bytes: int, threads: int) -> list[str]:
        """The same bytes, no work."""
        flags = ["--bytes", str(export_bytes), "--threads", str(threads)]
        return [sys.executable, "-m", "bench.floor", str(self.step), str(out), *flags]


def available_memory() -> int:
    """Bytes that a new process may take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) << 10
    return 0


def cores() -> int:
    return len(os.sched_getaffinity(0))
