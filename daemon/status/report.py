"""Owns the data of `dcp2hfd status`: the ledger as JSON for scripts, or as plain columns (`terminal` draws)."""

import json
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from converter.common.errors import printable
from converter.common.text_columns import about, columns
from daemon.config import units
from daemon.config.flag_to_key import retry
from daemon.ledger import database
from daemon.ledger.gone_steps import Missing, stands
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Row, State
from daemon.ledger.root_states import RootState
from daemon.ledger.slurm_jobs import SlurmJob
from daemon.rules import judge_step
from daemon.scanner import unwatched_folders
from daemon.scanner.unwatched_folders import Looked, Looks
from daemon.status import live_progress
from daemon.status.report_types import (
    DaemonReport,
    JobReport,
    Report,
    RetentionReport,
    RootReport,
    RunReport,
    StepReport,
)

NOBODY = "not running, nothing is tried until one does"
HEAD = ("step", "state", "attempts", "took", "size", "what")
LOOK = 10.0
"""Seconds between two looks of `--watch` at a disk that no daemon watches."""


def report(ledger: Ledger | None, folder: Path, looks: Looks[Looked] | None = None) -> dict[str, Any]:
    """The whole status as JSON, a `report_types.Report`. Times are ISO 8601 UTC, sizes bytes, durations seconds.

    A step that a dead daemon left `running` is pending. Roots that no daemon watches now are looked at, with `looks`.
    """
    runs: dict[str, RunReport] = {}
    keeps = ledger.retention() if ledger is not None else {}
    daemons = ledger.daemons() if ledger is not None else []
    attempts = ledger.last_attempts() if ledger is not None else {}
    jobs = ledger.last_jobs() if ledger is not None else {}
    missing = ledger.missing() if ledger is not None else {}
    rows = list(ledger.rows()) if ledger is not None else []
    states = _roots(ledger) if ledger is not None else []
    watched = {root["root"] for root in states if root["state"] not in ("unwatched", "left")}
    seen = _look_at_unwatched(rows, states, watched, looks or Looks())
    for row in rows:
        run = runs.setdefault(
            row.run,
            {
                "root": row.root,
                "run": row.run_name,
                "path": row.run,
                "retention": retention(keeps.get(row.run, 0)),
                "steps": [],
            },
        )
        there = seen[row.root].runs.get(row.run) if row.root in seen else None
        gone = (
            missing.get(row.path)
            if there is None
            else Missing(row.step not in there.steps, row.step not in there.exports)
        )
        told = step(row, attempts.get(row.path, {}), jobs.get(row.path), gone, is_running=bool(daemons))
        run["steps"].append(told if row.root in watched else {**told, "retry_at": None})
    made: Report = {
        "state_dir": str(folder),
        "config_error": None,
        "roots": states,
        "daemons": [cast(DaemonReport, d | {"since": units.utc(d["since"])}) for d in daemons],
        "runs": [_without_path_if_gone(run) for _, run in sorted(runs.items())],
    }
    return cast(dict[str, Any], made)


def _roots(ledger: Ledger) -> list[RootReport]:
    """Every root that is known, and whether it is watched."""
    return [root(known) for known in ledger.root_states()]


def _without_path_if_gone(run: RunReport) -> RunReport:
    """TorchTitan deletes nothing more of a run that is gone."""
    return {**run, "path": None, "retention": None} if is_gone(step["state"] for step in run["steps"]) else run


def is_gone(states: Iterable[str]) -> bool:
    """Whether neither a checkpoint nor an export is left of a run whose steps are in these states."""
    return set(states) == {State.VANISHED}


def root(known: RootState) -> RootReport:
    """One of them."""
    return {"root": known.root, "state": known.state, "since": units.utc(known.since), "message": known.message}


def retention(keep_latest_k: int) -> RetentionReport | None:
    """What a run's `keep_latest_k` keeps beside its exports; None where they do not count against it (0)."""
    if not keep_latest_k:
        return None
    return {
        "keep_latest_k": keep_latest_k,
        "complete": judge_step.remaining(keep_latest_k),
        "exports": judge_step.exports_left(keep_latest_k),
        "deletes_from_save": judge_step.first_loss(keep_latest_k),
        "message": judge_step.hazard(keep_latest_k),
        "hint": judge_step.cure(keep_latest_k),
    }


