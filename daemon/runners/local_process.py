"""Owns local conversions. It alone starts one: a command line, a process group, its limits and its events.

Nothing is shared in memory. Any runner that runs the command line and passes on its event lines is equivalent.
"""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import msgspec

from converter.common.errors import Retry
from daemon.config.settings import Settings
from daemon.host import process
from daemon.host.child import Child
from daemon.ledger.records import Outcome
from daemon.runners.converter_output import ENDS, MOST_OUTPUT, event_of, outcome_of

STOP_GRACE = 6.0
"""Seconds that a conversion has to clean up after SIGTERM; systemd and users wait 10 for all of us."""


class Request(NamedTuple):
    """What is asked of one conversion, beside the settings of its root."""

    path: str
    folder: str
    """The folder in which `step-N-hf` is made."""
    accept_copy: bool = False
    overwrite: bool = False
    """What is published of this save is of other files."""
    samples: str = ""
    """The folder of the run's samples; empty: no statistics."""


def command(request: Request, settings: Settings) -> list[str]:
    """The command line of a conversion. What a key asks for is a documented flag of `dcp2hf convert`."""
    flags = [
        "--dcp-path", request.path,
        "--output", request.folder,
        "--if-exists", "overwrite" if request.overwrite else "skip",
        "--ours-only",
        "--dtype", settings.dtype,
        "--max-shard-size", str(settings.max_shard_size),
        "--forward-check", settings.forward_check,
        "--architecture", settings.architecture,
        "--metadata-memory-limit", str(settings.metadata_memory_limit),
        "--metadata-deadline", str(settings.metadata_deadline),
    ]  # fmt: skip
    if settings.threads != "auto":
        flags += ["--threads", str(settings.threads)]
    if settings.io_bandwidth_limit:
        flags += ["--io-bandwidth-limit", str(settings.io_bandwidth_limit)]
    for flag, words in (("--before-publish", settings.before_publish), ("--sign", settings.sign)):
        flags += [flag, json.dumps(words), "--hook-timeout", str(settings.hook_timeout)] if words else []
    for flag, asked in (
        ("--force", settings.overwrite_foreign),
        ("--untie", settings.untie),
        ("--allow-routing-drift", settings.allow_routing_drift),
        ("--accept-copy", request.accept_copy or settings.accept_copies),
    ):
        flags += [flag] if asked else []
    for flag, values in (
        ("--ignore-tensors", settings.ignore_tensors),
        ("--statistics", [request.samples] if request.samples else []),
        ("--hf-assets", [settings.hf_assets] if settings.hf_assets else []),
        ("--tokenizer", [settings.tokenizer] if settings.tokenizer else []),
        ("--logs-root", settings.logs_roots),
        ("--assets-root", settings.assets_roots),
        ("--path-map", [f"{old}={new}" for old, new in settings.path_map.items()]),
        ("--run-config-name", settings.run_config_names),
        ("--restrict-assets", restricted_to(settings) if settings.restrict_assets else []),
    ):
        flags += [part for value in values for part in (flag, value)]
    return process.python("converter", "convert", *flags, "--events")


def restricted_to(settings: Settings) -> list[str]:
    """The folders below which recorded asset paths may lie where strangers write checkpoints."""
    return list(dict.fromkeys([*settings.roots, *settings.assets_roots, *settings.path_map.values()]))


