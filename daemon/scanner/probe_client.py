"""Owns the small, limited process that reads one step (`python -P -m converter.checkpoint.probe`).

Only that process unpickles. It limits its own memory and processor time by the size of `.metadata`. A valid one of a
large run has 80 MB and takes over 1 GB to read, and nine hostile bytes can ask for 3 GB. This module limits the time
for which the process may wait. A process that takes long without computing shows nothing about the step.
"""

import json
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

import msgspec

from converter.common.metadata_limits import PATIENCE, Limits
from converter.common.text_columns import about
from daemon.host import process
from daemon.scanner.messages import Answer, answer_of


class ProbeError(Exception):
    """The step could not be looked into, and that says nothing about it: the machine failed."""


def probe_step(
    path: str,
    *,
    metadata_size: int,
    limits: Limits,
    beat: Callable[[], None],
    command: Sequence[str] = tuple(process.python("converter.checkpoint.probe")),
) -> Answer:
    """What is in the step at `path`, whose `.metadata` has `metadata_size` bytes.

    Calls `beat` while it waits. Raises ProbeError where the process did not get to run, or waited for a file system.
    """
    memory, seconds = limits.of(metadata_size)
    used_before = _processor_seconds()
    child = subprocess.Popen(
        [*command, *limits.flags(), path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=process.environment(),
    )
    out, err = _wait(child, PATIENCE * seconds, beat)
    if child.returncode == 0:
        try:
            return answer_of(json.loads(out))
        except (ValueError, msgspec.MsgspecError):
            raise ProbeError(f"the answer is not readable: {out[:200]!r}") from None
    # At RLIMIT_CPU the kernel sends SIGXCPU or, where soft and hard limit are the same, SIGKILL; so does its OOM killer.
    if child.returncode == -signal.SIGKILL and _processor_seconds() - used_before < 0.8 * seconds:
        raise ProbeError("it was killed: the machine may be out of memory")
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return _refused(f"reading .metadata took more than {seconds} s of processor time", "metadata_deadline")
    if child.returncode < 0 or b"MemoryError" in err:
        return _refused(f"reading .metadata took more than {about(memory)}", "metadata_memory_limit")
    raise ProbeError(f"exit code {child.returncode}: {err.decode(errors='replace').strip()[-300:]}")


def _wait(child: "subprocess.Popen[bytes]", seconds: float, beat: Callable[[], None]) -> tuple[bytes, bytes]:
    ends = time.monotonic() + seconds
    while True:
        try:
            return child.communicate(timeout=min(1.0, max(0.0, ends - time.monotonic())))
        except subprocess.TimeoutExpired:
            beat()
        if time.monotonic() >= ends:
            child.kill()
            try:
                child.communicate(timeout=5.0)
            except subprocess.TimeoutExpired:
                raise ProbeError("the process cannot be killed: it waits for the file system") from None
            raise ProbeError(f"no answer within {seconds:.0f} s: the file system is slow or does not answer")


def _processor_seconds() -> float:
    """What ended children used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _refused(reason: str, key: str) -> Answer:
    return Answer(
        state="damaged", error="MetadataLimit", reason=reason, hint=f"if this checkpoint is trusted, raise {key}"
    )
