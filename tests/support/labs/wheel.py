"""Owns wheels of this checkout: as it is, or as a later release would be. Built in a copy, which leaves the checkout clean."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
_PARTS = ("converter", "daemon", "docs", "examples", "share", "systemd")
_FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE")
_MIGRATION = '    "CREATE TABLE of_the_next_release (id INTEGER PRIMARY KEY);",\n'


def build(folder: Path, *, version: str | None = None) -> Path:
    """The wheel, made in `folder` (empty), with constraints.txt beside it as a release has it.

    With a `version` it is the release of that number: the same program, whose ledger has one migration more.
    """
    source = folder / "source"
    for name in _PARTS:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "examples/hooks/__pycache__").mkdir()  # as in a checkout in which tests were run
    for name in _FILES:
        shutil.copy(REPOSITORY / name, source / name)
    if version:
        _edit(source / "pyproject.toml", r'(?m)^version = ".*"$', f'version = "{version}"')
        _edit(source / "daemon/ledger/database.py", r"(?s)(\nMIGRATIONS = \(.*?\n)\)", rf"\g<1>{_MIGRATION})")
    # With the running environment's setuptools, which torch brings: no registry is asked.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True, capture_output=True)
    shutil.rmtree(source)
    shutil.copy(REPOSITORY / "constraints.txt", folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _edit(path: Path, pattern: str, text: str) -> None:
    edited, count = re.subn(pattern, text, path.read_text())
    assert count == 1, f"{pattern} is there {count} times in {path}"
    path.write_text(edited)
