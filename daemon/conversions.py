"""Owns the conversions that run: starts what is due as far as workers and room allow, and records how each ends."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from converter import layout
from converter.errors import Retry
from daemon import schedule, verdict, worker
from daemon.hooks import NON_FINITE, Hooks
from daemon.ledger import Ledger
from daemon.logs import Logger
from daemon.messages import Gone, Step
from daemon.news import AttemptEvents, News, fields_of
from daemon.progress import Progress
from daemon.records import AttemptKey, Outcome, Row, State
from daemon.room import Room
from daemon.runner import Attempt, Command, Order, Runner
from daemon.runners import Runners, Slots
from daemon.samples import Samples
from daemon.schedule import Job
from daemon.settings import Settings
from daemon.tally import Tally
from daemon.tracker import Tracked, Tracker
from daemon.verdict import Block, Verdict
from daemon.watcher import RootWatcher


class _Started(NamedTuple):
    """An attempt, and what was so when it began."""

    attempt: Attempt
    runner: Runner
    job: Job
    facts: Step
    row: Row
    request: worker.Request
    settings: Settings
    key: AttemptKey
    progress: Progress


class Conversions:
    """The queue and what runs of it."""

    def __init__(
        self,
        tracker: Tracker,
        ledger: Ledger,
        log: Logger,
        news: News,
        hooks: Hooks,
        *,
        samples: Samples,
        tally: Tally,
        watchers: Mapping[str, RootWatcher],
        once: bool,
        wake: Callable[[], None],
        command: Command = worker.command,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._tracker, self._ledger, self._news, self._hooks, self._tally = tracker, ledger, news, hooks, tally
        self._watchers = watchers
        self._once = once
        self._wake = wake
        self._command = command
        self._runners = Runners(ledger, log, tally, clock=clock)
        self._clock, self._jitter = clock, jitter
        self._samples = samples
        self._room = Room(log)
        self._running: dict[str, tuple[_Started, asyncio.Task[None]]] = {}
        self._last_started: dict[str, float] = {}
        self.failures = 0
        """Attempts that failed."""

    def __len__(self) -> int:
        return len(self._running)

    def running(self) -> list[tuple[Row, Progress]]:
        """What runs, as it was when it began, and how far it is."""
        return [(started.row, started.progress) for started, _ in self._running.values()]

    def due(self) -> list[Job]:
        """What could be started, now or later."""
        return [job for job in map(self._job, self._tracker.waiting.values()) if job is not None]

    def start_due(self, settings: Settings, now: float) -> None:
        """Starts what is due."""
        newest = () if self._once else [root for root in settings.roots if settings.for_root(root).order == "newest"]
        due = self.due()
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

    def rehearse(self) -> None:
        """Says what would be converted to where."""
        for job in self.due():
            self._tracker.tried.add(job.path)
            facts = self._tracker.waiting[job.path].facts
            where = verdict.folder(facts, self._tracker.runs.get(job.run), self._watchers[job.root].settings)
            output = f"{where}/{layout.published_name(job.step)}"
            self._tracker.step_log(job.root, facts).info("would_convert", output=output, export_bytes=job.export_bytes)

    async def stop(self) -> None:
        """Ends all that runs, within `worker.STOP_GRACE` and a little."""
        for started, _ in self._running.values():
            started.attempt.stop()
        if self._running:
            await asyncio.wait([task for _, task in self._running.values()], timeout=worker.STOP_GRACE + 2.5)
        await self._runners.stop()

    def _job(self, tracked: Tracked) -> Job | None:
        facts, judged = tracked.facts, tracked.verdict
        watcher = self._watchers.get(tracked.root)
        if (
            not judged.is_wanted
            or facts.path in self._tracker.tried
            or watcher is None
            or watcher.is_reachable is False
        ):
            return None
        size = verdict.export_bytes(facts, self._tracker.runs.get(facts.run), watcher.settings)
        return Job(facts.path, tracked.root, facts.run, facts.step, judged.not_before, size)

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
            if self._once:  # its one attempt
                self._tracker.tried.add(job.path)
                self.failures += 1
                log = self._tracker.step_log(job.root, self._tracker.waiting[job.path].facts)
                log.error("conversion_failed", attempt=0, quarantined=False, retry_at=None, **lack)
                row = self._tracker.row(job.root, self._tracker.waiting[job.path].facts)
                self._hooks.failed(row, attempt=0, started=None, quarantined=False, retry_at=None, fields=lack)
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
        if row.state in (State.DONE, State.REMOVED) and not self._once:  # another daemon with this ledger knows more
            self._look(job)
            return False
        log = self._tracker.step_log(job.root, facts)
        self._news.retention(job.root, facts, run, settings)
        samples = self._samples.folder(job.run, settings)
        request = worker.Request(job.path, verdict.folder(facts, run, settings), row.accept_copy, samples)
        output, number = f"{request.folder}/{layout.published_name(job.step)}", row.attempts + 1
        log.info("conversion_started", attempt=number, output=output, save_id=row.save_id)
        self._ledger.put(msgspec.structs.replace(row, state=State.RUNNING, output=output))
        progress = Progress(now, self._clock)
        order = Order(
            self._command(request, settings), settings, facts, row, log, on_event=progress.then(AttemptEvents(log, number)),
            on_output=lambda text: log.info("converter_output", text=text) or None,
        )  # fmt: skip
        self._last_started[job.run] = now
        if self._once:
            self._tracker.tried.add(job.path)
        self._tracker.keep(job.path, Tracked(job.root, facts, Verdict(State.RUNNING)))
        key = self._ledger.begin_attempt(row, now)
        started = _Started(runner.attempt(order), runner, job, facts, row, request, settings, key, progress)
        self._running[job.path] = (started, asyncio.create_task(self._see_through(started)))
        return True

    async def _see_through(self, started: _Started) -> None:
        job, row = started.job, started.row
        try:
            outcome = await started.attempt.run()
            ended = self._clock()
            self._samples.remember(row, outcome)
            if outcome.result == "succeeded":
                self._hooks.succeeded(row, started=started.key.started, fields=_fields(started, outcome))
            self._ledger.end_attempt(started.key, outcome, ended)
            if outcome.killed and job.root in self._watchers:
                await self._watchers[job.root].sweep(started.request.folder, timeout=1.5)
            latest = self._tracker.waiting[job.path].facts
            is_gone = job.path in self._tracker.gone
            if is_gone and outcome.result == "failed":  # whatever it met: it was purged meanwhile
                outcome = Outcome(result="failed", error="StepVanished", message="it was purged", retry=Retry.VANISHED)
            self._tally.attempt(job.run, outcome, ended)
            match outcome.result:
                case "succeeded" | "skipped":
                    self._succeeded(started, outcome, latest)
                case "interrupted":
                    state = State.FAILED if row.attempts else State.PENDING
                    self._ledger.put(msgspec.structs.replace(row, state=state))
                    self._tracker.keep(job.path, Tracked(job.root, latest, Verdict(state)))
                case _:
                    self._failed(started, outcome, latest)
            if is_gone:
                self._tracker.on_gone(job.root, Gone(path=job.path))
            elif latest.answer.save_id != started.facts.answer.save_id:
                self._tracker.on_step(job.root, latest)
        finally:
            del self._running[job.path]
            self._wake()

    def _succeeded(self, started: _Started, outcome: Outcome, latest: Step) -> None:
        job, row = started.job, started.row
        self._room.was_enough(job.root)
        fields = _fields(started, outcome)
        output = fields["output"]
        wish = verdict.wish(self._tracker.runs.get(job.run), started.settings)
        if outcome.result == "skipped":
            self._hooks.found_published(msgspec.structs.replace(row, output=output), before=started.key.started)
        self._ledger.put(
            msgspec.structs.replace(
                row, state=State.DONE, reason="", error=None, hint="", attempts=0, next_attempt=None, wish=wish, output=output
            )
        )  # fmt: skip
        self._tracker.published(job.path, latest)
        log = self._tracker.step_log(job.root, latest)
        if outcome.result == "succeeded":
            log.info("conversion_succeeded", **fields)
        else:
            log.info("conversion_skipped", **fields | {"reason": "up_to_date"})

    def _failed(self, started: _Started, outcome: Outcome, latest: Step) -> None:
        job, row, settings = started.job, started.row, started.settings
        now = self._clock()
        follows = schedule.after_failure(
            outcome,
            row.attempts,
            now=now,
            grace_ends=now if self._once else (row.complete_at or now) + settings.config_grace,
            pauses=self._room.was_full(job.root) if outcome.retry == Retry.SPACE else 0,
            settings=settings,
            jitter=self._jitter(),
        )
        why = {"error": outcome.error, "message": outcome.message, "hint": outcome.hint}
        fields = why | ({"failed_path": outcome.path} if outcome.path else {})
        fields |= {"figures": outcome.event["figures"]} if "figures" in outcome.event else {}
        log, attempt = self._tracker.step_log(job.root, latest), row.attempts + 1
        if outcome.error == NON_FINITE:
            self._news.non_finite(log, row, outcome, now)
        if follows.is_failure:
            is_last = self._once or follows.state == State.QUARANTINED
            self._hooks.failed(
                row, attempt=attempt, started=started.key.started, quarantined=follows.state == State.QUARANTINED,
                retry_at=None if is_last else follows.next_attempt, fields=fields,
            )  # fmt: skip
        self._ledger.put(
            msgspec.structs.replace(
                row,
                state=follows.state,
                reason=outcome.message,
                error=outcome.error,
                hint=outcome.hint,
                attempts=follows.attempts,
                next_attempt=follows.next_attempt,
            )
        )
        self.failures += outcome.retry not in schedule.NO_FAILURE
        judged = Verdict(follows.state, outcome.message, outcome.error, outcome.hint, follows.next_attempt or 0.0)
        self._tracker.keep(job.path, Tracked(job.root, latest, judged))
        self._news.failure(log, outcome, follows, attempt, fields)
        if follows.state == State.UNSUPPORTED:
            self._tracker.block(job.root, latest, Block(outcome.error or "", outcome.message, outcome.hint), fields)
        if follows.pauses_root:
            self._room.pause(job.root, follows.next_attempt or now, why)
        if outcome.retry in (Retry.VANISHED, Retry.INCOMPLETE, Retry.SUSPECT):
            # Scanner and converter did not agree about the step: it is looked at anew, but not in a tight circle.
            asyncio.get_running_loop().call_later((follows.next_attempt or now) - now, self._look, job)

    def _look(self, job: Job) -> None:
        if job.root in self._watchers:
            self._watchers[job.root].look(job.path)


def _fields(started: _Started, outcome: Outcome) -> dict[str, Any]:
    """What is said of an attempt that ended well, in its line and to `on_success`."""
    output = outcome.event.get("output") or f"{started.request.folder}/{layout.published_name(started.job.step)}"
    own = {"attempt": started.row.attempts + 1, "seconds": outcome.seconds, "output": output}
    return fields_of(outcome.event) | own
