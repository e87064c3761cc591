"""Owns what the fault suite shares: conversions without processes, checkpoints made for it, and what right files are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.faults import made
from tests.robustness.faults.scene import Scene, digests, in_this_process
from tests.support.checkpoints.cases import Case


@pytest.fixture(scope="package", autouse=True)
def _here() -> Iterator[None]:
    with in_this_process():
        yield


@pytest.fixture(scope="session")
def made_checkpoints(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    for case in made.MADE.values():
        made.write(case, checkpoints, out)
    return out


@pytest.fixture(scope="session")
def place_of(checkpoints: Path, made_checkpoints: Path) -> Callable[[Case], Path]:
    """The folder that a case's paths take."""
    return lambda case: made_checkpoints if case.name in made.MADE else checkpoints


@pytest.fixture
def scene(place_of: Callable[[Case], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], Scene]:
    """`scene(case)`: a private copy of the case's last step, and its run config."""
    made: list[Scene] = []

    def make(case: Case) -> Scene:
        made.append(Scene(case, place_of(case), tmp_path / str(len(made)), monkeypatch).copy())
        return made[-1]

    return make


@pytest.fixture(scope="session")
def right(place_of: Callable[[Case], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """`right(case, dtype=…)`: digests of the files that a whole checkpoint of the case gives."""
    known: dict[Any, dict[str, str]] = {}

    def files(case: Case, **options: Any) -> dict[str, str]:
        key = (case.name, *sorted(options.items()))
        if key not in known:
            with pytest.MonkeyPatch.context() as patch:
                whole = Scene(case, place_of(case), tmp_path_factory.mktemp("right"), patch, options=dict(options))
                known[key] = digests(whole.copy().convert(forward=False))
        return known[key]

    return files
