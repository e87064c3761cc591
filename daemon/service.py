"""Owns the daemon's loop: facts of scanners, conversions, `retry` and reload, readiness and watchdog, and a clean stop.

Other modules do the work (`scanner` a root, `queue.steps` the steps, `queue.conversions` the queue). This module
connects them. Nothing in this process touches a path below a root or reads a checkpoint.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from converter.common import version
from daemon.config import units
from daemon.config.load import SettingsError
from daemon.config.settings import Settings
from daemon.host.logs import Logger
from daemon.host.systemd import Notifier
from daemon.ledger.ledger import Ledger
from daemon.ledger.mark_gone import Inventories
from daemon.ledger.records import State
from daemon.ledger.sample_folders import Samples
from daemon.queue.conversions import Conversions
from daemon.queue.hook_delivery import Deliveries
from daemon.queue.hook_events import HookEvents
from daemon.queue.log_events import News
from daemon.queue.steps import Tracker
from daemon.runners import local_process
from daemon.runners.base import Command
from daemon.runners.counters import Tally
from daemon.scanner.client import RootWatcher
from daemon.scanner.known_runs import Presence
from daemon.scanner.messages import (
    Alive,
    FromScanner,
    Gone,
    Inventory,
    Run,
    RunGone,
    Said,
    Scanned,
    Scanning,
    Started,
    Step,
    Swept,
    Unreachable,
)
from daemon.scanner.pool import Watchers
from daemon.status.health import Pulse
from daemon.status.state_view import Sources

if TYPE_CHECKING:
    from daemon.status.http_routes import Endpoints

TICK = 1.0
READY_AFTER = 10.0
"""Seconds after which the service is ready even if a root's scanner has not begun: it may hang, others go on."""
SETTLE_AT_MOST = 20.0
"""Seconds for which `--once` waits for steps that are being copied or written."""


