"""Owns what tests of the page share: one browser, and a daemon that serves on a loopback port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.page.browser import Browser, browser, install
from tests.unit.daemon.asking import free_address
from tests.unit.daemon.conftest import make_run, saved
from tests.unit.daemon.running import Daemon, daemons

__all__ = ["make_run", "saved"]  # fixtures


@pytest.fixture(scope="session")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if reason := install():
        pytest.skip(reason)
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def address() -> str:
    return free_address()


@pytest.fixture
def serve(address: str) -> Iterator[Callable[..., Daemon]]:
    """Starts a daemon (`tests/unit/daemon/running.py`) that serves on `address`."""
    with daemons() as begin:

        def start(*command: str | Path, **environ: str) -> Daemon:
            daemon = begin(*command, DCP2HF_METRICS_ADDRESS=address, DCP2HF_POLL_INTERVAL="0.5", **environ)
            daemon.wait_for("listening")
            return daemon

        yield start
