"""Owns what all tests share: the real checkpoints, built once and kept, and private copies of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints.cache import is_current
from tests.support.checkpoints.cases import Case

_REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a folder share its machines, clusters and servers: one process runs them all (`--dist loadgroup`).

    Unit tests come first: the longest files are among them, and would leave the other process idle at the end.
    """
    items.sort(key=lambda item: "unit" not in item.path.parts)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.parent.name))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Handlers as they were: a command that is called in this process leaves signals ignored, and every child inherits that.

    SIGINT too where we were started in the background of a shell, which ignores it.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGINT] == signal.SIG_IGN:
        before[signal.SIGINT] = signal.default_int_handler
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def checkpoints(request: pytest.FixtureRequest) -> Path:
    """The folder `out` that the paths of a Case take: read only, every case built.

    In $TEST_CHECKPOINTS, else in pytest's cache folder. (No DCP2HF_ name: the daemon refuses those it does not know.)
    """
    place = os.environ.get("TEST_CHECKPOINTS")
    out = Path(place).absolute() if place else Path(request.config.cache.mkdir("checkpoints"))
    if not is_current(out):
        subprocess.run([sys.executable, "-m", "tests.support.checkpoints", str(out)], cwd=_REPOSITORY, check=True)
    return out


@pytest.fixture
def copy_run(checkpoints: Path, tmp_path: Path) -> Callable[..., Path]:
    """`copy_run(case)` makes a private copy as `cp -a` does (mtimes too) and gives the `out` for the case's paths.

    Its run config still points to the assets and tokenizer in `checkpoints`, so `case.base_assets` and
    `case.tokenizer` want that folder. `copy_run(case, to=FOLDER)` copies into another folder than `tmp_path`.
    """

    def copy(case: Case, to: Path = tmp_path) -> Path:
        shutil.copytree(case.run(checkpoints), case.run(to), symlinks=True)
        return to

    return copy


@pytest.fixture
def copy_step(checkpoints: Path, tmp_path: Path) -> Callable[..., Path]:
    """`copy_step(case, number=None)` copies one step (the last one by default) and the run config, and gives the
    step's path."""

    def copy(case: Case, number: int | None = None, to: Path = tmp_path) -> Path:
        step = case.step(to, number)
        shutil.copytree(case.step(checkpoints, number), step, symlinks=True)
        shutil.copy2(case.run_config(checkpoints), case.run_config(to))
        return step

    return copy
