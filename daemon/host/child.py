"""Owns a running child process: its process group, the lines to and from it, and its reliable end."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping

from daemon.host.process import environment

MAX_LINE = 1 << 16
"""Bytes of a line that are kept together."""


class Child:
    """A running process in its own group. Whoever starts one calls `end`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(
        cls,
        argv: list[str],
        *,
        stdin: bool = False,
        prepare: Callable[[], None] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> "Child":
        """Starts `argv` in `/`; `prepare` runs in the child before it, `environ` is ours unless given. Raises OSError."""
        return cls(
            await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd="/",
                env=environment() if environ is None else environ,
                start_new_session=True,
                preexec_fn=prepare,
            )
        )

    @property
    def stdout(self) -> AsyncIterator[bytes]:
        """Its lines, without line ends; cut at 64 KiB."""
        assert self._process.stdout is not None
        return _lines(self._process.stdout)

    @property
    def stderr(self) -> AsyncIterator[bytes]:
        """Its lines, without line ends; cut at 64 KiB."""
        assert self._process.stderr is not None
        return _lines(self._process.stderr)

    def write(self, line: bytes) -> None:
        """Sends a line to its stdin; one that is gone, or reads no more, shows elsewhere."""
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(line + b"\n")

    def end_input(self) -> None:
        """Nothing more is sent: its stdin ends once it has read what was."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def drain(self) -> None:
        """Waits until its stdin takes more."""
        if self._process.stdin is not None:
            with contextlib.suppress(ConnectionError):
                await self._process.stdin.drain()

    @property
    def returncode(self) -> int | None:
        """Its exit code once it ended; negative: the signal that ended it."""
        return self._process.returncode

    def signal_group(self, sig: signal.Signals) -> None:
        """Sends `sig` to it and all it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, sig)

    async def end(self, grace: float) -> bool:
        """SIGTERM to the group, SIGKILL after `grace` seconds. False: it could not be killed (state D) and is left."""
        if self.returncode is None and grace > 0:
            self.signal_group(signal.SIGTERM)
            await self._ended_within(grace)
        killed = self.returncode is None
        self.signal_group(signal.SIGKILL)
        return not killed or await self._ended_within(1.0)

    async def _ended_within(self, seconds: float) -> bool:
        # Not Process.wait: in Python 3.11 it also waits for the pipes, which a grandchild may hold open.
        ends = asyncio.get_running_loop().time() + seconds
        while self.returncode is None and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(0.02)
        return self.returncode is not None


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a stream that may hold anything: what is longer than 64 KiB comes in pieces."""
    rest = b""
    while block := await stream.read(MAX_LINE):
        *complete, rest = (rest + block).split(b"\n")
        for line in complete:
            yield line
        if len(rest) >= MAX_LINE:
            yield rest
            rest = b""
    if rest:
        yield rest
