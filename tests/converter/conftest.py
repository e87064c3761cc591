"""Owns what the converter's tests share: conversions in this process, and private copies of base assets to change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.build.cases import Case
from tests.converter.running import Convert, Refused


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
