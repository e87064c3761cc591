"""systemd is told the truth, through a real datagram socket, and nobody where there is none."""

import os
import socket
from pathlib import Path

import pytest

from daemon.systemd import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(5)
    return manager


def test_states_reach_the_socket(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("2 roots")
    notifier.alive()
    notifier.stopping()

    assert [manager.recv(1000).decode().split("\n")[0] for _ in range(3)] == ["READY=1", "WATCHDOG=1", "STOPPING=1"]


def test_a_reload_says_when_it_began(manager: socket.socket) -> None:
    Notifier({"NOTIFY_SOCKET": manager.getsockname()}).reloading()

    reloading, since = manager.recv(1000).decode().split("\n")
    assert reloading == "RELOADING=1"
    assert int(since.removeprefix("MONOTONIC_USEC=")) > 0


def test_an_abstract_socket_is_reached_too() -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(f"\0dcp2hf-test-{os.getpid()}")
    Notifier({"NOTIFY_SOCKET": f"@dcp2hf-test-{os.getpid()}"}).alive()

    assert manager.recv(100) == b"WATCHDOG=1"


def test_the_watchdog_is_served_twice_in_its_time_and_only_if_it_is_ours() -> None:
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_interval == 15.0
    assert Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog_interval == 0.0
    assert Notifier({}).watchdog_interval == 0.0


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).ready("x")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("x")
