"""Owns the daemons of a soak: real ones, each with its log in the history, and what runs below them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.robustness.soak.history import History
from tests.unit.daemon.running import REPOSITORY, clean

ROLES = {
    b"-m\0converter\0convert\0": "worker",
    b"-m\0converter.prove": "prover",
    b"-m\0daemon.scanner": "scanner",
    b"-m\0converter.storage": "probe",
    b"-m\0daemon\0run\0": "daemon",
}
ANOTHER_HOST = ("unshare", "--fork", "--pid", "--kill-child", "--mount-proc")
"""Locks of a process in here name a host whose processes cannot be looked up from outside."""
STOPS_WITHIN = 10.0
"""Seconds that SIGTERM may take (shared contract, README)."""


class Daemon:
    """`dcp2hfd run` as a process of its own. `ledger` names its state_dir."""

    def __init__(self, name: str, ledger: str, place: Path, history: History, *, another_host: bool = False) -> None:
        self.name, self.ledger = name, ledger
        self._history = history
        self._asked_to_end = False
        command = [sys.executable, "-m", "daemon", "run", "--config", str(place / "dcp2hf.toml")]
        self._process = subprocess.Popen(
            [*(ANOTHER_HOST if another_host else ()), *command],
            env=clean({"DCP2HF_STATE_DIR": str(place / f"state-{ledger}")}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        self.pid = self._process.pid
        self._ready = threading.Event()
        history.record("started", daemon=name, ledger=ledger, pid=self.pid, another_host=another_host)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_errors, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, lines: IO[bytes]) -> None:
        for line in lines:
            said = json.loads(line)
            self._history.record("said", daemon=self.name, ledger=self.ledger, line=said)
            if said["event"] == "root_watched":
                self._ready.set()

    def _read_errors(self, lines: IO[bytes]) -> None:
        for line in lines:
            self._history.record("stderr", daemon=self.name, text=line.decode(errors="replace").rstrip())

    def is_running(self) -> bool:
        """Whether it runs; an end that nobody asked for is recorded."""
        code = self._process.poll()
        if code is not None and not self._asked_to_end:
            self._asked_to_end = True
            self._history.record("died", daemon=self.name, code=code)
        return code is None

    def wait_until_ready(self, seconds: float = 30.0) -> None:
        """Its signal handlers are there, a root is watched."""
        self._ready.wait(seconds)

    def stop(self) -> None:
        """SIGTERM, to the daemon itself; how long it took and what it said."""
        if not self.is_running():
            return
        self.wait_until_ready()
        self._asked_to_end = True
        began = time.monotonic()
        for pid in [pid for pid, role in self.below() if role == "daemon"] or [self.pid]:
            send(pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(3 * STOPS_WITHIN)
        seconds, code = round(time.monotonic() - began, 2), self._process.poll()
        left = [pid for pid, _ in self.below()] if code is None else []
        self.kill(record=code is None)
        self._history.record("stopped", daemon=self.name, code=code, seconds=seconds, left=left)

    def kill(self, *, tree: bool = True, record: bool = True) -> None:
        """SIGKILL, to it alone or to all that runs below it too, as a host that loses power."""
        if record:
            self._history.record("killed", role="tree" if tree else "daemon", daemon=self.name, pid=self.pid)
        self._asked_to_end = True
        below = [pid for pid, _ in self.below()] if tree else []
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        for pid in below:
            send(pid, signal.SIGKILL)
        self._process.wait()
        for reader in self._readers:
            reader.join(5.0)

    def hang_up(self) -> None:
        """SIGHUP."""
        if self.is_running():
            self.wait_until_ready()
            self._history.record("hangup", daemon=self.name)
            send(self.pid, signal.SIGHUP)

    def below(self) -> Iterator[tuple[int, str]]:
        """Process id and role of what it started, at any depth."""
        return below(self.pid)

    def sample(self) -> None:
        """Records its resident memory (kB) and how many descriptors it has open."""
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{self.pid}/status").read_text()
            kilobytes = int(status.partition("VmRSS:")[2].split()[0])
            descriptors = len(os.listdir(f"/proc/{self.pid}/fd"))
            self._history.record("sample", daemon=self.name, pid=self.pid, rss=kilobytes, fds=descriptors)


def below(pid: int) -> Iterator[tuple[int, str]]:
    """Process id and role of every descendant."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(name))
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            waiting.append(child)
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                yield child, next((role for mark, role in ROLES.items() if mark in command), "other")


def send(pid: int, sig: signal.Signals) -> bool:
    """Sends a signal to a process that may have ended meanwhile; whether it was there."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(descriptor, sig)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
