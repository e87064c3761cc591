"""systemd is told the truth, through a real datagram socket, and nobody where there is none."""

import os
import socket
from pathlib import Path

import pytest

from daemon.host.systemd import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(5)
    return manager


def test_a_loop_says_that_it_is_ready_once_that_it_lives_as_often_as_wanted_and_each_other_status(
    manager: socket.socket,
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "60000000"})
    for ready, status in ((False, "begins"), (True, "2 roots"), (True, "2 roots"), (True, "1 root")):
        notifier.turn(ready=ready, status=status)
    notifier.stopping()

    said = [manager.recv(1000).decode().replace("\n", " ") for _ in range(5)]
    assert said == [
        "WATCHDOG=1",
        "READY=1 STATUS=2 roots",
        "STATUS=2 roots",
        "STATUS=1 root",
        "STOPPING=1 STATUS=stopping",
    ]


def test_a_reload_says_when_it_began(manager: socket.socket) -> None:
    Notifier({"NOTIFY_SOCKET": manager.getsockname()}).reloading()

    reloading, since = manager.recv(1000).decode().split("\n")
    assert reloading == "RELOADING=1"
    assert int(since.removeprefix("MONOTONIC_USEC=")) > 0


def test_an_abstract_socket_is_reached_too() -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(f"\0dcp2hf-test-{os.getpid()}")
    Notifier({"NOTIFY_SOCKET": f"@dcp2hf-test-{os.getpid()}"}).reloading()

    assert manager.recv(100).startswith(b"RELOADING=1")


def test_the_watchdog_is_served_twice_in_its_time_and_only_if_it_is_ours() -> None:
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_interval == 15.0
    assert Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog_interval == 0.0
    assert Notifier({}).watchdog_interval == 0.0


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).ready("x")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("x")