class Service:
    """One running daemon; with `once` it ends when all is done, with `dry_run` it only says what it would do."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        log: Logger,
        *,
        once: bool = False,
        dry_run: bool = False,
        notifier: Notifier | None = None,
        reload: Callable[[], Settings] | None = None,
        command: Command = local_process.command,
        scanner: Callable[[str], list[str]] | None = None,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings, self._ledger, self._log = settings, ledger, log
        self._once, self._dry_run = once or dry_run, dry_run
        self._notifier = notifier or Notifier({})
        self._reload = reload
        self._scanner = scanner
        self._clock = clock
        self._watchers = Watchers(self._watcher, self._on_root_left)
        news = self._news = News(ledger, log, once=self._once)
        self._inventories = Inventories(ledger, lambda root: self._settings_for(root).max_depth)
        self._tally, self._presence, self._pulse, self._samples = (
            Tally(),
            Presence(),
            Pulse(),
            Samples(ledger, clock=clock),
        )
        hooks = HookEvents(ledger, settings_of=self._settings_for, clock=clock)
        self._deliveries = Deliveries(
            ledger,
            log,
            settings_of=self._settings_for,
            once=self._once,
            wake=lambda: self._wake.set(),
            clock=clock,
            jitter=jitter,
        )
        self._tracker = Tracker(
            ledger, log, news, hooks, settings_of=self._watchers.settings_of, once=self._once, clock=clock,
            report=partial(self._watchers.look_again, is_known=True),
        )  # fmt: skip
        self._conversions = Conversions(
            self._tracker,
            ledger,
            log,
            news,
            hooks,
            samples=self._samples,
            tally=self._tally,
            watchers=self._watchers,
            once=self._once,
            wake=lambda: self._wake.set(),
            command=command,
            clock=clock,
            jitter=jitter,
        )
        self._sources = Sources(
            lambda: self._settings, ledger, self._watchers, self._tracker, self._conversions,
            self._tally, self._presence, self._pulse,
        )  # fmt: skip
        self._endpoints: Endpoints | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._is_reload_asked = False
        self._reloading: asyncio.Task[None] | None = None
        self._noted: set[str] = set()
        """Watched roots of which it was remembered how they stand."""
        self._started_at = 0.0

    async def run(self) -> int:
        """Runs until SIGTERM or SIGINT or, with `once`, until all is done; returns the exit code."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        self._started_at = time.monotonic()
        self._ledger.register("once" if self._once else "watch")
        self._samples.begin()
        self._log.info(
            "daemon_started",
            version=version.text(),
            pid=os.getpid(),
            roots=list(self._settings.roots),
            once=self._once,
            dry_run=self._dry_run,
        )
        finished = False
        try:
            await self._serve()
            await self._watchers.use(self._settings)
            self._take_stock_of_roots()
            while not self._stopping and not (finished := self._is_finished()):
                self._wake.clear()
                self._tick()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK):
                        await self._wake.wait()
            self._tracker.list_unsettled()
            away = self._watchers.away
        finally:
            await self._let_go()
        if not self._once:
            return 0
        if not finished:
            return 130
        return 1 if self._tracker.failures or self._conversions.failures or away else 0

    def stop(self) -> None:
        """Begins a clean stop."""
        self._stopping = True
        self._wake.set()

    # The loop
    def _tick(self) -> None:
        now, self._pulse.ticked_at = self._clock(), time.monotonic()
        self._ledger.go_back()
        if not self._once and self._ledger.changed():
            for path in self._ledger.take_requests(self._settings.roots):
                self._log.info("retry_asked", path=path)
                self._watchers.look_again(path)
        self._tracker.tick(now)
        if self._dry_run:
            self._conversions.rehearse(self._settings.workers)
        else:
            self._conversions.start_due(self._settings, now)
            self._deliveries.start_due(self._settings.roots, now)
        is_late = time.monotonic() - self._started_at > READY_AFTER
        self._notifier.turn(ready=is_late or len(self._watchers.began) >= len(self._watchers), status=self._status())

    def _note_root(self, root: str, state: str, message: str = "") -> None:
        """Remembers how a root stands, for `status`."""
        self._noted.add(root)
        self._ledger.note_root(root, state, self._clock(), message)

    def _on_message(self, root: str, message: FromScanner) -> None:
        if self._presence.on_message(root, message):
            self._samples.keep(root, self._presence.runs(root))
        self._inventories.on_message(root, message)
        match message:
            case Started(observer=observer, mount=mount):
                self._log.info("root_watched", root=root, observer=observer, mount=mount)
            case Run():
                self._tracker.on_run(root, message)
            case Step():
                self._tracker.on_step(root, message)
            case Gone():
                self._tracker.on_gone(root, message)
            case Said(event=event, path=path, message=text):
                self._log.warning(event, root=root, path=path, message=text)
                return
            case Scanning():
                self._watchers.began.add(root)
            case Unreachable(message=why):
                self._watchers.began.add(root)
                self._note_root(root, "away", why)
            case Scanned(runs=runs):
                self._news.scanned(root)
                self._note_root(root, "watched" if runs else "empty")
            case RunGone():
                self._tracker.on_run_gone(message)
            case Alive() | Swept() | Inventory():
                return
        self._wake.set()

    def _is_finished(self) -> bool:
        """With `once`: every root was looked at, nothing settles, nothing runs, nothing is left to start."""
        if not self._once or len(self._conversions) or self._conversions.due():
            return False
        if not self._watchers.have_looked:
            return False
        if self._watchers.settle and time.monotonic() - self._started_at <= SETTLE_AT_MOST:
            return False
        return self._dry_run or not self._deliveries.is_busy(self._settings.roots, self._clock())

    # Roots
    def _settings_for(self, root: str) -> Settings:
        """Also while its watcher is being replaced."""
        return self._settings.for_root(root)

    def _watcher(self, root: str, settings: Settings) -> RootWatcher:
        command = self._scanner(root) if self._scanner else None
        return RootWatcher(
            root, settings, on_message=self._on_message, known=self._ledger.answers, log=self._log,
            read_only=self._dry_run, command=command,
        )  # fmt: skip

    def _on_root_left(self, root: str) -> None:
        self._tracker.forget_root(root)
        if root not in self._settings.roots:  # else it is watched again at once, with other settings
            self._noted.discard(root)
        self._presence.forget_root(root)

    def _take_stock_of_roots(self) -> None:
        """Notes roots that are new to this daemon, and those that the configuration no longer names."""
        for root in self._watchers:
            if root not in self._noted:
                self._note_root(root, "starting")
        if not self._once:
            self._ledger.leave_roots(list(self._watchers), self._clock())

    # Signals
    def _on_hangup(self) -> None:
        if self._reload is None or self._once:
            return
        self._is_reload_asked = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._follow_reloads(self._reload))

    async def _follow_reloads(self, load: Callable[[], Settings]) -> None:
        """Reloads, one after the other: what is read after the last signal is what stays."""
        while self._is_reload_asked and not self._stopping:
            self._is_reload_asked = False
            self._notifier.reloading()
            try:
                new = load()
            except SettingsError as error:
                self._log.error("config_invalid", message=str(error), hint="the settings from before stay in use")
                self._pulse.is_config_good = False
                self._ledger.note_config(str(error))
                self._notifier.ready(self._status())
                continue
            await self._apply(new)

    async def _apply(self, new: Settings) -> None:
        if new.state_dir != self._settings.state_dir:
            self._log.warning("config_needs_restart", message="a new state_dir is used after a restart only")
        self._settings, self._pulse.is_config_good = new, True
        await self._serve()
        await self._watchers.use(new)
        self._take_stock_of_roots()
        self._ledger.note_config("")
        self._log.info("config_reloaded", roots=list(new.roots))
        self._notifier.ready(self._status())
        self._wake.set()

    async def _serve(self) -> None:
        """Serves the pages where the configuration wants them; only who watches does."""
        address = self._settings.metrics_address
        if self._endpoints is None and address and not self._once:
            from daemon.status.http_routes import Endpoints  # prometheus_client is 5 MB that nobody else needs

            self._endpoints = Endpoints(self._sources, self._log)
        if self._endpoints is not None:
            await self._endpoints.use(address)

    async def _let_go(self) -> None:
        """Ends conversions and hooks, then scanners, within 10 s, and leaves nothing of ours in a checkpoint folder."""
        self._notifier.stopping()
        self._pulse.is_stopping = True
        await asyncio.gather(self._conversions.stop(), self._deliveries.stop())
        if self._reloading is not None:  # else it might start a scanner that nobody ends
            await asyncio.wait([self._reloading])
        await self._watchers.stop()
        if self._endpoints is not None:
            await self._endpoints.close()
        self._ledger.unregister()
        self._log.info("daemon_stopped")

    def _status(self) -> str:
        away = self._watchers.away
        states = [tracked.verdict.state for tracked in self._tracker.waiting.values()]
        return (
            f"{units.counted(len(self._watchers), 'root')}{f' ({away} unreachable)' if away else ''}, {len(self._conversions)} converting, "
            f"{states.count(State.PENDING) + states.count(State.FAILED)} waiting, {states.count(State.QUARANTINED)} quarantined"
            f"{', state_dir fails' if self._ledger.is_away else ''}"
            f"{'' if self._pulse.is_config_good else ', the last configuration was refused'}"
        )
