"""Owns a daemon as tests run it: a process, its log as it grows, and waiting for what it says."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Our environment without settings of the daemon, and with `environ`; nothing listens unless that asks for it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DCP2HF_")}
    return kept | {"PYTHONPATH": str(REPOSITORY), "DCP2HF_METRICS_ADDRESS": ""} | environ


def dcp2hfd(*arguments: str | Path, state: Path) -> str:
    """What `dcp2hfd ARGUMENTS` prints; raises CalledProcessError unless it exits with 0."""
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments], env=clean({"DCP2HF_STATE_DIR": str(state)}), cwd=REPOSITORY, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip


class Daemon:
    """A running service and its log."""

    def __init__(self, *command: str | Path, environ: Mapping[str, str]) -> None:
        self.log: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, *command], env=clean(environ), stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(json.loads(line))

    def events(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [said for said in list(self.log) if said["event"] == event and fields.items() <= said.items()]

    def wait_for(self, event: str, count: int = 1, seconds: float = 20.0, **fields: Any) -> dict[str, Any]:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if len(found := self.events(event, **fields)) >= count:
                return found[count - 1]
            if self.process.poll() is not None:
                self._reader.join(2)
                if len(found := self.events(event, **fields)) >= count:
                    return found[count - 1]
                break
            time.sleep(0.02)
        said = "\n".join(map(json.dumps, self.log))
        raise AssertionError(f"no {event} {fields} in\n{said}\n{self.process.poll()}")

    def end(self, seconds: float = 30.0) -> int:
        code = self.process.wait(seconds)
        self._reader.join(2)
        return code

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.end()


@contextmanager
def daemons() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons, and ends those that still run."""
    started: list[Daemon] = []

    def start(*command: str | Path, **environ: str) -> Daemon:
        started.append(Daemon(*command, environ=environ))
        return started[-1]

    try:
        yield start
    finally:
        for daemon in started:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for something that no log says."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)
