"""Owns the parent's end of the proving process (`converter.proof.process`): starts it, asks it, ends it.

Standard library only: this side never imports torch.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from converter.common import errors

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
_QUIET = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
"""One thread a model: OpenMP pools beside a busy trainer made a small product 60 times slower."""


class Prover:
    """The process that has torch; a context manager. Requests are answered in order."""

    command: ClassVar = [sys.executable, "-P", "-m", "converter.proof.process"]

    def __init__(self, progress: Callable[[int, int], None] = lambda done, total: None):
        self._progress = progress
        keep = {
            key: value
            for key, value in os.environ.items()
            if key in ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")
        }
        self._child = subprocess.Popen(
            [*self.command, str(os.getpid())], cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=keep | _OFFLINE | _QUIET | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )  # fmt: skip
        self._said: list[bytes] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._send({"do": "warm_up"})
        self._waiting = 1
        self.tools: dict[str, str] = {}

    def __enter__(self) -> "Prover":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()
        self._child.wait()
        self._listener.join(timeout=5)
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises the expected failure it answers with, MachineFailure if the process died.
        """
        if self._waiting:
            self._waiting = 0
            self.tools = self._answer()["tools"]
        self._send({"do": do} | request)
        return self._answer()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its death is told by the answer that does not come
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            said: dict[str, Any] = json.loads(line)
            if "progress" in said:
                self._progress(*said["progress"])
            elif "failed" in said:
                failed = said["failed"]
                raise getattr(errors, failed["error"])(
                    failed["message"], path=failed["path"], hint=failed["hint"], figures=failed.get("figures")
                )
            else:
                return said
        code = self._child.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._listener.join(timeout=5)
        last = b"".join(self._said)[-2000:].decode(errors="replace").strip().splitlines()
        raise errors.MachineFailure(
            f"the process that checks with torch died ({how}: {ascii(last[-1]) if last else 'it said nothing'})", path=Path(sys.executable),
            hint="if it ran out of memory, give it more; a traceback is in the debug output",
        )  # fmt: skip

    def _listen(self) -> None:
        assert self._child.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            for line in self._child.stderr:
                self._said.append(line)
                del self._said[:-50]

    @property
    def stderr(self) -> str:
        """The last lines it wrote outside its answers."""
        return b"".join(self._said).decode(errors="replace")