class LocalAttempt:
    """One conversion, from start to end."""

    def __init__(
        self,
        argv: list[str],
        settings: Settings,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_output: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._argv, self._settings = argv, settings
        self._on_event, self._on_output = on_event, on_output
        self._clock = clock
        self._progress = clock()
        self._peak_memory = 0
        self._last: dict[str, Any] = {}
        self._output: list[str] = []
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Asks it to clean up and end; its outcome is `interrupted`."""
        self._stop.set()

    def outdate(self) -> None:
        """Nothing: it looks at the step itself before it publishes."""

    async def run(self) -> Outcome:
        """Starts the conversion and waits for its end, or ends it when it makes no progress. Raises nothing expected."""
        began = self._clock()
        self._progress = began
        try:
            child = await Child.start(self._argv, prepare=self._prepare)
        except OSError as error:
            return Outcome(
                result="failed",
                error="MachineFailure",
                message=f"the converter cannot be started: {error}",
                hint="it is tried again",
            )
        readers = [asyncio.create_task(self._read(child.stdout)), asyncio.create_task(self._read_output(child.stderr))]
        try:
            ended_by = await self._watch(child, readers)
            abandoned = not await child.end(STOP_GRACE if ended_by else 0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()
        outcome = self._outcome(child.returncode, ended_by, abandoned)
        return msgspec.structs.replace(outcome, seconds=round(self._clock() - began, 3), peak_memory=self._peak_memory)

    def _prepare(self) -> None:
        """In the child, before it becomes the converter."""
        process.die_with_parent(signal.SIGTERM)
        process.lower_priority(self._settings.nice)
        process.limit_data(self._settings.memory_limit)

    async def _watch(self, child: Child, readers: list["asyncio.Task[None]"]) -> str:
        """Waits for the end; returns why it must be ended instead ("stop" or "deadline"), or ""."""
        waits: set[asyncio.Task[Any]] = {asyncio.create_task(self._stop.wait()), readers[0]}
        try:
            while child.returncode is None:
                if self._stop.is_set():
                    return "stop"
                if self._clock() - self._progress > self._settings.deadline:
                    return "deadline"
                self._peak_memory = max(self._peak_memory, process.peak_memory(child.pid))
                await asyncio.wait([w for w in waits if not w.done()], timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                if readers[0].done():
                    await asyncio.sleep(0.02)  # its end follows the end of its output
        finally:
            for wait in waits - {readers[0]}:
                wait.cancel()
        return ""

    async def _read(self, lines: AsyncIterator[bytes]) -> None:
        async for line in lines:
            event = event_of(line)
            if event is None:
                self._say(line)
                continue
            if event["event"] != "waiting_for_lock":  # of somebody who may hang, or who only pretends
                self._progress = self._clock()
            if event["event"] in ENDS:
                self._last = event
            self._on_event(event)

    async def _read_output(self, lines: AsyncIterator[bytes]) -> None:
        async for line in lines:
            self._say(line)

    def _say(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._output.append(text)
            if len(self._output) <= MOST_OUTPUT:
                self._on_output(text)
            elif len(self._output) == MOST_OUTPUT + 1:
                self._on_output("(further output of this attempt is not logged)")
            del self._output[MOST_OUTPUT + 1 : -1]

    def _outcome(self, code: int | None, ended_by: str, abandoned: bool) -> Outcome:
        killed = code is None or code < 0
        if (outcome := outcome_of(self._last, code)) is not None:
            return outcome
        if ended_by == "stop" or code == 130:
            return Outcome(result="interrupted", killed=killed)
        if ended_by == "deadline":
            message = f"no progress for {self._settings.deadline:.0f} s: killed"
            hint = "the file system may hang; raise `deadline` if it is only slow"
            if abandoned:
                message += "; it cannot be killed (it waits for the file system) and is left behind"
        elif code is not None and code < 0:
            name = signal.Signals(-code).name if -code in signal.Signals.__members__.values() else str(-code)
            message = f"the converter died of {name}"
            hint = (
                "SIGKILL is often the kernel's out-of-memory killer: see `journalctl -k`"
                if code == -signal.SIGKILL
                else "see converter_output"
            )
        else:
            message = f"the converter ended with exit code {code} and no result"
            message += f": {self._output[-1][-300:]}" if self._output else ""
            hint = "see converter_output"
        return Outcome(
            result="failed", error="MachineFailure", message=message, hint=hint, retry=Retry.BACKOFF, killed=killed
        )
