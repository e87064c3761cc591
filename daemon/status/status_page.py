"""Owns the status page: its packaged files, and the JSON that they request.

The JSON is made in the daemon's loop, so every answer is limited. Newest steps come first, and the number of omitted
steps is included.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

import msgspec

from daemon.config import units
from daemon.ledger.overview import Group
from daemon.ledger.page_queries import Cause
from daemon.ledger.records import Row, State
from daemon.ledger.root_states import RootState
from daemon.runners.progress import Progress
from daemon.status import report
from daemon.status.http_server import Response
from daemon.status.report_types import StepReport
from daemon.status.state_view import Sources

FILES = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/plots.js": ("plots.js", "text/javascript"), "/page.css": ("page.css", "text/css")}  # fmt: skip
"""By path, the file below `page/` and its type."""
MOST_RUNS = 200
"""Runs in one answer: those that changed last."""
STEPS_EACH = 3
"""Of each run in an answer about all."""
STEPS_OF_ONE = 500
"""In an answer about one run; its statistics as well."""
MOST_ERRORS = 20
"""Causes of errors in an answer about all."""
_FAILING = (State.FAILED, State.QUARANTINED)
"""States of steps whose runs stand first."""
FRESH = 1.0
"""Seconds for which an answer is good enough for the next who asks."""


def file(name: str, kind: str) -> Callable[[str], Response]:
    """A page that is one of the packaged files."""
    body = (files("daemon.status") / "page" / name).read_bytes()
    return lambda query: Response(body, f"{kind}; charset=utf-8")


class StatusPage:
    """The JSON of one daemon's page."""

    def __init__(self, sources: Sources, *, clock: Callable[[], float] = time.time) -> None:
        self._s, self._clock = sources, clock
        self._revision: tuple[int, int, bool] | None = None
        self._groups: dict[str, list[Group]] = {}
        self._of_ledger: dict[str, msgspec.Raw] = {}
        """What an answer about all says of the ledger, as of `_revision`; empty until somebody asks."""
        self._all, self._made_at = b"", float("-inf")

    def status(self, query: str) -> Response:
        """All runs in brief, what runs now and the last errors; with `run=PATH` that run's steps instead.

        Steps are as `dcp2hfd status --json` has them.
        """
        if (run := _run(query)) is not None:
            return _json(self._about([run], STEPS_OF_ONE))
        if time.monotonic() - self._made_at > FRESH:
            self._all, self._made_at = _encode(self._about_all()), time.monotonic()
        return Response(self._all, _JSON)

    def statistics(self, query: str) -> Response:
        """Of the run `run=PATH`: `{"run", "steps": [{"step", …figures}], "non_finite": […], "left_out"}`."""
        run = _run(query) or ""
        steps, left_out = self._s.ledger.statistics(run, STEPS_OF_ONE)
        found = self._s.ledger.non_finite(run, STEPS_OF_ONE)
        return _json(
            {
                "run": run,
                "steps": [{"step": one.step, "figures": one.figures} for one in steps],
                "non_finite": [one._asdict() for one in found],
                "left_out": left_out,
            }
        )

    def _about_all(self) -> dict[str, Any]:
        self._look()
        if not self._of_ledger:
            self._of_ledger = {name: msgspec.Raw(_encode(said)) for name, said in self._runs_and_errors().items()}
        return {
            "now": units.utc(self._clock()),
            "state_dir_fails": self._s.ledger.is_away,
            "daemons": [daemon | {"since": units.utc(daemon["since"])} for daemon in self._s.ledger.daemons()],
            "roots": [self._root(known) for known in self._s.ledger.root_states()],
            "workers": self._s.settings().workers,
            "running": [_running(row, progress) for row, progress in self._s.conversions.running()],
            **self._of_ledger,
        }

    def _root(self, known: RootState) -> dict[str, Any]:
        """A root as `dcp2hfd status --json` has it, and what this daemon knows besides of those that it watches."""
        watcher = self._s.watchers.get(known.root)
        return {
            **report.root(known),
            "reachable": watcher.is_reachable if watcher is not None else None,
            "free_bytes": watcher.free_bytes if watcher is not None else None,
        }

    def _runs_and_errors(self) -> dict[str, Any]:
        groups = self._groups
        newest = sorted(groups, key=lambda run: (-max(group.updated for group in groups[run]), run))
        newest.sort(key=lambda run: not any(group.state in _FAILING for group in groups[run]))
        return {
            "states": _states(group for found in groups.values() for group in found),
            "errors": [_error(cause) for cause in self._s.ledger.causes(MOST_ERRORS)],
            "runs_left_out": max(0, len(newest) - MOST_RUNS),
            **self._about(newest[:MOST_RUNS], STEPS_EACH),
        }

    def _about(self, runs: list[str], each: int) -> dict[str, Any]:
        """These runs and their newest steps, in this order; those that nobody knows are left out."""
        self._look()
        groups = self._groups
        jobs, missing = (
            self._s.ledger.last_jobs(),
            self._s.ledger.missing(known := [run for run in runs if run in groups]),
        )
        steps: dict[str, list[tuple[Row, StepReport]]] = defaultdict(list)
        for row, attempt in self._s.ledger.newest(known, each):
            told = report.step(row, attempt, jobs.get(row.path), missing.get(row.path), is_running=True)
            steps[row.run].append((row, told))
        keeps = self._s.ledger.retention()
        return {"runs": [_run_of(groups[run], found, keeps.get(run, 0)) for run in runs if (found := steps.get(run))]}

    def _look(self) -> None:
        """Takes note of how the steps of runs stand, where anything was written since."""
        if (revision := self._s.ledger.revision()) == self._revision:
            return
        self._revision, self._groups, self._of_ledger = revision, {}, {}
        for group in self._s.ledger.overview().groups:
            self._groups.setdefault(group.run, []).append(group)


_JSON = "application/json"


def _run(query: str) -> str | None:
    """The value of `run` in a query. No run's name is anything but UTF-8: others are left alone."""
    return next(iter(parse_qs(query).get("run", [])), None)


def _encode(said: Any) -> bytes:
    return msgspec.json.encode(said)


def _json(said: Any) -> Response:
    return Response(_encode(said), _JSON)


def _states(groups: Iterable[Group]) -> Counter[str]:
    states = Counter[str]()
    for group in groups:
        states[group.state] += group.steps
    return states


def _run_of(groups: list[Group], steps: list[tuple[Row, StepReport]], keep_latest_k: int) -> dict[str, Any]:
    states, row = _states(groups), steps[0][0]
    return {
        "root": row.root,
        "run": row.run_name,
        "path": row.run,
        "changed": units.utc(max(group.updated for group in groups)),
        "states": states,
        "retention": None if report.is_gone(states) else report.retention(keep_latest_k),
        "steps": [step for _, step in steps],
        "left_out": states.total() - len(steps),
    }


def _running(row: Row, progress: Progress) -> dict[str, Any]:
    return {
        "run": row.run_name,
        "run_path": row.run,
        "step": row.step,
        "path": row.path,
        "attempt": row.attempts + 1,
        "since": units.utc(progress.began),
        "phase": progress.phase,
        "phase_since": units.utc(progress.phase_began),
        "done": progress.done,
        "total": progress.total,
    }


def _error(cause: Cause) -> dict[str, Any]:
    row = cause.newest
    return {
        "steps": cause.steps,
        "runs": cause.runs,
        "run": row.run_name,
        "run_path": row.run,
        "step": row.step,
        "state": str(row.state),
        "error": row.error,
        "message": row.reason,
        "hint": row.hint,
        "at": units.utc(cause.at),
    }
