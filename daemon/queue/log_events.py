"""Owns the log lines about steps and runs. It logs news, and logs some lines only once."""

import time
from typing import Any

from daemon.config import units
from daemon.config.settings import Settings
from daemon.host.logs import Logger
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outcome, Row, State
from daemon.rules import judge_step
from daemon.rules.judge_step import Judgement
from daemon.rules.schedule import Next
from daemon.scanner.messages import Run, Step

PROGRESS_EVERY = 10.0
"""Seconds between two `conversion_progress` lines of one attempt."""
NAMED = 20
"""Tensors that a line names."""
LISTED = frozenset({State.INCOMPLETE, State.SUSPECT, State.FOREIGN, State.UNSUPPORTED, State.QUARANTINED})
"""States that `--once` lists, also where they are no news."""


class News:
    """Says what is news; with `once` also, once, what is only listed."""

    def __init__(self, ledger: Ledger, log: Logger, *, once: bool) -> None:
        self._ledger, self._log, self._once = ledger, log, once
        self._listed: set[str] = set()
        self._beside: dict[str, set[int]] = {}
        """By run, steps with an export beside them, where exports are made elsewhere."""
        self._without: set[str] = set()
        """Runs no step of which, as far as it was reported, has its export beside it."""

    # Runs
    def conflict(self, root: str, run: Run) -> None:
        """Two run configs that do not say the same: said once, and again when they change."""
        config = run.config
        if (
            config is not None
            and config.conflict
            and self._ledger.say_once(
                run.run, "run_config_conflict", repr((config.conflict, config.differs, config.digest))
            )
        ):
            self._log.warning(
                "run_config_conflict",
                root=root,
                run=run.name,
                path=run.run,
                message=f"used {config.path}; {config.conflict} says otherwise of {', '.join(config.differs)}",
                differs=list(config.differs),
            )

    def retention(self, root: str, facts: Step, run: Run | None, settings: Settings) -> None:
        """Where exports count against `keep_latest_k` (TorchTitan up to 0.3.0), says so once for each run."""
        if run is None or run.config is None:
            return
        keep, beside = run.config.keep_latest_k or 0, self._beside.setdefault(run.run, set())
        is_beside = any(found.place == "alongside" and not found.empty for found in facts.published)
        is_made_beside = judge_step.place(facts, run, settings) == "alongside"
        (beside.add if is_beside and not is_made_beside else beside.discard)(facts.step)
        if keep and not (is_made_beside or beside):
            self._without.add(run.run)  # until the other steps were reported, too
            return
        self._without.discard(run.run)
        self._ledger.note_retention(run.run, keep)
        if keep and self._ledger.say_once(run.run, "retention_hazard", f"{keep}: exports"):
            self._log.warning(
                "retention_hazard",
                root=root,
                run=run.name,
                path=run.run,
                keep_latest_k=keep,
                remaining=judge_step.remaining(keep),
                exports_left=judge_step.exports_left(keep),
                deletes_from_save=judge_step.first_loss(keep),
                message=judge_step.hazard(keep),
                hint=judge_step.cure(keep),
            )

    def scanned(self, root: str) -> None:
        """All steps of a root were reported: no export of these runs counts."""
        below = f"{root.rstrip('/')}/"
        for run in [run for run in self._without if f"{run}/".startswith(below)]:
            self._without.discard(run)
            self._ledger.note_retention(run, 0)

    def step_gone(self, run: str, step: int) -> None:
        """A step was purged; TorchTitan deletes its export in its turn."""
        if (beside := self._beside.get(run)) and step in beside:
            beside.discard(step)
            if not beside:
                self._without.add(run)

    def run_gone(self, run: str) -> None:
        """A run is there no more: nothing counts against its `keep_latest_k`."""
        self._beside.pop(run, None)
        self._without.add(run)

    def unsupported(self, log: Logger, run: str, fields: dict[str, Any]) -> None:
        """Nothing of a run can be converted: said once."""
        if self._ledger.say_once(run, "run_unsupported", str(fields.get("message"))):
            log.warning("run_unsupported", **fields)

    # Steps
    def verdict(self, log: Logger, before: Row | None, judged: Judgement, facts: Step, *, tried: bool) -> bool:
        """One line where a step's state or its reason is not what it was `before`; whether it was."""
        is_news = before is None or (before.state, before.reason) != (judged.state, judged.reason)
        lists = self._once and judged.state in LISTED and facts.answer.state != "settling"
        if lists and not tried and facts.path not in self._listed:
            self._listed.add(facts.path)
            is_news = True
        if not is_news:
            return False
        fields: dict[str, Any] = {"message": judged.reason}
        fields |= {"error": judged.error, "hint": judged.hint} if judged.error else {}
        match judged.state:
            case State.DONE if before is None or before.state != State.DONE:
                log.info("conversion_skipped", reason="up_to_date")
            case State.SUSPECT | State.FOREIGN | State.REMOVED:
                log.warning("conversion_skipped", reason=str(judged.state), **fields | {"hint": judged.hint})
            case State.UNSUPPORTED if judged.error == "NoModelInStep":
                log.info("conversion_skipped", reason="no_model", **fields)
            case State.UNSUPPORTED:
                self.unsupported(log, facts.run, fields)
                log.info("conversion_skipped", reason="unsupported", **fields)
            case State.QUARANTINED:
                log.error("conversion_failed", attempt=0, quarantined=True, retry_at=None, **fields)
            case State.INCOMPLETE if lists:
                log.info("conversion_skipped", reason="incomplete", **fields)
            case State.PENDING if judged.reason:
                log.info("step_waiting", **fields)
        return True

    def failure(
        self, log: Logger, outcome: Outcome, follows: Next, attempt: int, fields: dict[str, Any], *, is_known: bool
    ) -> None:
        """The one line of an attempt that failed; `is_known`: a quarantined step was looked at again, and nothing is new."""
        if is_known:
            later = None if follows.next_attempt is None else units.utc(follows.next_attempt)
            log.info("still_quarantined", attempt=attempt, retry_at=later, seconds=outcome.seconds, **fields)
        elif follows.state == State.VANISHED:
            log.info("step_vanished", **fields)
        elif follows.state in (State.INCOMPLETE, State.SUSPECT, State.FOREIGN):
            log.warning("conversion_skipped", reason=str(follows.state), **fields)
        elif follows.state != State.UNSUPPORTED:
            again = None if self._once or follows.state == State.QUARANTINED else follows.next_attempt
            log.error(
                "conversion_failed",
                attempt=attempt,
                quarantined=follows.state == State.QUARANTINED,
                retry_at=None if again is None else units.utc(again),
                seconds=outcome.seconds,
                **fields,
            )

    def non_finite(self, log: Logger, row: Row, outcome: Outcome, now: float) -> None:
        """NaN or infinity in a save's weights, an emergency for its training: said once for each save."""
        figures = outcome.event.get("figures", {})
        count, nan, inf = (int(figures.get(name, 0)) for name in ("count", "nan", "inf"))
        if self._ledger.note_non_finite(row, tensors=count, nan=nan, inf=inf, now=now):
            log.error(
                "non_finite_weights",
                save_id=row.save_id,
                message=f"{count} tensors hold NaN ({nan:,} elements) or infinity ({inf:,})",
                hint="look at the training run now: what it saves from here on may be broken too",
                count=count,
                nan=nan,
                inf=inf,
                tensors=dict(sorted(figures.get("tensors", {}).items())[:NAMED]),
            )


class AttemptEvents:
    """Logs an attempt's events as they come: progress at most every ten seconds, warnings all."""

    def __init__(self, log: Logger, attempt: int) -> None:
        self._log, self._attempt = log, attempt
        self._last = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "conversion_progress" if time.monotonic() - self._last >= PROGRESS_EVERY:
                self._last = time.monotonic()
                self._log.info("conversion_progress", attempt=self._attempt, **fields_of(event))
            case "waiting_for_lock":
                who = {name: event[name] for name in ("owner", "pid") if name in event}
                self._log.info("waiting_for_lock", attempt=self._attempt, lock=event.get("path"), **who)
            case "warning":
                self._log.warning("conversion_warning", attempt=self._attempt, **fields_of(event))
            case _:
                pass


def fields_of(event: dict[str, Any]) -> dict[str, Any]:
    """What an event of the converter says, without what the log line says by itself."""
    own = ("event", "level", "timestamp", "root", "run", "step", "path", "attempt")
    return {str(key): value for key, value in event.items() if key not in own}
