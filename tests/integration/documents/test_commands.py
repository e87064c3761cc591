"""Commands that the documents show, run as they stand there, print what is shown; those not run say why."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.documents import blocks
from tests.integration.documents.blocks import REPOSITORY, Block
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.daemon.running import clean

pytestmark = pytest.mark.slow
DOCUMENTS = ("README.md", "docs/operators.md", "docs/researchers.md", "docs/contributors.md")
RUN = BY_NAME["two_steps"]
LAB = "tests/integration/systemd"
"""Where blocks of labs are run."""


def shown() -> Iterator[Block]:
    return (block for document in DOCUMENTS for block in blocks.of(document))


@pytest.fixture
def scene(checkpoints: Path, tmp_path: Path) -> Path:
    """A folder with a run of two steps, a configuration that watches it, and the commands in `bin`."""
    shutil.copytree(RUN.run(checkpoints), tmp_path / "runs/tiny-qwen3")
    (tmp_path / "dcp2hf.toml").write_text('roots = ["runs"]\nstate_dir = "state"\n')
    for command, package in (("dcp2hf", "converter"), ("dcp2hfd", "daemon")):
        program = tmp_path / "bin" / command
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {package} "$@"\n')
        program.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_shows_is_what_its_commands_print(document: str, scene: Path) -> None:
    run = [block for block in blocks.of(document) if not block.kind]
    environ = clean({"PATH": f"{scene / 'bin'}:/usr/bin:/bin", "DCP2HF_STATE_DIR": f"{scene}/state", "NO_COLOR": "1"})
    for block in run:
        for command, output in blocks.commands(block):
            said = subprocess.run(
                ["bash", "-euc", command], cwd=scene, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                check=False,
            )  # fmt: skip
            assert said.returncode == 0, f"{command}\n{said.stdout}"
            assert blocks.is_as_shown(output, said.stdout), f"$ {command}\n{said.stdout}\nis not as shown:\n{output}"


def test_every_block_for_a_lab_is_run_by_one() -> None:
    tests = "".join(path.read_text() for path in (REPOSITORY / LAB).glob("test_*.py"))
    names = [block.what for block in shown() if block.kind == "lab"]

    assert names
    assert [name for name in names if f'"{name}"' not in tests] == []


def test_no_block_of_commands_escapes_its_comment() -> None:
    for document in DOCUMENTS:
        text = (REPOSITORY / document).read_text()
        assert len(blocks.of(document)) == text.count("```bash") + text.count("```console"), document


@pytest.mark.parametrize(
    ("document", "printed", "same"),
    [
        ("a  …\n", "a b c\n", True),
        ("a …\nd\n", "a b\nc\nd\n", True),
        ("took  … s\n", "took 2.5 s\n", True),
        ("1 step\n", "2 steps\n", False),
        ("a\n", "a\nb\n", False),
    ],
)
def test_a_shown_output_stands_for_what_it_says(document: str, printed: str, same: bool) -> None:
    assert blocks.is_as_shown(document, printed) == same
