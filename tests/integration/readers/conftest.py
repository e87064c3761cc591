"""Owns what the readers' tests share: where their environments lie, and the figures that docs/readers.md quotes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

Figures = dict[str, Any]


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest) -> Path:
    """Where environments, llama.cpp's source and its runs are kept: $TEST_READERS, else pytest's cache folder."""
    named = os.environ.get("TEST_READERS")
    return Path(named).absolute() if named else Path(request.config.cache.mkdir("readers"))


@pytest.fixture(scope="session")
def figures(place: Path) -> Iterator[Figures]:
    """What was measured, by reader and export; written to `figures.json` in `place` when the session ends."""
    measured: Figures = {}
    yield measured
    if measured:
        (place / "figures.json").write_text(json.dumps(measured, indent=2, sort_keys=True) + "\n")
