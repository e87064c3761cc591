"""Owns the messages to systemd: readiness, status text, watchdog (sd_notify(3); the datagram needs no library)."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends states to `$NOTIFY_SOCKET`, if there is one; says nothing and fails at nothing elsewhere."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_interval = int(environ.get("WATCHDOG_USEC", "0")) / 2e6 if ours else 0.0
        """Seconds between two signs of life (half of WatchdogSec); 0 where none is wanted."""
        self._is_ready = False
        self._last_alive = float("-inf")
        self._last_status = ""

    def send(self, *states: str) -> None:
        """States such as `READY=1`; lost where the manager is gone, which is not our failure."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            with contextlib.suppress(OSError):
                channel.sendto("\n".join(states).encode(), self._address)

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is finished."""
        self.send("READY=1", f"STATUS={status}")

    def turn(self, *, ready: bool, status: str) -> None:
        """The loop went round: says so as often as is wanted, once that it is `ready`, and then each other status."""
        now = time.monotonic()
        if ready and not self._is_ready:
            self._is_ready = True
            self.ready(status)
        if self.watchdog_interval and now - self._last_alive >= self.watchdog_interval:
            self._last_alive = now
            self.send("WATCHDOG=1")
        if self._is_ready and status != self._last_status:
            self._last_status = status
            self.send(f"STATUS={status}")

    def reloading(self) -> None:
        """The config is being read again; `ready` ends it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """A clean stop began."""
        self.send("STOPPING=1", "STATUS=stopping")
