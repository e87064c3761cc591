"""Owns what the converter's tests share: conversions in this process, and private copies of base assets to change."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.cli import main
from converter.convert import convert_step
from tests.support.checkpoints.cases import BY_NAME, Case
from tests.unit.converter.running import Convert, InProcessProver, Refused

TWO_STEPS = BY_NAME["two_steps"]


@pytest.fixture
def convert() -> Convert:
    return Convert()


@pytest.fixture
def refused(convert: Convert) -> Refused:
    return Refused(convert)


@pytest.fixture
def base_assets(checkpoints: Path, tmp_path: Path) -> Callable[..., Path]:
    """`base_assets(case, rope_theta=5)` makes a private copy of the case's base assets with a changed config.json."""

    def copy(case: Case, drop: tuple[str, ...] = (), **changes: Any) -> Path:
        folder = tmp_path / "base-assets"
        shutil.copytree(case.base_assets(checkpoints), folder)
        config = json.loads((folder / "config.json").read_text())
        kept = {key: value for key, value in config.items() if key not in drop}
        (folder / "config.json").write_text(json.dumps(kept | changes))
        return folder

    return copy


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.convert.convert_step", functools.partial(convert_step, prover=InProcessProver))


@pytest.fixture
def run(copy_run: Callable[..., Path]) -> Path:
    """A private run with steps 2 and 4."""
    return TWO_STEPS.checkpoint(copy_run(TWO_STEPS))


@pytest.fixture
def dcp2hf(_in_process: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, said.out, said.err

    return call
