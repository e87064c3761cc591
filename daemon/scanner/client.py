"""Owns the daemon's side of one root: it keeps the scanner process alive, and reports when the root is away or back."""

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from converter.common import names_on_disk
from daemon.config.settings import Settings
from daemon.host import process
from daemon.host.child import Child
from daemon.host.logs import Logger
from daemon.scanner import messages
from daemon.scanner.messages import (
    Alive,
    Begin,
    Config,
    FromScanner,
    Known,
    Look,
    Scanned,
    Scanning,
    Sweep,
    Swept,
    Unreachable,
)

RESTART_FIRST, RESTART_MOST = 1.0, 15.0
"""Seconds between the death of a scanner and the next one: doubling."""
_HINTS = {
    os.strerror(errno.ENOENT): "is it mounted, and is `roots` right? it is taken up as soon as it is there",
    os.strerror(errno.ENOTDIR): "name a folder in `roots`: a run's checkpoint folder, or a folder of runs",
    os.strerror(errno.EACCES): "this user may not list it: its groups, the folder's mode (docs/operators.md, Rights)",
}
"""What to do about a root that cannot be listed, by the system's word for it."""


class RootWatcher:
    """Keeps a scanner of one root running and hands on what it reports."""

    def __init__(
        self,
        root: str,
        settings: Settings,
        *,
        on_message: Callable[[str, FromScanner], None],
        known: Callable[[str], Iterable[tuple[str, messages.Answer]]],
        log: Logger,
        read_only: bool = False,
        command: Sequence[str] | None = None,
    ) -> None:
        self.root = root
        self.settings = settings
        """As they hold for this root."""
        self._on_message, self._known = on_message, known
        self._log = log.bind(root=root)
        self._read_only = read_only
        self._command = list(command or process.python("daemon.scanner.process"))
        self._child: Child | None = None
        self._swept = asyncio.Event()
        self.is_reachable: bool | None = None
        """None until the first scan ended or failed."""
        self.free_bytes: int | None = None
        self.settling = 0
        self.last_scan: Scanned | None = None
        self.scanned_at: float | None = None
        """When the last scan ended, epoch seconds."""
        self.scanner_ends = 0
        """Scanners that died or were killed."""

    async def run(self) -> None:
        """Starts scanners, one after the other, until cancelled."""
        pause = RESTART_FIRST
        while True:
            started = time.monotonic()
            try:
                problem = await self._run_one()
            except Exception as error:  # a root that nobody watches must be seen, whatever the reason
                problem = f"what the scanner said could not be taken in ({type(error).__name__}: {error})"
            self.scanner_ends += 1
            self._unreachable(problem)
            pause = RESTART_FIRST if time.monotonic() - started > 600.0 else min(pause * 2, RESTART_MOST)
            await asyncio.sleep(pause)

    def look(self, path: str, *, is_known: bool = False) -> None:
        """Asks for a step or a run to be looked at and reported again; `is_known`: only reported."""
        self._send(Look(path=path, is_known=is_known))

    async def sweep(self, folder: str, *, timeout: float) -> None:
        """Has removed what a killed worker left in `folder`; gives up after `timeout` seconds."""
        self._swept.clear()
        self._send(Sweep(folder=folder))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._swept.wait()

    async def _run_one(self) -> str:
        """One scanner's life; returns why it ended. Kills it when it says nothing for too long."""
        try:
            child = await Child.start(self._command, stdin=True)
        except OSError as error:
            return f"the scanner cannot be started: {error}"
        errors: list[str] = []
        listener = asyncio.create_task(_listen(child, errors))
        silence = self.settings.scan_deadline + self.settings.poll_interval
        problem = ""
        try:
            await self._begin(child, silence)
            self._child = child
            lines = child.stdout
            while True:
                async with asyncio.timeout(silence):
                    line = await anext(lines, None)
                if line is None:
                    break
                self._receive(messages.from_scanner(line))
        except TimeoutError:
            problem = f"no answer for {silence:.0f} s: the file system hangs"
        except msgspec.MsgspecError as error:
            problem = f"the scanner said something unreadable: {error}"
        finally:
            self._child = None
            gone = await child.end(0)
            if not gone:
                self._log.warning(
                    "scanner_abandoned", pid=child.pid, message="it cannot be killed: it waits for the file system"
                )
            listener.cancel()
        return problem or f"the scanner ended with exit code {child.returncode}{': ' + errors[-1] if errors else ''}"

    async def _begin(self, child: Child, silence: float) -> None:
        s = self.settings
        config = Config(
            root=self.root,
            max_depth=s.max_depth,
            poll_interval=s.poll_interval,
            rescan_interval=s.rescan_interval,
            observer=s.observer,
            dtype=s.dtype,
            max_shard_size=s.max_shard_size,
            logs_roots=s.logs_roots,
            run_config_names=s.run_config_names,
            metadata_memory_limit=s.metadata_memory_limit,
            metadata_deadline=s.metadata_deadline,
            min_step=s.min_step,
            every=s.every,
            read_only=self._read_only,
        )
        child.write(messages.encode(config))
        async with asyncio.timeout(silence):
            for path, answer in self._known(self.root):
                child.write(messages.encode(Known(path=path, answer=answer)))
                await child.drain()
            child.write(messages.encode(Begin()))
            await child.drain()

    def _receive(self, message: FromScanner) -> None:
        match message:
            case Alive():
                return
            case Unreachable(message=why):
                self._unreachable(why)
            case Swept(folder=folder, names=names):
                self._swept.set()
                if names:
                    self._log.info("stale_removed", path=folder, names=list(names))
            case Scanning():
                self.free_bytes = message.free_bytes
            case Scanned():
                if self.last_scan is None and not message.runs:
                    what = f"no run, which is a folder with step-*, up to {self.settings.max_depth} folders below"
                    self._log.warning("root_empty", message=what, hint=_hint_of_empty(self.root))
                self.settling = message.settling
                self.last_scan, self.scanned_at = message, time.time()
                if self.is_reachable is False:
                    self._log.info("root_recovered")
                self.is_reachable = True
        self._on_message(self.root, message)

    def _unreachable(self, why: str) -> None:
        if self.is_reachable is not False:
            self._log.error(
                "root_unreachable",
                error="MachineFailure",
                message=why,
                hint=_HINTS.get(why, "look at the mount and its server; it is tried again"),
            )
        self.is_reachable = False
        self._on_message(self.root, Unreachable(message=why))

    def _send(self, message: messages.ToScanner) -> None:
        if self._child is not None:
            self._child.write(messages.encode(message))


def _hint_of_empty(root: str) -> str:
    if names_on_disk.step_number(os.path.basename(root)) is not None:
        return "this is a step: name the folder that holds it, or a folder of runs"
    return (
        "as it should be before the first save; else: is it mounted, is `roots` right, are runs deeper (`max_depth`)?"
    )


async def _listen(child: Child, errors: list[str]) -> None:
    """Keeps the last line of a scanner's stderr: why it died."""
    async for line in child.stderr:
        errors[:] = [line.decode(errors="replace")]
