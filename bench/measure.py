"""Owns what one command costs: time, processor time, memory of all its processes together, bytes read and written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLE_EVERY = 0.02
"""Seconds between two looks at memory."""
_REPOSITORY = Path(__file__).resolve().parent.parent
_WRAPPER = """
import json, os, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
io = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
os.write(int(sys.argv[1]), json.dumps({"code": code, "cpu": used.ru_utime + used.ru_stime, "io": io}).encode())
"""
"""Runs the command and waits: what its ended children read is in its own /proc/self/io (task_io_accounting)."""


@dataclass
class Cost:
    """What one run took. Seconds and bytes."""

    wall: float
    cpu: float
    anonymous: int
    """Highest sum of anonymous memory over all its processes at one moment."""
    largest: int
    """Highest resident set of any one process."""
    read: int
    """From the disk; what the page cache gave is not in it."""
    written: int
    said: list[dict[str, Any]] = field(default_factory=list)
    """JSON lines it printed."""


def run(command: Sequence[str], *, prefix: Sequence[str] = ()) -> Cost:
    """Runs `command` (after `prefix`, such as one that enters a cgroup). Raises RuntimeError where it fails."""
    ours, theirs = os.pipe()
    environ = os.environ | {"PYTHONPATH": str(_REPOSITORY)}
    began = time.monotonic()
    child = subprocess.Popen(
        [*prefix, sys.executable, "-c", _WRAPPER, str(theirs), *command], pass_fds=[theirs], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environ, cwd="/",
    )  # fmt: skip
    os.close(theirs)
    sampler = _Sampler(child.pid)
    sampler.start()
    out, err = child.communicate()
    wall = time.monotonic() - began
    sampler.stop()
    with os.fdopen(ours) as pipe:
        told = json.loads(pipe.read() or "{}")
    if told.get("code") != 0:
        raise RuntimeError(f"{' '.join(command)}: {told or child.returncode}\n{out[-2000:]}\n{err[-4000:]}")
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    io = {name: int(value) for name, value in told["io"].items()}
    return Cost(wall, told["cpu"], sampler.anonymous, sampler.largest, io["read_bytes"], io["write_bytes"], lines)


class _Sampler(threading.Thread):
    """Looks at the memory of a process and all below it."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._over = pid, threading.Event()
        self.anonymous = self.largest = 0

    def run(self) -> None:
        while not self._over.wait(SAMPLE_EVERY):
            found = [memory(pid) for pid in family(self._pid)]
            self.anonymous = max(self.anonymous, sum(anonymous for anonymous, _ in found))
            self.largest = max(self.largest, max((resident for _, resident in found), default=0))

    def stop(self) -> None:
        self._over.set()
        self.join()


def family(pid: int) -> Iterator[int]:
    """The process and all below it that run now."""
    yield pid
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        children = [child for tid in threads for child in Path(f"/proc/{pid}/task/{tid}/children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def memory(pid: int) -> tuple[int, int]:
    """(anonymous, resident) bytes of a process; 0 of one that ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    return int(found.get("RssAnon", 0)) << 10, int(found.get("VmRSS", 0)) << 10


def make_cold(folder: Path) -> None:
    """Takes every file below `folder` out of the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def make_warm(folder: Path) -> None:
    """Reads every file below `folder`."""
    buffer = bytearray(1 << 20)
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