def _look_at_unwatched(
    rows: list[Row], states: list[RootReport], watched: set[str], looks: Looks[Looked]
) -> dict[str, Looked]:
    """What is there of the roots that no daemon watches now, by root; says in `states` which of them cannot be listed."""
    unwatched: dict[str, set[str]] = {}
    for row in rows:
        if row.root not in watched:
            unwatched.setdefault(row.root, set()).add(row.run)
    asked = {root: partial(unwatched_folders.at_root, root, runs) for root, runs in unwatched.items()}
    hangs = Looked(f"no answer within {unwatched_folders.PATIENCE:.0f} s: does its mount hang?", {})
    found = {root: seen or hangs for root, seen in looks.within(unwatched_folders.PATIENCE, asked).items()}
    for root in states:
        if root["root"] in found and not root["message"]:
            root["message"] = found[root["root"]].problem
    return found


def step(
    row: Row, attempt: dict[str, Any], job: SlurmJob | None, missing: Missing | None = None, *, is_running: bool
) -> StepReport:
    """One step, with the last attempt at it and its job; `is_running`: a daemon has this ledger in use."""
    event = attempt.get("event", {})
    state = State.PENDING if row.state == State.RUNNING and not is_running else row.state
    if state == State.RUNNING:  # what an earlier attempt met is over
        row = msgspec.structs.replace(row, reason="", error=None, hint="")
    missing = missing or Missing()
    if (now := stands(state, missing)) != state:
        was_published = row.state in (State.DONE, State.REMOVED)
        reason, hint = "neither its checkpoint nor its export is there" if was_published else "the step is gone", ""
        if now == State.REMOVED:
            reason, hint = "the published directory was removed", f"to have it again: {retry(row.path)}"
        state, row = now, msgspec.structs.replace(row, reason=reason, error=None, hint=hint)
    is_nowhere = state in (State.VANISHED, State.REMOVED)
    return {
        "step": row.step,
        "path": None if missing.checkpoint or state == State.VANISHED else row.path,
        "state": str(state),
        "reason": row.reason,
        "save_id": row.save_id or None,
        "attempts": attempt.get("number", 0),
        "failed_attempts": row.attempts,
        "duration_seconds": event.get("duration_seconds", attempt.get("seconds")),
        "bytes_read": event.get("bytes_read"),
        "bytes_written": event.get("bytes_written"),
        "model_bytes": row.answer.model_bytes if row.answer else None,
        "output": None if is_nowhere else row.output,
        "error": row.error,
        "hint": row.hint or None,
        "retry_at": units.utc(row.next_attempt)
        if row.next_attempt is not None and state in (State.FAILED, State.QUARANTINED)
        else None,
        "last_attempt_at": units.utc(attempt["started"]) if attempt else None,
        "job": _job(job) if job is not None else None,
        "progress": None,
    }


def _job(job: SlurmJob) -> JobReport:
    """The last Slurm job of a step; `ended` is null while it waits or runs, whether or not a daemon follows it."""
    return {
        "id": job.id or None,
        "name": job.name,
        "state": job.state or None,
        "reason": job.reason if job.reason not in ("", "None") else None,
        "ended": job.ending or None,
        "output": job.output,
    }


def look(folder: Path, address: str = "") -> dict[str, Any]:
    """The status of the ledger in `folder`, opened for reading and closed again; progress as the daemon at `address` says.

    Raises LedgerError.
    """
    ledger = Ledger.read(folder)
    try:
        found = report(ledger, folder)
        live_progress.add_progress(found, address)
        return found
    finally:
        if ledger is not None:
            ledger.close()


def looking_again(folder: Path, address: str = "") -> Callable[[], dict[str, Any]]:
    """`look` for somebody who looks again and again: reads 10,000 steps anew only where something was written.

    Who runs is asked each time: a daemon that is killed writes nothing. While none runs, the disk is asked every `LOOK`.
    """
    before: tuple[Any, ...] = ()
    found: dict[str, Any] = {}
    last, looks = float("-inf"), Looks[Looked]()

    def again() -> dict[str, Any]:
        nonlocal before, found, last
        ledger, written = Ledger.read(folder), database.written(folder)
        try:
            now = (written, ledger and ledger.daemons())
            is_due = not found.get("daemons") and time.monotonic() - last > LOOK
            if now != before or is_due:
                before, found, last = now, report(ledger, folder, looks), time.monotonic()
            live_progress.add_progress(found, address)
        finally:
            if ledger is not None:
                ledger.close()
        return found

    return again


