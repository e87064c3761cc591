"""Owns the wheel, and an environment of its own in which it is installed, for the session."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.labs import wheel as wheels


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return wheels.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def prefix(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, to be left as it is."""
    made = environment(tmp_path_factory.mktemp("prefix") / "dcp2hf")
    pip(made, "install", "--no-deps", "--no-index", str(wheel))
    return made


def environment(prefix: Path) -> Path:
    """A new virtual environment; the packages of the one that runs the tests come after its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    (own,) = prefix.glob("lib/python3*/site-packages")
    (own / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return prefix


def pip(prefix: Path, *arguments: str) -> None:
    """Our pip, working on another environment."""
    command = [sys.executable, "-m", "pip", "--python", str(prefix / "bin/python"), "--quiet"]
    subprocess.run([*command, *arguments], check=True)
