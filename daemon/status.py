"""Owns what `dcp2hfd status` shows: the ledger as a table for people, or as JSON for scripts."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from daemon import units
from daemon.ledger import Ledger
from daemon.records import Row, State


def report(ledger: Ledger | None, folder: Path) -> dict[str, Any]:
    """The whole status as JSON: `{"state_dir", "daemons": […], "runs": [{"root", "run", "path", "steps": [{…}]}]}`.

    Times are ISO 8601 UTC, sizes bytes, durations seconds. A step that a dead daemon left `running` is pending.
    """
    runs: dict[str, dict[str, Any]] = {}
    daemons = ledger.daemons() if ledger is not None else []
    attempts = ledger.last_attempts() if ledger is not None else {}
    for row in ledger.rows() if ledger is not None else ():
        run = runs.setdefault(row.run, {"root": row.root, "run": row.run_name, "path": row.run, "steps": []})
        run["steps"].append(_step(row, attempts.get(row.path, {}), bool(daemons)))
    return {
        "state_dir": str(folder),
        "daemons": [daemon | {"since": units.utc(daemon["since"])} for daemon in daemons],
        "runs": sorted(runs.values(), key=lambda run: str(run["path"])),
    }


def _step(row: Row, attempt: dict[str, Any], is_running: bool) -> dict[str, Any]:
    event = attempt.get("event", {})
    state = State.PENDING if row.state == State.RUNNING and not is_running else row.state
    return {
        "step": row.step,
        "path": row.path,
        "state": str(state),
        "reason": row.reason,
        "save_id": row.save_id or None,
        "attempts": attempt.get("number", 0),
        "failed_attempts": row.attempts,
        "duration_seconds": event.get("duration_seconds", attempt.get("seconds")),
        "bytes_read": event.get("bytes_read"),
        "bytes_written": event.get("bytes_written"),
        "model_bytes": row.answer.model_bytes if row.answer else None,
        "output": row.output,
        "error": row.error,
        "hint": row.hint or None,
        "retry_at": units.utc(row.next_attempt) if row.next_attempt is not None and row.state == State.FAILED else None,
        "last_attempt_at": units.utc(attempt["started"]) if attempt else None,
    }


def show(ledger: Ledger | None, folder: Path, *, as_json: bool) -> None:
    """Prints the status: JSON, a table on a terminal, plain columns where it is piped."""
    found = report(ledger, folder)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    daemons = ", ".join(f"pid {daemon['pid']} since {daemon['since']}" for daemon in found["daemons"])
    print(f"daemon: {daemons or 'not running'}; ledger in {folder}")
    if not found["runs"]:
        print("no step is known yet")
    for run in found["runs"]:
        print(f"\n{_plain(run['run'])} ({_plain(run['path'])})")
        _table([_cells(step) for step in run["steps"]])


_HEAD = ("step", "state", "attempts", "took", "size", "what")


def _cells(step: dict[str, Any]) -> tuple[str, ...]:
    why = ": ".join(filter(None, (step["error"], step["reason"])))
    what = step["output"] if step["state"] == State.DONE else "; ".join(filter(None, (why, step["hint"])))
    if step["retry_at"]:
        left = max(
            0, round(time.mktime(time.strptime(step["retry_at"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone - time.time())
        )
        what = f"{what} (again in {left} s)"
    size = step["bytes_written"] or step["model_bytes"]
    return (
        str(step["step"]),
        step["state"],
        str(step["attempts"] or ""),
        f"{step['duration_seconds']:.1f} s" if step["duration_seconds"] else "",
        units.about(size) if size else "",
        _plain(what or ""),
    )


def _table(rows: list[tuple[str, ...]]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        colours = {
            "done": "green",
            "running": "cyan",
            "failed": "yellow",
            "suspect": "yellow",
            "foreign": "yellow",
            "quarantined": "red",
        }
        table = Table(*_HEAD, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(Text(cell, style=colours.get(row[1], "") if i == 1 else "") for i, cell in enumerate(row)))
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in [_HEAD, *rows]) for i in range(len(_HEAD))]
    for row in [_HEAD, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _plain(text: str) -> str:
    """Other people's words without line breaks or terminal escapes."""
    return text if text.isprintable() else ascii(text)[1:-1]
