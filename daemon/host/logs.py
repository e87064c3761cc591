"""Owns the log. It alone configures structlog. The log has JSON lines, or readable lines on a terminal.

Every line has `event`, `level` and `timestamp` (UTC). Lines about a step have `root`, `run`, `step` and `path`. Under
the journal each line begins with its priority (`<6>`, sd-daemon(3)), so that `journalctl -p err` works.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol, TextIO, cast

# structlog.dev imports rich, where it is installed, for tracebacks that we never print: 4 MB that a daemon keeps.
_rich = sys.modules.get("rich", sys)
if _rich is sys:
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _rich is sys:
    del sys.modules["rich"]

PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


class Logger(Protocol):
    """What the rooms of the daemon log with: an event's name and its fields."""

    def debug(self, event: str, **fields: Any) -> Any: ...
    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...
    def bind(self, **fields: Any) -> "Logger": ...


def logger(stream: TextIO | None = None, *, environ: Mapping[str, str] = os.environ) -> Logger:
    """A logger that writes to `stream` (stdout), in the form that its reader wants."""
    stream = stream or sys.stdout
    last: list[structlog.typing.Processor]
    if stream.isatty():
        colors = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        last = [
            _brief,
            _printable,
            structlog.dev.ConsoleRenderer(
                colors=colors,
                exception_formatter=structlog.dev.plain_traceback,
                sort_keys=False,
                pad_event_to=21,
                timestamp_key="timestamp",
            ),
        ]
    else:
        last = [_journal_line if _is_journal(stream, environ) else structlog.processors.JSONRenderer()]
    return cast(
        Logger,
        structlog.wrap_logger(
            structlog.WriteLogger(stream),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                _in_order,
                *last,
            ],
            wrapper_class=structlog.make_filtering_bound_logger("info"),
            context_class=dict,
        ),
    )


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether `stream` is the one that systemd connected to the journal (`JOURNAL_STREAM`, systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


_json = structlog.processors.JSONRenderer()


def _journal_line(logger: Any, method: str, fields: structlog.typing.EventDict) -> str:
    priority = PRIORITY[fields["level"]]
    return f"<{priority}>{cast(str, _json(logger, method, fields))}"


def _in_order(_logger: Any, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What a reader looks for first, first."""
    first = ("timestamp", "level", "event", "root", "run", "step", "path")
    return {key: fields[key] for key in first if key in fields} | {
        key: value for key, value in fields.items() if key not in first
    }


def _brief(_logger: Any, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """For a terminal: how many checks passed instead of each, and nothing twice. JSON lines have it all."""
    said = {key: value for key, value in fields.items() if key not in ("root", "path", "phases", "figures", "warnings")}
    if "step" not in fields:  # then nothing else says what it is about
        said |= {key: fields[key] for key in ("root", "path") if key in fields}
    if isinstance(checks := said.get("checks"), list):
        passed = sum(check["verdict"] == "passed" for check in checks)
        others = [check["name"] for check in checks if check["verdict"] != "passed"]
        said["checks"] = f"{passed} passed" + (f", not run or accepted: {', '.join(others)}" if others else "")
    return said


def _printable(_logger: Any, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """File names and other people's words, without line breaks or terminal escapes (JSON escapes them anyway)."""
    return {
        key: value if not isinstance(value, str) or value.isprintable() else ascii(value)[1:-1]
        for key, value in fields.items()
    }
