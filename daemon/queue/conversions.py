"""Owns the running conversions: it starts due steps as far as workers and room allow, and records how each ends."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from converter.common import names_on_disk
from converter.common.errors import Retry
from daemon.config.settings import Settings
from daemon.host.logs import Logger
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outcome, Row, State
from daemon.ledger.sample_folders import Samples
from daemon.queue.attempt_results import Endings, StartedAttempt, said_of
from daemon.queue.disk_space import Room
from daemon.queue.hook_events import HookEvents
from daemon.queue.log_events import AttemptEvents, News
from daemon.queue.steps import Tracked, Tracker
from daemon.rules import judge_step, schedule
from daemon.rules.judge_step import Judgement
from daemon.rules.schedule import Job
from daemon.runners import local_process
from daemon.runners.base import Command, Order, Runner
from daemon.runners.counters import Tally
from daemon.runners.progress import Progress
from daemon.runners.select import Runners, Slots
from daemon.scanner.client import RootWatcher
from daemon.scanner.messages import Gone, Step


class Rehearsal:
    """What a converter says that is only asked."""

    convert = False

    def on_event(self, event: dict[str, Any]) -> None:
        """Takes note of it."""
        self.convert |= event["event"] == "would_convert"


class Conversions:
    """The queue and what runs of it."""

    def __init__(
        self,
        tracker: Tracker,
        ledger: Ledger,
        log: Logger,
        news: News,
        hooks: HookEvents,
        *,
        samples: Samples,
        tally: Tally,
        watchers: Mapping[str, RootWatcher],
        once: bool,
        wake: Callable[[], None],
        command: Command = local_process.command,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._tracker, self._ledger, self._news, self._hooks, self._tally = tracker, ledger, news, hooks, tally
        self._watchers = watchers
        self._once = once
        self._wake = wake
        self._command = command
        self._runners = Runners(ledger, log, tally, clock=clock)
        self._clock = clock
        self._samples = samples
        self._room = Room(log)
        self._running: dict[str, tuple[StartedAttempt, asyncio.Task[None]]] = {}
        self._rehearsed: dict[str, tuple[local_process.LocalAttempt, asyncio.Task[None]]] = {}
        """Steps of which a converter says what it would do."""
        self._last_started: dict[str, float] = {}
        """By run, its last turn: no time, which a clock that is set back would count anew."""
        self._endings = Endings(
            tracker, ledger, news, hooks, self._room, once=once, look=self._look, clock=clock, jitter=jitter
        )

    @property
    def failures(self) -> int:
        """Attempts that failed."""
        return self._endings.failures

    def __len__(self) -> int:
        return len(self._running) + len(self._rehearsed)

    def running(self) -> list[tuple[Row, Progress]]:
        """What runs, as it was when it began, and how far it is."""
        return [(started.row, started.progress) for started, _ in self._running.values()]

    def due(self, now: float | None = None) -> list[Job]:
        """What could be started, at `now` (the clock's, if None) or later."""
        at = self._clock() if now is None else now
        return [job for tracked in self._tracker.waiting.values() if (job := self._job(tracked, at)) is not None]

    def start_due(self, settings: Settings, now: float) -> None:
        """Starts what is due."""
        newest = () if self._once else [root for root in settings.roots if settings.for_root(root).order == "newest"]
        due = self.due(now)  # one moment for the whole turn: the clock may be set back within it
        self._room.keep_only({job.path for job in due})
        self._leave_what_nobody_wants()
        jobs = [job for job in due if not self._room.is_paused(job.root, now)]
        slots = Slots(self._runners, settings, self._busy())
        for job in schedule.next_jobs(
            jobs, slots=len(jobs), now=now, newest_first=newest, last_started=self._last_started
        ):
            if slots.are_gone:
                return
            save_id = self._tracker.waiting[job.path].facts.answer.save_id or ""
            runner = self._runners.of(self._watchers[job.root].settings)
            if runner.holds(job.path, save_id) or (slots.has_one(runner) and self._has_room(job)):
                slots.take(runner, self._start(job, runner, now))

    def rehearse(self, workers: int) -> None:
        """Says what would be converted to where, and what would be refused: of so many at a time the converter asks itself."""
        for job in self.due()[: max(0, workers - len(self._rehearsed))]:
            self._tracker.tried.add(job.path)
            facts, settings = self._tracker.waiting[job.path].facts, self._watchers[job.root].settings
            request = self._request(job, facts, self._tracker.row(job.root, facts), settings)
            argv, would = [*self._command(request, settings), "--dry-run"], Rehearsal()
            attempt = local_process.LocalAttempt(argv, settings, on_event=would.on_event, on_output=lambda text: None)
            task = asyncio.create_task(self._rehearse_one(job, facts, request, attempt, would))
            self._rehearsed[job.path] = (attempt, task)

    async def _rehearse_one(
        self,
        job: Job,
        facts: Step,
        request: local_process.Request,
        attempt: local_process.LocalAttempt,
        would: "Rehearsal",
    ) -> None:
        try:
            outcome = await attempt.run()
            log = self._tracker.step_log(job.root, facts)
            if outcome.result == "interrupted":
                return
            if not would.convert:
                message = outcome.message or str(outcome.event.get("reason", ""))
                log.warning("would_not_convert", error=outcome.error, message=message, hint=outcome.hint)
                return
            run, settings = self._tracker.runs.get(job.run), self._watchers[job.root].settings
            output = f"{request.folder}/{names_on_disk.published_name(job.step)}"
            said: dict[str, Any] = {"output": output, "export_bytes": job.export_bytes}
            if (found := judge_step.replaced(facts, judge_step.place(facts, run, settings))) is not None:
                said["replaces"] = {"whose": found.whose, "dtype": found.dtype}
            log.info("would_convert", **said)
        finally:
            del self._rehearsed[job.path]
            self._wake()

    def _request(self, job: Job, facts: Step, row: Row, settings: Settings) -> local_process.Request:
        return local_process.Request(
            job.path,
            judge_step.folder(facts, self._tracker.runs.get(job.run), settings),
            row.accept_copy,
            overwrite=row.is_of_other_files(facts.answer.fingerprint),
            samples=self._samples.folder(job.run, settings),
        )

    async def stop(self) -> None:
        """Ends all that runs, within `local_process.STOP_GRACE` and a little."""
        tasks = [task for _, task in (*self._running.values(), *self._rehearsed.values())]
        for attempt in (
            *(started.attempt for started, _ in self._running.values()),
            *(attempt for attempt, _ in self._rehearsed.values()),
        ):
            attempt.stop()
        if tasks:
            await asyncio.wait(tasks, timeout=local_process.STOP_GRACE + 2.5)
        await self._runners.stop()

    def _job(self, tracked: Tracked, now: float) -> Job | None:
        facts, judged = tracked.facts, tracked.verdict
        watcher = self._watchers.get(tracked.root)
        if (
            not judged.is_wanted
            or facts.path in self._tracker.tried
            or watcher is None
            or watcher.is_reachable is False
        ):
            return None
        size = judge_step.export_bytes(facts, self._tracker.runs.get(facts.run), watcher.settings)
        return Job(facts.path, tracked.root, facts.run, facts.step, tracked.not_before(now), size)

    # Room
    def waits_for_room(self, root: str) -> bool:
        """Whether something on `root` waits for room."""
        return self._room.is_short(root, self._clock())

    def _busy(self) -> list[Runner]:
        """Slots in use; one that waits for a root that is away, until `deadline`, holds no other root up."""
        away = {root for root, watcher in self._watchers.items() if watcher.is_reachable is False}
        return [started.runner for started, _ in self._running.values() if started.job.root not in away]

    def _has_room(self, job: Job) -> bool:
        watcher = self._watchers[job.root]
        if watcher.free_bytes is None:
            return False
        reserved = sum(other.job.export_bytes for other, _ in self._running.values() if other.job.root == job.root)
        lack = self._room.lack(job, free_bytes=watcher.free_bytes, reserved=reserved, settings=watcher.settings)
        if lack is not None and not reserved:
            self._room.waits(job, lack)
            self._tracker.waits(job.path, lack)
            if self._once:  # its one attempt
                self._tracker.tried.add(job.path)
                self._endings.found_no_room(job, lack)
        return lack is None

    # One attempt
    def _leave_what_nobody_wants(self) -> None:
        """Tells attempts at steps that were purged or saved again, and runners of what earlier lives left."""
        for started, _ in self._running.values():
            if not self._tracker.is_current(started.job.path, started.row.save_id):
                started.attempt.outdate()
        self._runners.let_go(lambda root, path, save_id: self._tracker.wants(self._watchers.get(root), path, save_id))

    def _start(self, job: Job, runner: Runner, now: float) -> bool:
        facts = self._tracker.waiting[job.path].facts
        settings = self._watchers[job.root].settings
        run = self._tracker.runs.get(job.run)
        row = self._tracker.row(job.root, facts)
        if row.state == State.PENDING:  # what it waited for is there
            row = msgspec.structs.replace(row, reason="", error=None, hint="")
        request = self._request(job, facts, row, settings)
        output, number = f"{request.folder}/{names_on_disk.published_name(job.step)}", row.attempts + 1
        running = msgspec.structs.replace(row, state=State.RUNNING, output=output)
        if not self._ledger.put(running, of_attempt=not self._once):  # another daemon with this ledger knows more
            self._look(job)
            return False
        log = self._tracker.step_log(job.root, facts)
        log.info("conversion_started", attempt=number, output=output, save_id=row.save_id)
        progress = Progress(now, self._clock)
        order = Order(
            self._command(request, settings), settings, facts, row, log, on_event=progress.then(AttemptEvents(log, number)),
            on_output=lambda text: log.info("converter_output", text=text) or None,
        )  # fmt: skip
        self._last_started[job.run] = max(self._last_started.values(), default=0.0) + 1
        if self._once:
            self._tracker.tried.add(job.path)
        self._tracker.keep(job.path, Tracked(job.root, facts, Judgement(State.RUNNING)))
        key = self._ledger.begin_attempt(row, now)
        started = StartedAttempt(
            runner.attempt(order), runner, job, facts, row, judge_step.config_of(run), request, settings, key, progress
        )
        self._running[job.path] = (started, asyncio.create_task(self._see_through(started)))
        return True

    async def _see_through(self, started: StartedAttempt) -> None:
        job, row = started.job, started.row
        has_ended = False
        try:
            outcome = await started.attempt.run()
            ended = self._clock()
            self._samples.remember(row, outcome)
            if outcome.result == "succeeded":
                self._hooks.succeeded(row, started=started.key.started, fields=said_of(started, outcome))
            self._ledger.end_attempt(started.key, outcome, ended)
            has_ended = True
            if outcome.killed and job.root in self._watchers:
                await self._watchers[job.root].sweep(started.request.folder, timeout=1.5)
            latest = self._tracker.waiting[job.path].facts
            is_gone = job.path in self._tracker.gone
            if is_gone and outcome.result == "failed":  # whatever it met: it was purged meanwhile
                outcome = Outcome(result="failed", error="StepVanished", message="it was purged", retry=Retry.VANISHED)
            self._tally.attempt(job.run, outcome, ended)
            match outcome.result:
                case "succeeded" | "skipped":
                    self._endings.succeeded(started, outcome, latest)
                case "interrupted":
                    is_out = row.state == State.QUARANTINED
                    state = row.state if is_out else State.FAILED if row.attempts else State.PENDING
                    self._ledger.put(msgspec.structs.replace(row, state=state), of_attempt=True)
                    judged = Judgement(state, not_before=row.next_attempt or 0.0 if is_out else 0.0)
                    self._tracker.keep(job.path, Tracked(job.root, latest, judged))
                case _:
                    self._endings.failed(started, outcome, latest)
            if is_gone:
                self._tracker.on_gone(job.root, Gone(path=job.path))
            elif latest.answer != started.facts.answer:
                self._tracker.on_step(job.root, latest)
        except Exception as error:  # nobody foresaw it: without an end the step would be `running` until the next start
            what = f"the daemon itself failed ({type(error).__name__}: {error})"
            failed = Outcome(
                result="failed", error="MachineFailure", message=what, hint="please report it", retry=Retry.BACKOFF
            )
            self._endings.failed(started, failed, started.facts)
            if not has_ended:
                self._ledger.end_attempt(started.key, failed, self._clock())
        finally:
            del self._running[job.path]
            self._wake()

    def _look(self, job: Job) -> None:
        if job.root in self._watchers:
            self._watchers[job.root].look(job.path)
