"""Owns the watched steps: it judges the reports of scanners and records the states in the ledger.

Only steps that wait for something are in memory. Finished steps are in the ledger.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from daemon.config.settings import Settings
from daemon.host.logs import Logger
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import CONFIG_ERRORS, OF_THE_RUN, Block, Row, State, back, held_by
from daemon.queue.hook_events import HookEvents
from daemon.queue.log_events import News
from daemon.rules import judge_step, schedule
from daemon.rules.judge_step import Judgement
from daemon.scanner.client import RootWatcher
from daemon.scanner.messages import Gone, Run, RunGone, Step

WAITING = frozenset({State.PENDING, State.FAILED, State.RUNNING, State.INCOMPLETE, State.SUSPECT, State.QUARANTINED})
"""States that may change without a new fact about the step."""

SET_BACK = 1.0
"""Seconds."""


class Tracked(NamedTuple):
    """A step that waits for something."""

    root: str
    facts: Step
    verdict: Judgement
    since: float = 0.0
    """When it was judged so (epoch seconds)."""

    def not_before(self, now: float) -> float:
        """When it may be tried; at once, where the clock was set back since: nobody knows how long it has waited.

        It is judged within a turn whose `now` was taken before; so less than SET_BACK is no clock that was set back.
        """
        return self.verdict.not_before if self.since <= now + SET_BACK else 0.0


class Tracker:
    """Judges steps; `settings_of` gives a root's settings, or None for one that is watched no longer.

    `report` has scanners report a run's steps once more, as they know them.
    """

    def __init__(
        self,
        ledger: Ledger,
        log: Logger,
        news: News,
        hooks: HookEvents,
        *,
        settings_of: Callable[[str], Settings | None],
        once: bool,
        clock: Callable[[], float],
        report: Callable[[str], None] = lambda path: None,
    ) -> None:
        self._ledger, self._log, self._news, self._hooks = ledger, log, news, hooks
        self._settings_of = settings_of
        self._once = once
        self._clock, self._report = clock, report
        self.waiting: dict[str, Tracked] = {}
        self.runs: dict[str, Run] = {}
        self.tried: set[str] = set()
        """With `--once`: steps that had their one attempt."""
        self.failures = 0
        """With `--once`: steps that no attempt can convert."""
        self._unseen: set[str] = set()
        """Published by this process and not seen by a scanner yet: not removed by anybody."""
        self.gone: set[str] = set()
        """Purged while a conversion of them runs: they are judged when it has ended."""

    # What scanners report
    def on_run(self, root: str, run: Run) -> None:
        """A run appeared, or its run config changed."""
        before, self.runs[run.run] = self.runs.get(run.run), run
        self._news.conflict(root, run)
        if run.config is not None:
            is_new = self._ledger.say_once(run.run, "run_config", run.config.digest)
            was_there = before is not None and before.config is not None
            # One that says the same as before mends nothing: lifted for it, a step's attempts would begin anew without end.
            passed = OF_THE_RUN if is_new else frozenset() if was_there else CONFIG_ERRORS
            if passed and (count := self._ledger.forgive(run.run, sorted(passed))):
                why = "its run config is there, or another one"
                self._log.info("quarantine_lifted", root=root, run=run.name, path=run.run, steps=count, message=why)
            self._lift_block(run, self._ledger.block(run.run))
        self.judge_run(run.run)

    def _lift_block(self, run: Run | None, block: Block | None) -> None:
        """Has a refused run judged anew where its run config is not the one that was refused."""
        if block is not None and run is not None and run.config is not None and run.config.digest != block.config:
            self._ledger.forget_block(run.run)
            self._report(run.run)  # its unsupported steps wait for nothing

    def on_run_gone(self, message: RunGone) -> None:
        """The last step of a run is gone, and so is the run: what comes at its path is judged anew."""
        self.runs.pop(message.run, None)
        self._ledger.forget_block(message.run)
        self._news.run_gone(message.run)

    def on_step(self, root: str, facts: Step) -> None:
        """A step appeared or changed: judges it, remembers the verdict, says what is news."""
        path = facts.path
        self.gone.discard(path)
        settings = self._settings_of(root)
        if settings is None:
            return
        if facts.has_ours:
            self._unseen.discard(path)
        if (known := self.waiting.get(path)) and known.verdict.state == State.RUNNING:
            self.waiting[path] = known._replace(facts=facts)
            return
        current = self._ledger.row(path)
        before = self._known(current, facts)
        row = self._row(root, facts, current, before)
        accepts = row.accept_copy or settings.accept_copies
        is_complete = facts.answer.state == "complete" or (facts.answer.state == "suspect" and accepts)
        now = self._clock()
        if is_complete and (row.complete_at is None or row.complete_at > now):
            row = msgspec.structs.replace(row, complete_at=now)
        run = self.runs.get(facts.run)
        block = self._ledger.block(facts.run)
        is_saved_again = current is not None and current.save_id not in ("", row.save_id) and row.save_id != ""
        if block is not None and is_saved_again and facts.step <= block.step:
            self._ledger.forget_block(facts.run)  # the run began anew below what was refused
            block = None
        judged = judge_step.judge(
            facts,
            run,
            row if before is not None else None,
            block,
            settings,
            now=now,
            fresh=self._once and path not in self.tried,
        )
        longest = now + schedule.longest_pause(judged.state, row.attempts, settings)
        if judged.not_before > longest:  # stored before the clock was set back
            judged = judged._replace(not_before=longest)
        if judged.state == State.REMOVED and path in self._unseen:
            judged = Judgement(State.DONE)
        is_final = facts.answer.state not in ("incomplete", "settling") and bool(facts.answer.fingerprint)
        is_done, is_refused = judged.state == State.DONE, judged.state == State.QUARANTINED
        new = msgspec.structs.replace(
            row,
            state=judged.state,
            reason="" if is_done else judged.reason,
            error=judged.error,
            hint=judged.hint,
            next_attempt=judged.not_before or None,
            answer=facts.answer if is_final or facts.answer.after else None,
            converted=row.converted or (facts.answer.fingerprint if is_done else ""),
            listed="" if is_final and facts.answer.fingerprint == row.converted else row.listed,
            refused=facts.answer.fingerprint if is_refused else row.refused,
            held=held_by(row, judged.state),
            wish=judge_step.wish(run, settings) if is_done else row.wish,
            output=row.output or (judge_step.output(facts) if is_done else None),
        )
        told = before if before is None or before.state == judged.state else back(before)
        if new != before or before != current:
            self._tell_hooks(told, new)
            self._ledger.put(new)
        log = self.step_log(root, facts)
        if current is None:
            log.info("step_discovered", state=facts.answer.state)
        if is_complete and (before is None or before.complete_at is None):
            log.info("step_complete", save_id=row.save_id, model_bytes=facts.answer.model_bytes)
        if is_complete and judged.state in (State.DONE, State.PENDING, State.FAILED):
            self._news.retention(root, facts, run, settings)
        tried = path in self.tried
        is_news = self._news.verdict(log, told, judged, facts, tried=tried)
        self.failures += self._once and is_news and judged.state == State.QUARANTINED
        self.keep(path, Tracked(root, facts, judged))

    def _tell_hooks(self, before: Row | None, new: Row) -> None:
        """What becomes of a step without an attempt that saw it through, before it is remembered."""
        if new.state == State.DONE and before is not None and before.state not in (State.DONE, State.REMOVED):
            self._hooks.found_published(before)
        if new.state == State.QUARANTINED and (
            before is None or (before.state, before.reason) != (new.state, new.reason)
        ):
            why = {"error": new.error, "message": new.reason, "hint": new.hint}
            self._hooks.failed(new, attempt=0, started=None, quarantined=True, retry_at=None, fields=why)

    def on_gone(self, root: str, message: Gone) -> None:
        """A step was purged."""
        row = self._ledger.row(message.path)
        tracked = self.waiting.get(message.path)
        if tracked and tracked.verdict.state == State.RUNNING:
            self.gone.add(message.path)
            return
        self.gone.discard(message.path)
        if row is None:
            return
        self.waiting.pop(message.path, None)
        self._news.step_gone(row.run, row.step)
        if row.state not in (State.DONE, State.VANISHED):
            held = held_by(row, State.VANISHED)
            self._ledger.put(
                msgspec.structs.replace(
                    row,
                    state=State.VANISHED,
                    reason="the step is gone",
                    error=None,
                    hint="",
                    next_attempt=None,
                    held=held,
                )
            )
            log = self._log.bind(root=root, run=row.run_name, step=row.step, path=row.path)
            log.info("step_vanished", message="the step is gone", before=str(row.state))

    # What time and conversions change
    def tick(self, now: float) -> None:
        """Judges again what time alone changes: the end of `config_grace`."""
        for tracked in list(self.waiting.values()):
            judged = tracked.verdict
            is_due = tracked.not_before(now) <= now
            if judged.state == State.PENDING and judged.error in CONFIG_ERRORS and is_due:
                self.on_step(tracked.root, tracked.facts)

    def judge_run(self, run: str) -> None:
        """Judges the waiting steps of a run again."""
        for tracked in list(self.waiting.values()):
            if tracked.facts.run == run:
                self.on_step(tracked.root, tracked.facts)

    def keep(self, path: str, tracked: Tracked) -> None:
        """Keeps a step in mind as long as it waits for something."""
        if tracked.verdict.state in WAITING:
            self.waiting[path] = tracked._replace(since=self._clock())
        else:
            self.waiting.pop(path, None)

    def waits(self, path: str, lack: dict[str, Any]) -> None:
        """A pending step could be started but for `lack` (`error`, `message`, `hint`): `status` says it, once it is remembered."""
        tracked = self.waiting[path]
        judged = tracked.verdict._replace(reason=lack["message"], error=lack["error"], hint=lack["hint"])
        if judged.state == State.PENDING and tracked.verdict.error != judged.error:
            self.waiting[path] = tracked._replace(verdict=judged)
            row = self.row(tracked.root, tracked.facts)
            why = {"reason": judged.reason, "error": judged.error, "hint": judged.hint}
            self._ledger.put(msgspec.structs.replace(row, **why), of_attempt=True)

    def published(self, path: str, latest: Step) -> None:
        """A step was published by this process; the scanner may have seen it already."""
        if not latest.has_ours:
            self._unseen.add(path)
        self.waiting.pop(path, None)

    def forget_root(self, root: str) -> None:
        """A root is watched no longer."""
        self.waiting = {
            path: tracked
            for path, tracked in self.waiting.items()
            if tracked.root != root or tracked.verdict.state == State.RUNNING
        }

    # What others ask
    def is_current(self, path: str, save_id: str) -> bool:
        """Whether a save that is being converted is still the one that lies there, as far as scanners saw."""
        latest = self.waiting[path].facts.answer.save_id if path in self.waiting else save_id
        return path not in self.gone and latest in (None, "", save_id)

    def wants(self, watcher: RootWatcher | None, path: str, save_id: str) -> bool | None:
        """Whether a conversion of this save would be of use; None: not known yet, its root was not scanned."""
        if watcher is None or watcher.last_scan is None:
            return None
        tracked = self.waiting.get(path)
        return tracked is not None and tracked.verdict.is_wanted and tracked.facts.answer.save_id == save_id

    def row(self, root: str, facts: Step) -> Row:
        """The ledger's row of this very save, or a new one; below `root`, whatever root it was once found below.

        What was so before the save was away is so again.
        """
        current = self._ledger.row(facts.path)
        return self._row(root, facts, current, self._known(current, facts))

    def _row(self, root: str, facts: Step, current: Row | None, row: Row | None) -> Row:
        save_id, name = facts.answer.save_id or "", self.run_name(facts.run)
        if row is None and current is not None and current.save_id == "":  # it was incomplete until now
            row = current
        if row is not None:
            return back(msgspec.structs.replace(row, root=root, run_name=name, save_id=save_id))
        return Row(path=facts.path, root=root, run=facts.run, run_name=name, step=facts.step, save_id=save_id)

    def _known(self, current: Row | None, facts: Step) -> Row | None:
        """What is remembered of this very save: maybe another one lay there meanwhile."""
        save_id = facts.answer.save_id or ""
        if current is None or current.save_id == save_id:
            return current
        return self._ledger.row(facts.path, save_id) if save_id else None

    def run_name(self, run: str) -> str:
        """A run's name in logs."""
        found = self.runs.get(run)
        return found.name if found is not None else os.path.basename(run)

    def step_log(self, root: str, facts: Step) -> Logger:
        """A logger for lines about a step."""
        return self._log.bind(root=root, run=self.run_name(facts.run), step=facts.step, path=facts.path)

    def list_unsettled(self) -> None:
        """With `once`, at the end: names what was still being written."""
        for tracked in self.waiting.values() if self._once else ():
            if tracked.facts.answer.state == "settling":
                log = self.step_log(tracked.root, tracked.facts)
                log.info("conversion_skipped", reason="incomplete", message=tracked.facts.answer.reason)

    def block(self, root: str, facts: Step, block: Block, fields: dict[str, Any]) -> None:
        """Nothing of this run can be converted, with the run config that was refused: remembers it, and says it once."""
        self._ledger.set_block(facts.run, block)
        self._news.unsupported(self.step_log(root, facts), facts.run, fields)
        self._lift_block(self.runs.get(facts.run), block)
        self.judge_run(facts.run)
