"""`dcp2hf verify` of a directory that a stranger published: nothing in it is waited for, followed, or drives a terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from converter import verify
from converter.cli import verify_report
from converter.run.options import Options
from tests.robustness.faults.scene import in_this_process
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.running import Convert, InProcessProver

CopyStep = Callable[..., Path]
CASE = BY_NAME["dense_tied-0.2-2x2-bfloat16"]


@pytest.fixture(scope="module", autouse=True)
def _here() -> Iterator[None]:
    with in_this_process(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "Prover", InProcessProver)
        yield


@pytest.fixture
def published(copy_step: CopyStep, convert: Convert) -> Path:
    return convert(copy_step(CASE), forward_check="off").published


@pytest.mark.parametrize(
    "put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir], ids=["pipe", "device", "folder"]
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("against", ["step-2", "step-99"], ids=["checkpoint", "manifest"])
def test_what_is_no_file_is_a_difference(against: str, name: str, put: Callable[[Path], None], published: Path) -> None:
    (published / name).unlink()
    put(published / name)
    found = verify.verify(published.with_name(against), published, 2, Options())
    assert any(name in difference for difference in found.differences), found


def test_names_of_files_that_were_added_reach_no_terminal(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (b"a\nb", b"\x1b]0;owned\x07", b"\xff"):
        (published / os.fsdecode(name)).write_text("x")
    found = verify.verify(published.with_name("step-2"), published, 2, Options())
    assert len(found.differences) == 3
    verify_report.show_verify_result(found, published, (1, 1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
