"""Owns what the suites of failing calls share: the seam's library, the processes that fork, and the summary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.robustness.calls import survival
from tests.robustness.calls.pool import ROWS, Pool
from tests.robustness.calls.seam import build


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = build(tmp_path_factory.mktemp("seam"))
    if found is None:
        pytest.skip("there is no C compiler to build the seam with")
    return found


@pytest.fixture(scope="package")
def conversions(library: Path, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(
        library, tmp_path_factory.mktemp("conversions"), "tests.robustness.calls.conversion", checkpoints
    ) as pool:
        yield pool


@pytest.fixture(scope="module")
def scans(library: Path, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(library, tmp_path_factory.mktemp("scans"), "tests.robustness.calls.scanner", checkpoints) as pool:
        yield pool


@pytest.fixture(scope="module")
def daemons_once(library: Path, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(library, tmp_path_factory.mktemp("daemons"), "tests.robustness.calls.service", checkpoints) as pool:
        yield pool


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for row in ROWS:
        terminalreporter.write_line(f"{row.suite}, {row.situation}: {row.points} points, {survival.told(row)}")


def pytest_sessionfinish(exitstatus: int) -> None:
    if exitstatus == 0:
        survival.write(ROWS)
