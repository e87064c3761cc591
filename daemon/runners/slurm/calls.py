"""Owns the calls of other programs: each has its own process group, our own timeout, and a reliable end.

Slurm's commands wait for 9 s to a minute if the controller does not answer, and for ever if a file system hangs.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from typing import NamedTuple

from daemon.host import process

LIMIT = 30.0
"""Seconds."""
_REAP = 1.0
"""Seconds that a program which was killed may take to be gone."""


class CommandResult(NamedTuple):
    """What a program said."""

    code: int | None
    """Its exit code; None where it could not be started, or was ended for its time."""
    output: bytes
    message: str
    """What went wrong: the end of its stderr, or why there is none."""


async def call(
    argv: list[str], environ: Mapping[str, str], *, stdin: bytes = b"", limit: float = LIMIT
) -> CommandResult:
    """Runs a program in `/`; it dies with this process. Raises nothing expected."""
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            env=environ,
            start_new_session=True,
            preexec_fn=_prepare,
        )
    except OSError as error:
        return CommandResult(None, b"", f"{argv[0]} cannot be started: {error}")
    try:
        async with asyncio.timeout(limit):
            output, errors = await child.communicate(stdin)
    except TimeoutError:
        return CommandResult(None, b"", f"{argv[0]} did not end within {limit:g} s")
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REAP):  # one that waits for a file system cannot be killed
                    await child.wait()
    lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return CommandResult(child.returncode, output, " | ".join(lines)[-500:] or f"exit code {child.returncode}")


def _prepare() -> None:
    process.die_with_parent(signal.SIGKILL)
