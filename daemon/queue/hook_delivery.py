"""Owns the running calls of `on_success` and `on_failure`: a few at a time, each with a timeout, repeated if it failed.

They run in parallel with conversions and delay none. If this process dies before a call has ended, the next process
makes the call again (`outbox`). So each call is made at least once, always with the same key.
"""

import asyncio
import collections
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable

from converter.common import hook_command
from daemon.config import units
from daemon.config.settings import Settings
from daemon.host import process
from daemon.host.child import Child
from daemon.host.logs import Logger
from daemon.ledger.ledger import Ledger
from daemon.ledger.outbox import DAY, Delivery
from daemon.rules import schedule

MOST = 4
"""Calls at the same time."""
MOST_OF_A_ROOT = 2
"""… for the same root: one whose hook hangs leaves the others some."""
MOST_TRIES = 12
"""With the default pauses, these last six hours."""
STOP_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL."""
LOOK = 0.2
"""Seconds between two looks at whether a command has ended."""


class Deliveries:
    """What waits in the outbox, and what runs of it; with `once` each is tried once."""

    def __init__(
        self,
        ledger: Ledger,
        log: Logger,
        *,
        settings_of: Callable[[str], Settings],
        once: bool,
        wake: Callable[[], None],
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._ledger, self._log = ledger, log
        self._settings_of, self._once, self._wake = settings_of, once, wake
        self._clock, self._jitter = clock, jitter
        self._running: dict[str, tuple[Delivery, asyncio.Task[None]]] = {}
        self._stop = asyncio.Event()
        self._tried: set[str] = set()
        self._forgot = float("-inf")

    def start_due(self, roots: tuple[str, ...], now: float) -> None:
        """Starts what is due below `roots`, as far as there is room for it."""
        if not 0 <= now - self._forgot <= DAY:
            self._forgot = now
            self._ledger.forget_old(now)
        busy = collections.Counter(delivery.root for delivery, _ in self._running.values())
        for waiting in self._due(roots, now):
            if busy.total() >= MOST:
                return
            if busy[waiting.root] >= MOST_OF_A_ROOT or (delivery := self._ledger.claim(waiting)) is None:
                continue
            settings = self._settings_of(delivery.root)
            if not getattr(settings, delivery.hook):
                self._ledger.end_delivery(delivery, "dropped", now)
                continue
            busy[delivery.root] += 1
            self._tried.add(delivery.key)
            task = asyncio.create_task(self._deliver(delivery, settings))
            self._running[delivery.key] = (delivery, task)

    def is_busy(self, roots: tuple[str, ...], now: float) -> bool:
        """Whether anything runs, or would be started next."""
        return bool(self._running or self._due(roots, now))

    async def stop(self) -> None:
        """Ends what runs, within `STOP_GRACE` and a little; it is told again by whoever comes next."""
        self._stop.set()
        if self._running:
            await asyncio.wait([task for _, task in self._running.values()], timeout=STOP_GRACE + 2.5)

    def _due(self, roots: tuple[str, ...], now: float) -> list[Delivery]:
        found = self._ledger.due(roots, now)
        taken = self._tried if self._once else self._running.keys()
        return [delivery for delivery in found if delivery.key not in taken]

    async def _deliver(self, delivery: Delivery, settings: Settings) -> None:
        began = time.monotonic()
        try:
            problem, hint = await self._call(delivery, settings)
            now = self._clock()
            about = {name: delivery.facts.get(name) for name in ("root", "run", "step", "path")}
            log = self._log.bind(**about, hook=delivery.hook, key=delivery.key, tries=delivery.tries)
            seconds = round(time.monotonic() - began, 3)
            if problem is None:
                self._ledger.end_delivery(delivery, "delivered", now)
                log.info("hook_delivered", reason=delivery.facts.get("reason"), seconds=seconds)
            elif self._stop.is_set():
                self._ledger.put_back(delivery, now=now, not_before=now, counts=False)
            elif delivery.tries >= MOST_TRIES:
                self._ledger.end_delivery(delivery, "given_up", now)
                log.error("hook_given_up", message=problem, hint=hint, seconds=seconds)
            else:
                again = now + schedule.backoff(delivery.tries, settings, self._jitter())
                self._ledger.put_back(delivery, now=now, not_before=again)
                log.warning("hook_failed", message=problem, hint=hint, retry_at=units.utc(again), seconds=seconds)
        finally:
            del self._running[delivery.key]
            self._wake()

    async def _call(self, delivery: Delivery, settings: Settings) -> tuple[str | None, str]:
        """(what went wrong, what to know of it) of one call; None: it ended with 0."""
        argv = list(getattr(settings, delivery.hook))
        facts = delivery.facts | {"try": delivery.tries}
        environ = hook_command.hook_environment(facts, os.environ)

        def prepare() -> None:
            process.die_with_parent(signal.SIGKILL)
            process.lower_priority(settings.nice)

        try:
            child = await Child.start(argv, stdin=True, prepare=prepare, environ=environ)
        except (OSError, ValueError) as error:
            return f"the command cannot be started: {error}", "see that it is there and may be run"
        child.write(hook_command.to_stdin(facts).rstrip())
        child.end_input()
        said = bytearray()
        readers = [asyncio.create_task(_keep_end(lines, said)) for lines in (child.stdout, child.stderr)]
        try:
            ended = await self._wait(child, settings.hook_timeout)
            await child.end(0 if ended else STOP_GRACE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()
        words = hook_command.last_words(bytes(said), argv, environ)
        hint = f"the command printed at its end: {words}" if words else "the command printed nothing"
        if not ended:
            return f"the command did not end within {settings.hook_timeout:g} s", hint
        code = child.returncode or 0
        if code < 0:
            return f"the command was ended by {signal.Signals(-code).name}", hint
        return (f"the command ended with exit code {code}" if code else None), hint

    async def _wait(self, child: Child, seconds: float) -> bool:
        """Whether it ended by itself: within its time, and before a stop."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while child.returncode is None:
            if self._stop.is_set() or loop.time() > ends:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._stop.wait()
        return True


async def _keep_end(lines: AsyncIterator[bytes], kept: bytearray) -> None:
    async for line in lines:
        kept += line + b"\n"
        del kept[: -hook_command.LAST_BYTES]
