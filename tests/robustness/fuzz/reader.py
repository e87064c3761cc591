"""Owns a light process that forks `converter.checkpoint.probe.main` for each step: the house's limits without its start of 60 ms.

Run as `python -P -m tests.robustness.fuzz.reader`: one JSON list of arguments a line on stdin, one JSON object a line on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Read:
    """How one reading ended."""

    code: int
    """As subprocess.Popen.returncode."""
    out: bytes
    err: bytes
    seconds: float
    """Of processor time."""
    memory: int
    """Bytes that were resident at most."""


class Reader:
    """The process; a context manager."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.robustness.fuzz.reader"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(_REPOSITORY)},
        )  # fmt: skip

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(10)

    def read(self, *arguments: str) -> Read:
        """`python -m converter.checkpoint.probe ARGUMENTS`."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(arguments).encode() + b"\n")
        self._child.stdin.flush()
        said: dict[str, Any] = json.loads(self._child.stdout.readline())
        return Read(**said | {"out": bytes.fromhex(said["out"]), "err": bytes.fromhex(said["err"])})


def _forked(arguments: list[str]) -> dict[str, Any]:
    from converter.checkpoint import probe

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            code = 1
            try:
                code = probe.main(arguments)
                sys.stdout.flush()
            except BaseException as error:  # as the interpreter itself says it
                sys.excepthook(type(error), error, error.__traceback__)
                sys.stderr.flush()
            os._exit(code)
        _, status, used = os.wait4(pid, 0)
        out.seek(0)
        err.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status), "out": out.read().hex(), "err": err.read().hex(),
            "seconds": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss << 10,
        }  # fmt: skip


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line))), flush=True)
