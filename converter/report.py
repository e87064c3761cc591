"""Owns what a person or a script sees of a running conversion: a progress bar, log lines, or JSON events."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

Report = Callable[[str, dict[str, Any]], None]
_LEVELS = {
    "conversion_failed": "error",
    "warning": "warning",
    "run_config_conflict": "warning",
    "conversion_progress": "debug",
}


@contextmanager
def reporter(*, events: bool) -> Iterator[Report]:
    """Where reports go: `--events` to stdout as JSON, a terminal gets a bar, anything else log lines on stderr."""
    if events:
        yield _json_lines()
    elif sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _log_lines


def _json_lines() -> Report:
    lock = threading.Lock()

    def report(event: str, fields: dict[str, Any]) -> None:
        said = {"event": event, "level": _LEVELS.get(event, "info"), "timestamp": _now()} | fields
        with lock:
            print(json.dumps(said), flush=True)

    return report


def _log_lines(event: str, fields: dict[str, Any]) -> None:
    if event != "conversion_progress":
        said = " ".join(f"{key}={_short(value)}" for key, value in fields.items() if key not in ("checks", "figures"))
        print(f"{_now()} [{_LEVELS.get(event, 'info')}] {event} {said}", file=sys.stderr, flush=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _short(value: Any) -> str:
    """A value on one line, without anything that a terminal obeys: names come from other people."""
    return json.dumps(value) if not isinstance(value, str) or not value.isprintable() or " " in value else value


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(event: str, fields: dict[str, Any]) -> None:
            name = f"step {fields.get('step', '')}"
            if event == "conversion_progress":
                phase = fields["phase"]
                if phase == "compare":
                    return
                if phase not in tasks:
                    tasks[phase] = progress.add_task(phase.replace("_", " "), total=fields["bytes_total"])
                progress.update(tasks[phase], completed=fields["bytes_done"])
                return
            for task in tasks.values():
                progress.remove_task(task)
            tasks.clear()
            if event == "conversion_started":
                console.print(f"{name}: converting to {escape(_short(fields['output']))}")
            elif event == "conversion_succeeded":
                passed = sum(check["verdict"] == "passed" for check in fields["checks"])
                missed = [check["name"] for check in fields["checks"] if check["verdict"] != "passed"]
                rest = f"; not run: {', '.join(missed)}" if missed else ""
                console.print(
                    f"[green]{name}: done[/] in {fields['duration_seconds']:.1f} s, {fields['bytes_written'] / 1e9:.2f} GB, {passed} checks passed{rest}"
                )
            elif event == "conversion_failed":
                console.print(
                    f"[red]{name}: {fields['error']}[/] {escape(fields['message'])}: {escape(_short(fields['path']))}\n  → {escape(fields['hint'])}"
                )
            elif event == "conversion_skipped":
                console.print(f"{name}: skipped, {escape(fields['reason'])}")
            elif event == "warning":
                console.print(f"[yellow]warning:[/] {escape(fields['message'])}")
            else:
                console.print(f"{event} " + escape(" ".join(f"{k}={_short(v)}" for k, v in fields.items())))

        yield report
