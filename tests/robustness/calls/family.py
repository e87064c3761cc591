"""Owns the process in which cases run: started once under the seam, it imports what is slow and forks for each case.

Run as `python -m tests.robustness.calls.family WORK` under the seam; one JSON request a line, one answer a line. A request names a
function `module:name` and its arguments. No thread runs where it forks, so a child may do anything.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.robustness.calls.seam import Seam, environment

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE = 120.0
"""Seconds after which a case hangs."""
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}


class Family:
    """A process that answers, from the side of the tests; a context manager."""

    def __init__(self, library: Path, work: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DCP2HF_")}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.calls.family", str(work)], cwd=REPOSITORY, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept | _QUIET | environment(library) | {"SEAM_LIBRARY": str(library)},
        )  # fmt: skip

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()

    def ask(self, function: str, **arguments: Any) -> Any:
        """What `function(seam, work, **arguments)` answers there."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([function, arguments]) + "\n")
        answer = json.loads(self._child.stdout.readline() or '{"raised": "the family died"}')
        if "raised" in answer:
            raise AssertionError(answer["raised"])
        return answer["answer"]


def fork(task: Callable[[], Any]) -> Any:
    """What `task` answers in a process of its own: JSON, or {"died": signal} or {"raised": traceback}."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        try:
            said = json.dumps(task())
        except BaseException:
            said = json.dumps({"raised": traceback.format_exc()})
        os.write(writable, said.encode())
        os._exit(0)
    os.close(writable)
    said = b""
    ends = time.monotonic() + PATIENCE
    hangs = False
    while True:
        if not select.select([readable], [], [], max(0.0, ends - time.monotonic()))[0]:
            hangs = True
            os.kill(child, signal.SIGKILL)
            break
        part = os.read(readable, 1 << 16)
        if not part:
            break
        said += part
    os.close(readable)
    _, status = os.waitpid(child, 0)
    if hangs:
        return {"raised": f"no end within {PATIENCE:.0f} s"}
    return json.loads(said) if said else {"died": os.waitstatus_to_exitcode(status)}


def main() -> int:
    """Answers requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    seam, work = Seam(), Path(sys.argv[1])
    for line in sys.stdin:
        name, arguments = json.loads(line)
        module, _, function = name.partition(":")
        try:
            answer = {"answer": getattr(importlib.import_module(module), function)(seam, work, **arguments)}
        except BaseException:
            answer = {"raised": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
