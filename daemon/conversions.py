"""Owns the conversions that run: starts what is due as far as workers and room allow, and records how each ends."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from converter import layout
from converter.errors import Retry
from daemon import schedule, units, verdict, worker
from daemon.ledger import Ledger
from daemon.logs import Logger
from daemon.messages import Run, Step
from daemon.records import Outcome, Row, State
from daemon.schedule import Job
from daemon.settings import Settings
from daemon.tracker import Tracked, Tracker
from daemon.verdict import Block, Verdict
from daemon.watcher import RootWatcher

PROGRESS_EVERY = 10.0
"""Seconds between two `conversion_progress` lines of one attempt."""
ROOM_EVERY = 5.0
"""Seconds between two looks at whether a full root has room again."""
NO_FAILURE = frozenset({Retry.VANISHED, Retry.INCOMPLETE, Retry.SUSPECT, Retry.UNSUPPORTED, Retry.FOREIGN})
"""Outcomes that `--once` lists and does not count."""

Command = Callable[[worker.Request, Settings], list[str]]


class Conversions:
    """The queue and what runs of it."""

    def __init__(
        self,
        tracker: Tracker,
        ledger: Ledger,
        log: Logger,
        *,
        watchers: Mapping[str, RootWatcher],
        once: bool,
        wake: Callable[[], None],
        command: Command = worker.command,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._tracker, self._ledger, self._log = tracker, ledger, log
        self._watchers = watchers
        self._once = once
        self._wake = wake
        self._command = command
        self._clock, self._jitter = clock, jitter
        self._running: dict[str, tuple[worker.Attempt, asyncio.Task[None], Job]] = {}
        self._last_started: dict[str, float] = {}
        self._paused: dict[str, float] = {}
        """Roots without room, and until when (epoch seconds) nothing is started there."""
        self._pauses: dict[str, int] = {}
        """How often in a row a conversion met a full file system, by root."""
        self.failures = 0
        """Attempts that failed."""

    def __len__(self) -> int:
        return len(self._running)

    def due(self) -> list[Job]:
        """What could be started, now or later."""
        return [job for job in map(self._job, self._tracker.waiting.values()) if job is not None]

    def start_due(self, settings: Settings, now: float) -> None:
        """Starts what is due."""
        newest = () if self._once else [root for root in settings.roots if settings.for_root(root).order == "newest"]
        jobs = [job for job in self.due() if self._paused.get(job.root, 0.0) <= now]
        for job in schedule.next_jobs(
            jobs, slots=len(jobs), now=now, newest_first=newest, last_started=self._last_started
        ):
            if len(self._running) >= settings.workers:
                return
            if self._has_room(job, now):
                self._start(job, now)

    def rehearse(self) -> None:
        """Says what would be converted to where."""
        for job in self.due():
            self._tracker.tried.add(job.path)
            tracked = self._tracker.waiting[job.path]
            where = verdict.folder(tracked.facts, self._tracker.runs.get(job.run), self._watchers[job.root].settings)
            log = self._tracker.step_log(job.root, tracked.facts)
            log.info(
                "would_convert", output=f"{where}/{layout.published_name(job.step)}", export_bytes=job.export_bytes
            )

    async def stop(self) -> None:
        """Ends all that runs, within `worker.STOP_GRACE` and a little."""
        for attempt, _, _ in self._running.values():
            attempt.stop()
        if self._running:
            await asyncio.wait([task for _, task, _ in self._running.values()], timeout=worker.STOP_GRACE + 2.5)

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
    def _has_room(self, job: Job, now: float) -> bool:
        """Whether the export fits; a root where it does not is paused, and no attempt is burned."""
        watcher = self._watchers[job.root]
        free, settings = watcher.free_bytes, watcher.settings
        reserved = sum(other.export_bytes for _, _, other in self._running.values() if other.root == job.root)
        if free is None:
            return False
        if schedule.has_room(job, free_bytes=free, reserved=reserved, settings=settings):
            if self._paused.pop(job.root, None) is not None:
                self._log.info("queue_resumed", root=job.root, free_bytes=free)
            return True
        if not reserved:
            message = (
                f"{units.about(free)} free, the export takes about {units.about(job.export_bytes)}, "
                f"min_free_space is {units.show_size(settings.min_free_space)}"
            )
            self._pause(
                job,
                now + ROOM_EVERY,
                {"error": "NoSpace", "message": message, "hint": "free space, or lower min_free_space"},
            )
        return False

    def _pause(self, job: Job, until: float, fields: dict[str, Any]) -> None:
        """No room on a root: said once. With `--once` it is the step's one attempt."""
        if job.root not in self._paused:
            self._log.warning("queue_paused", root=job.root, **fields)
        self._paused[job.root] = until
        if self._once and job.path not in self._tracker.tried:
            self._tracker.tried.add(job.path)
            self.failures += 1
            log = self._tracker.step_log(job.root, self._tracker.waiting[job.path].facts)
            log.error("conversion_failed", attempt=0, quarantined=False, retry_at=None, **fields)

    # One attempt
    def _start(self, job: Job, now: float) -> None:
        facts = self._tracker.waiting[job.path].facts
        settings = self._watchers[job.root].settings
        run = self._tracker.runs.get(job.run)
        row = self._tracker.row(job.root, facts)
        log = self._tracker.step_log(job.root, facts)
        self._warn_of_retention(job.root, facts, run, settings)
        request = worker.Request(job.path, verdict.folder(facts, run, settings), row.accept_copy)
        output = f"{request.folder}/{layout.published_name(job.step)}"
        number = row.attempts + 1
        log.info("conversion_started", attempt=number, output=output, save_id=row.save_id)
        self._ledger.put(msgspec.structs.replace(row, state=State.RUNNING, output=output))
        identity = self._ledger.begin_attempt(row, now)
        attempt = worker.Attempt(
            self._command(request, settings),
            settings,
            on_event=_Events(log, number),
            on_output=lambda text: log.info("converter_output", text=text) or None,
        )
        self._last_started[job.run] = now
        if self._once:
            self._tracker.tried.add(job.path)
        self._tracker.keep(job.path, Tracked(job.root, facts, Verdict(State.RUNNING)))
        task = asyncio.create_task(self._see_through(attempt, job, facts, row, request, identity, settings))
        self._running[job.path] = (attempt, task, job)

    async def _see_through(
        self,
        attempt: worker.Attempt,
        job: Job,
        facts: Step,
        row: Row,
        request: worker.Request,
        identity: int,
        settings: Settings,
    ) -> None:
        try:
            outcome = await attempt.run()
            self._ledger.end_attempt(identity, outcome, self._clock())
            if outcome.killed and job.root in self._watchers:
                await self._watchers[job.root].sweep(request.folder, timeout=1.5)
            latest = self._tracker.waiting[job.path].facts
            if outcome.result == "succeeded" or (
                outcome.result == "skipped" and outcome.event.get("reason") != "foreign"
            ):
                self._succeeded(outcome, job, latest, row, settings)
            elif outcome.result == "interrupted":
                state = State.FAILED if row.attempts else State.PENDING
                self._ledger.put(msgspec.structs.replace(row, state=state))
                self._tracker.keep(job.path, Tracked(job.root, latest, Verdict(state)))
            else:
                self._failed(outcome, job, latest, row, settings)
            if latest.answer.save_id != facts.answer.save_id:
                self._tracker.on_step(job.root, latest)
        finally:
            del self._running[job.path]
            self._wake()

    def _succeeded(self, outcome: Outcome, job: Job, facts: Step, row: Row, settings: Settings) -> None:
        self._pauses.pop(job.root, None)
        output = str(outcome.event.get("output") or self._output_of(row, facts, settings))
        wish = verdict.wish(self._tracker.runs.get(job.run), settings)
        self._ledger.put(
            msgspec.structs.replace(
                row,
                state=State.DONE,
                reason="",
                error=None,
                hint="",
                attempts=0,
                next_attempt=None,
                wish=wish,
                output=output,
            )
        )
        self._tracker.published(job.path, facts)
        log = self._tracker.step_log(job.root, facts)
        fields = _fields(outcome.event) | {"attempt": row.attempts + 1, "seconds": outcome.seconds}
        if outcome.result == "succeeded":
            log.info("conversion_succeeded", **fields | {"output": output})
        else:
            log.info("conversion_skipped", **{"reason": "up_to_date"} | fields)

    def _failed(self, outcome: Outcome, job: Job, facts: Step, row: Row, settings: Settings) -> None:
        if outcome.result == "skipped":
            hint = "move it away, or set overwrite_foreign"
            outcome = Outcome(
                result="failed",
                error="OutputForeign",
                message="the published name is somebody else's",
                hint=hint,
                retry=Retry.FOREIGN,
            )
        now = self._clock()
        grace_ends = now if self._once else (row.complete_at or now) + settings.config_grace
        if outcome.retry == Retry.SPACE:
            self._pauses[job.root] = self._pauses.get(job.root, 0) + 1
        follows = schedule.after_failure(
            outcome,
            row.attempts,
            now=now,
            grace_ends=grace_ends,
            pauses=self._pauses.get(job.root, 0),
            settings=settings,
            jitter=self._jitter(),
        )
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
        self.failures += outcome.retry not in NO_FAILURE
        judged = Verdict(follows.state, outcome.message, outcome.error, outcome.hint, follows.next_attempt or 0.0)
        self._tracker.keep(job.path, Tracked(job.root, facts, judged))
        self._say_failure(outcome, follows, job, facts, row.attempts + 1)
        if follows.pauses_root:
            self._pause(
                job,
                follows.next_attempt or now,
                {"error": outcome.error, "message": outcome.message, "hint": outcome.hint},
            )
        if outcome.retry in (Retry.VANISHED, Retry.INCOMPLETE, Retry.SUSPECT):
            # Scanner and converter did not agree about the step: it is looked at anew, but not in a tight circle.
            asyncio.get_running_loop().call_later((follows.next_attempt or now) - now, self._look, job)

    def _look(self, job: Job) -> None:
        if job.root in self._watchers:
            self._watchers[job.root].look(job.path)

    # Saying
    def _say_failure(self, outcome: Outcome, follows: schedule.Next, job: Job, facts: Step, attempt: int) -> None:
        log = self._tracker.step_log(job.root, facts)
        fields: dict[str, Any] = {"error": outcome.error, "message": outcome.message, "hint": outcome.hint}
        fields |= {"failed_path": outcome.path} if outcome.path else {}
        fields |= {"figures": outcome.event["figures"]} if "figures" in outcome.event else {}
        match outcome.retry:
            case Retry.VANISHED:
                log.info("step_vanished", **fields)
            case Retry.UNSUPPORTED:
                self._tracker.block(job.root, facts, Block(outcome.error or "", outcome.message, outcome.hint), fields)
            case Retry.INCOMPLETE | Retry.SUSPECT | Retry.FOREIGN:
                log.warning("conversion_skipped", reason=str(follows.state), **fields)
            case _:
                quarantined = follows.state == State.QUARANTINED
                retry_at = (
                    None if quarantined or self._once or follows.next_attempt is None else utc(follows.next_attempt)
                )
                log.error(
                    "conversion_failed",
                    attempt=attempt,
                    quarantined=quarantined,
                    retry_at=retry_at,
                    seconds=outcome.seconds,
                    **fields,
                )

    def _warn_of_retention(self, root: str, facts: Step, run: Run | None, settings: Settings) -> None:
        """Where our siblings count against `keep_latest_k` (TorchTitan up to 0.3.0), the run's owner is told, once."""
        keep = run.config.keep_latest_k if run is not None and run.config is not None else None
        if not keep or verdict.place(facts, run, settings) != "alongside":
            return
        left = verdict.remaining(keep)
        if self._ledger.say_once(facts.run, "retention_hazard", str(keep)):
            self._log.warning(
                "retention_hazard",
                root=root,
                run=self._tracker.run_name(facts.run),
                path=facts.run,
                keep_latest_k=keep,
                remaining=left,
                message=f"TorchTitan up to 0.3.0 counts step-N-hf as checkpoints: with keep_latest_k = {keep}, {left} complete "
                f"checkpoints remain while the next one is being saved, instead of {keep - 1}",
                hint=f'set output = "subdirectory" here, or keep_latest_k = {2 * keep - 1} in the run',
            )

    def _output_of(self, row: Row, facts: Step, settings: Settings) -> str:
        return f"{verdict.folder(facts, self._tracker.runs.get(row.run), settings)}/{layout.published_name(row.step)}"


class _Events:
    """Logs an attempt's events as they come: progress at most every ten seconds, warnings all."""

    def __init__(self, log: Logger, attempt: int) -> None:
        self._log, self._attempt = log, attempt
        self._last = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "conversion_progress" if time.monotonic() - self._last >= PROGRESS_EVERY:
                self._last = time.monotonic()
                self._log.info("conversion_progress", attempt=self._attempt, **_fields(event))
            case "warning":
                self._log.warning("conversion_warning", attempt=self._attempt, **_fields(event))
            case _:
                pass


def _fields(event: dict[str, Any]) -> dict[str, Any]:
    """What an event says, without what the log line says by itself."""
    own = ("event", "level", "timestamp", "root", "run", "step", "path", "attempt")
    return {str(key): value for key, value in event.items() if key not in own}


def utc(seconds: float) -> str:
    """Epoch seconds as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
