"""Owns the result of an attempt: the next state of its step in the ledger and the tracker, and the log line."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from converter.common import names_on_disk
from converter.common.errors import Retry
from daemon.config.flag_to_key import with_retry
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import AttemptKey, Block, Outcome, Row, State
from daemon.queue.disk_space import Room
from daemon.queue.hook_events import NON_FINITE, HookEvents
from daemon.queue.log_events import News, fields_of
from daemon.queue.steps import Tracked, Tracker
from daemon.rules import judge_step, schedule
from daemon.rules.judge_step import Judgement
from daemon.rules.schedule import Job
from daemon.runners import local_process
from daemon.runners.base import Attempt, Runner
from daemon.runners.progress import Progress
from daemon.scanner.messages import Step


class StartedAttempt(NamedTuple):
    """An attempt, and what was so when it began."""

    attempt: Attempt
    runner: Runner
    job: Job
    facts: Step
    row: Row
    config: str
    """`judge_step.config_of` its run."""
    request: local_process.Request
    settings: Settings
    key: AttemptKey
    progress: Progress


def said_of(started: StartedAttempt, outcome: Outcome) -> dict[str, Any]:
    """What is said of an attempt that ended well, in its line and to `on_success`."""
    output = outcome.event.get("output") or f"{started.request.folder}/{names_on_disk.published_name(started.job.step)}"
    own = {"attempt": started.row.attempts + 1, "seconds": outcome.seconds, "output": output}
    return fields_of(outcome.event) | own


def reason_of(outcome: Outcome, step: str) -> str:
    """What `status` says of a failure: its message, and which path failed where that is not the step itself.

    Of what a machine refused or a person is to mend; what is judged again by its message alone is left as it is. A lock or
    a staging directory is named by its folder: it is gone, and all steps of a run are said together.
    """
    path = outcome.path.partition(f"/{names_on_disk.PREFIX}")[0]
    is_told = path in ("", step) or path in outcome.message or outcome.error == "HookFailed"  # of no path
    if is_told or outcome.retry not in (Retry.BACKOFF, Retry.NEVER, Retry.SPACE):
        return outcome.message
    return f"{outcome.message}: {path}"


class Endings:
    """How attempts end."""

    def __init__(
        self,
        tracker: Tracker,
        ledger: Ledger,
        news: News,
        hooks: HookEvents,
        room: Room,
        *,
        once: bool,
        look: Callable[[Job], None],
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._tracker, self._ledger, self._news, self._hooks, self._room = tracker, ledger, news, hooks, room
        self._once, self._look = once, look
        self._clock, self._jitter = clock, jitter
        self.failures = 0
        """Attempts that failed."""

    def succeeded(self, started: StartedAttempt, outcome: Outcome, latest: Step) -> None:
        """It published, or found its export published."""
        job, row = started.job, started.row
        self._room.was_enough(job.root)
        fields = said_of(started, outcome)
        output = fields["output"]
        wish = judge_step.wish(self._tracker.runs.get(job.run), started.settings)
        if outcome.result == "skipped":
            self._hooks.found_published(msgspec.structs.replace(row, output=output), before=started.key.started)
        seen = started.facts.answer.fingerprint
        converted, listed = row.converted or seen, row.listed
        if outcome.result == "succeeded":
            converted = outcome.event.get("listing") or seen
            listed = "" if converted == seen else seen
        self._ledger.put(
            msgspec.structs.replace(
                row, state=State.DONE, reason="", error=None, hint="", attempts=0, next_attempt=None, wish=wish, output=output,
                converted=converted, listed=listed,
            )
        )  # fmt: skip
        self._tracker.published(job.path, latest)
        log = self._tracker.step_log(job.root, latest)
        if outcome.result == "succeeded":
            log.info("conversion_succeeded", **fields)
        else:
            log.info("conversion_skipped", **fields | {"reason": "up_to_date"})
        if converted != latest.answer.fingerprint:
            self._look(job)  # the converter knows a later listing than the scanner, or the step has changed since

    def failed(self, started: StartedAttempt, outcome: Outcome, latest: Step) -> None:
        """When it is tried again, if ever."""
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
        if is_out := follows.state == State.QUARANTINED and outcome.error != NON_FINITE:
            # What lies outside of the step holds for the run's other steps, too: they are named, and tried, together.
            where = job.run if follows.next_attempt else job.path
            outcome = msgspec.structs.replace(outcome, hint=with_retry(outcome.hint, where))
            why["hint"] = fields["hint"] = outcome.hint
        log, attempt, reason = self._tracker.step_log(job.root, latest), row.attempts + 1, reason_of(outcome, job.path)
        if outcome.error == NON_FINITE:
            self._news.non_finite(log, row, outcome, now)
        is_known = is_out and (row.state, row.error, row.reason) == (State.QUARANTINED, outcome.error, reason)
        if follows.is_failure and not is_known:
            is_last = self._once or follows.state == State.QUARANTINED
            self._hooks.failed(
                row, attempt=attempt, started=started.key.started, quarantined=follows.state == State.QUARANTINED,
                retry_at=None if is_last else follows.next_attempt, fields=fields,
            )  # fmt: skip
        is_remembered = self._ledger.put(
            msgspec.structs.replace(
                row,
                state=follows.state,
                reason=reason,
                error=outcome.error,
                hint=outcome.hint,
                attempts=follows.attempts,
                next_attempt=follows.next_attempt,
                refused=started.facts.answer.fingerprint if follows.state == State.QUARANTINED else row.refused,
            ),
            of_attempt=True,
        )
        self.failures += outcome.retry not in schedule.NO_FAILURE
        judged = Judgement(follows.state, reason, outcome.error, outcome.hint, follows.next_attempt or 0.0)
        self._tracker.keep(job.path, Tracked(job.root, latest, judged))
        self._news.failure(log, outcome, follows, attempt, fields, is_known=is_known)
        if follows.state == State.UNSUPPORTED:
            self._tracker.block(
                job.root,
                latest,
                Block(
                    outcome.error or "",
                    outcome.message,
                    outcome.hint,
                    judge_step.exceptions(settings),
                    started.config,
                    job.step,
                ),
                fields,
            )
        if follows.pauses_root:
            self._room.pause(job.root, now, follows.next_attempt or now, why)
        if outcome.retry in (Retry.VANISHED, Retry.INCOMPLETE, Retry.SUSPECT):
            # Scanner and converter did not agree about the step: it is looked at anew, but not in a tight circle.
            asyncio.get_running_loop().call_later((follows.next_attempt or now) - now, self._look, job)
        elif not is_remembered:
            self._look(job)

    def found_no_room(self, job: Job, lack: dict[str, Any]) -> None:
        """The one attempt of `--once` was not to be."""
        facts = self._tracker.waiting[job.path].facts
        self.failures += 1
        log = self._tracker.step_log(job.root, facts)
        log.error("conversion_failed", attempt=0, quarantined=False, retry_at=None, **lack)
        row = self._tracker.row(job.root, facts)
        self._hooks.failed(row, attempt=0, started=None, quarantined=False, retry_at=None, fields=lack)