def plain(found: dict[str, Any], now: float) -> str:
    """The status as text that scripts may cut up: every step on a line of its own. `now` is seconds since the epoch."""
    lines = [f"daemon: {who_runs(found)}; ledger in {printable(found['state_dir'])}", *map(printable, notices(found))]
    if not found["runs"]:
        lines.append(nothing(found))
    for run in found["runs"]:
        rows = [_cells(step, now) for step in run["steps"]]
        lines += ["", f"{printable(run['run'])} ({where(run)})"]
        lines += [printable(f"warning: {hazard}")] if (hazard := risk(run)) else []
        lines += columns(HEAD, rows)
    return "\n".join(lines)


def notices(found: dict[str, Any]) -> list[str]:
    """What is so of the whole: each root, and a configuration that is refused."""
    said = [f"root: {root['root']}: {_state(root)}" for root in found["roots"]]
    for daemon in found["daemons"]:
        if daemon["config_error"]:
            said.append(
                f"pid {daemon['pid']} refused a reload, and uses the configuration before it: {daemon['config_error']}"
            )
    return said


def _state(root: dict[str, Any]) -> str:
    words = {
        "left": "no longer in the configuration",
        "starting": "not scanned yet",
    }
    words |= {"empty": "watched; no run in it"}
    if root["state"] == "unwatched":  # since when, a daemon that was killed did not note
        return f"not watched: no daemon runs for it{': ' if root['message'] else ''}{root['message']}"
    said = f"{words.get(root['state'], root['state'])} since {root['since']}"
    return f"{said}: {root['message']}" if root["message"] else said


def where(run: dict[str, Any]) -> str:
    """The folder of a run, or that it is gone."""
    return printable(run["path"] or "gone")


def risk(run: dict[str, Any]) -> str:
    """What TorchTitan's retention will delete of a run, and what to set; empty: nothing."""
    return f"{run['retention']['message']}; {run['retention']['hint']}" if run["retention"] else ""


def nothing(found: dict[str, Any]) -> str:
    """What is said where no step is known: a person may have asked the wrong ledger."""
    if (Path(found["state_dir"]) / database.NAME).exists():
        return "no step is known yet"
    return "no ledger there: no daemon ran with this state_dir yet; the one of another configuration: --config FILE"


def who_runs(found: dict[str, Any]) -> str:
    """The daemons of a report, or that there is none."""
    return ", ".join(f"pid {daemon['pid']} since {daemon['since']}" for daemon in found["daemons"]) or NOBODY


def _cells(step: dict[str, Any], now: float) -> tuple[str, ...]:
    return (
        str(step["step"]),
        step["state"],
        str(step["attempts"] or ""),
        f"{step['duration_seconds']:.1f} s" if step["duration_seconds"] else "",
        size(step),
        printable(step["output"] or "") if step["state"] == State.DONE else why(step, now),
    )


def size(step: dict[str, Any]) -> str:
    """Of the export, or of the model in the checkpoint where there is none yet."""
    count = step["bytes_written"] or step["model_bytes"]
    return about(count) if count else ""


def brief(step: dict[str, Any], now: float) -> str:
    """What a step that is not done failed with, and in how long it is tried again; empty if there is nothing to say."""
    said = (live_progress.text(step["progress"]), step["error"], _again(step, now), _of_job(step))
    return printable(", ".join(filter(None, said)))


def why(step: dict[str, Any], now: float) -> str:
    """All that is said of a step that is not done; nothing in it that a terminal obeys."""
    said = ": ".join(filter(None, (live_progress.text(step["progress"]), step["error"], step["reason"])))
    said = "; ".join(filter(None, (said, step["hint"], _of_job(step))))
    again = _again(step, now)
    return printable(f"{said} ({again})" if again else said)


def _of_job(step: dict[str, Any]) -> str:
    """The job of a step that waits or runs."""
    job = step["job"]
    if job is None or job["ended"]:
        return ""
    why = f" ({job['reason']})" if job["reason"] else ""
    return f"job {job['id'] or job['name']} {job['state'] or 'is being submitted'}{why}"


def _again(step: dict[str, Any], now: float) -> str:
    if step["retry_at"]:
        return f"again in {max(0, round(seconds(step['retry_at']) - now))} s"
    return "again once a daemon watches it" if step["state"] == State.FAILED else ""


def seconds(time: str) -> float:
    """A time of a report as seconds since the epoch."""
    return datetime.fromisoformat(time).timestamp()


def as_json(found: dict[str, Any]) -> str:
    """What `--json` prints."""
    return json.dumps(found, indent=2)
