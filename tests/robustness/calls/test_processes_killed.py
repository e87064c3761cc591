"""The real processes: `python -m converter` killed while it publishes takes its prover with it, and is made good."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converter.publish.stale_files import sweep
from tests.robustness.calls.family import REPOSITORY
from tests.robustness.calls.pool import ALL_POINTS, ROWS, Row
from tests.robustness.calls.scenarios import Place, digest, lay_out
from tests.robustness.calls.seam import Kind, Mode, Plan, environment

POINTS = {
    "the staging directory is made, the prover just started": Plan((Kind.MKDIR,), 1, mode=Mode.KILL_BEFORE),
    "before the rename that publishes": Plan((Kind.RENAME,), 1, mode=Mode.KILL_BEFORE),
    "the first file is on disk": Plan((Kind.FSYNC,), 2, mode=Mode.KILL_AFTER),
    "after the rename that publishes": Plan((Kind.RENAME,), 1, mode=Mode.KILL_AFTER),
    "the lock is removed": Plan((Kind.UNLINK,), 1, mode=Mode.KILL_AFTER),
}


def _command(place: Place) -> list[str]:
    assets, tokenizer = place.out / "base-assets", place.out / "tokenizer"
    return [
        sys.executable, "-m", "converter", "convert", "--dcp-path", str(place.step), "--hf-assets", str(assets),
        "--tokenizer", str(tokenizer),
    ]  # fmt: skip


def _provers_of(pid: int) -> list[int]:
    """Proving processes that a process with this id started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            said = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else []
        except OSError:
            continue
        if b"converter.proof.process" in said and str(pid).encode() in said:
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def right(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of what a conversion by these processes publishes."""
    place = lay_out(checkpoints, tmp_path_factory.mktemp("right") / "case")
    subprocess.run(_command(place), cwd=REPOSITORY, check=True, capture_output=True)
    return digest(place.step.with_name(place.step.name + "-hf"))


@pytest.mark.slow
@pytest.mark.parametrize("when", POINTS if ALL_POINTS else list(POINTS)[:2])
def test_a_killed_converter_leaves_no_process_and_the_next_one_makes_it_good(
    when: str, right: str, library: Path, checkpoints: Path, tmp_path: Path
) -> None:
    place, told = lay_out(checkpoints, tmp_path / "case"), tmp_path / "told"
    published = place.step.with_name(place.step.name + "-hf")
    converter = subprocess.Popen(
        _command(place), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | environment(library, place.out, POINTS[when], told),
    )  # fmt: skip
    assert converter.wait(120) == -9
    assert told.read_text()
    ends = time.monotonic() + 10
    while left := _provers_of(converter.pid):
        assert time.monotonic() < ends, left
        time.sleep(0.05)
    assert digest(published) in ("", right)
    sweep(place.step.parent)
    subprocess.run(_command(place), cwd=REPOSITORY, check=True, capture_output=True)
    assert digest(published) == right
    assert not place.ours()
    row = Row("The converter is killed", f"`python -m converter` with its real processes: {when}", 1)
    row.outcomes["no process left"] += 1
    ROWS.append(row)
