"""`--version` tells two builds of one version apart, on both commands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def said(folder: Path, package: str) -> str:
    command = [sys.executable, "-m", package, "--version"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("package", "command"), [("converter", "dcp2hf"), ("daemon", "dcp2hfd")])
def test_another_build_of_the_same_version_is_told_apart(package: str, command: str, tmp_path: Path) -> None:
    for name in ("converter", "daemon"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    first = said(tmp_path, package)
    assert re.fullmatch(rf"{command} .+ \(build [0-9a-f]{{12}}\)\n", first)
    assert said(tmp_path, package) == first == said(REPOSITORY, package), "the same sources, the same build"
    with (tmp_path / "daemon" / "service.py").open("a") as file:
        file.write("# another build\n")
    second = said(tmp_path, package)

    assert second.partition(" (")[0] == first.partition(" (")[0]
    assert second != first
