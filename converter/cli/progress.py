"""Owns the output of a running conversion: a progress bar, log lines, or JSON events."""

import json
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from converter.common.errors import printable
from converter.common.text_columns import about
from converter.publish.existing_output import WORDS

Report = Callable[[str, dict[str, Any]], None]
_LEVELS = {
    "conversion_failed": "error",
    "warning": "warning",
    "run_config_conflict": "warning",
    "conversion_progress": "debug",
}

_WHOLE = ("checks", "figures", "statistics")
"""Fields that are no words for a line."""


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
            print(json.dumps(_sayable(said)), flush=True)

    return report


def _sayable(value: Any) -> Any:
    """A value as every reader of JSON takes it: null for NaN and infinity (logits may be that). One of those, and the event
    would be none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _sayable(one) for key, one in value.items()}
    return [_sayable(one) for one in value] if isinstance(value, list | tuple) else value


def _log_lines(event: str, fields: dict[str, Any]) -> None:
    if event != "conversion_progress":
        said = " ".join(f"{key}={_short(value)}" for key, value in fields.items() if key not in _WHOLE)
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
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True, highlight=False)

    def say(text: str, style: str = "", lead: str = "") -> None:
        # Not wrapped: a path that the terminal breaks can still be copied as one.
        console.print(f"[{style}]{escape(lead)}[/]{escape(text)}" if style else escape(lead + text), soft_wrap=True)

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[moved]}"))
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        tasks: dict[str, Any] = {}

        def report(event: str, fields: dict[str, Any]) -> None:
            name = f"step {fields['step']}" if "step" in fields else Path(fields.get("path", "")).name
            if event == "conversion_progress":
                phase, done, total = fields["phase"], fields["bytes_done"], fields["bytes_total"]
                if phase not in tasks:
                    tasks[phase] = progress.add_task(phase.replace("_", " "), total=total, moved="")
                progress.update(tasks[phase], completed=done)
                task = next(task for task in progress.tasks if task.id == tasks[phase])
                progress.update(task.id, moved=_moved(phase, done, total, task.speed, task.time_remaining))
                return
            for known in tasks.values():
                progress.remove_task(known)
            tasks.clear()
            if event == "conversion_started":
                say(f"{name}: converting to {_short(fields['output'])}")
            elif event == "conversion_succeeded":
                passed = sum(check["verdict"] == "passed" for check in fields["checks"])
                missed = [check["name"] for check in fields["checks"] if check["verdict"] != "passed"]
                rest = f"; not run: {', '.join(missed)}" if missed else ""
                figures = f" in {fields['duration_seconds']:.1f} s, {about(fields['bytes_written'])}"
                say(f"{figures}, {passed} checks passed{rest}", "green", f"{name}: done")
                if replaced := fields.get("replaced"):
                    say(f"{name}: replaced {WORDS[replaced['whose']]} ({replaced['dtype'] or 'unknown dtype'})")
            elif event == "conversion_failed":
                what = f" {printable(fields['message'])}: {_short(fields['path'])}"
                say(f"{what}\n  → {printable(fields['hint'])}", "red", f"{name}: {fields['error']}")
            elif event == "conversion_skipped":
                say(f"{name}: skipped, {printable(fields['reason'])}")
            elif event == "warning":
                say(f" {printable(fields['message'])}", "yellow", "warning:")
            else:
                say(f"{event} " + " ".join(f"{k}={_short(v)}" for k, v in fields.items()))

        yield report


def _moved(phase: str, done: int, total: int, rate: float | None, left: float | None) -> str:
    """Bytes, rate and time left, as a bar says them: `0.61/1.19 GB  412 MB/s  0:02`. A forward pass counts layers."""
    if phase == "forward":
        return f"{done}/{total} layers"
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if total >= u), (1e3, "kB"))
    speed = f"{rate / 1e6:,.0f} MB/s" if rate else ""
    minutes, seconds = divmod(round(left or 0), 60)
    rest = f"{minutes}:{seconds:02}" if left is not None else "-:--"
    return f"{done / unit:.2f}/{total / unit:.2f} {name}  {speed:>10}  {rest:>5}"
