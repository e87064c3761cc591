"""Owns what a converter says of itself, wherever it runs: which of its lines are events, and what its end amounts to. Pure."""

from typing import Any

import msgspec

from converter.errors import Retry
from daemon.records import Outcome

ENDS = {"conversion_succeeded": "succeeded", "conversion_skipped": "skipped", "conversion_failed": "failed"}
"""Events that end a conversion, and its result."""
MOST_OUTPUT = 100
"""Lines of other output that are logged for one attempt."""


def event_of(line: bytes) -> dict[str, Any] | None:
    """A line as an event; None for what else a library may print."""
    try:
        said = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return said if isinstance(said, dict) and isinstance(said.get("event"), str) else None


def outcome_of(last: dict[str, Any], code: int | None) -> Outcome | None:
    """What a converter's last event says of its end, where its exit code agrees; None where it does not."""
    said = ENDS.get(str(last.get("event")), "")
    if said == "skipped" and last.get("reason") == "foreign":
        return Outcome(
            result="failed",
            error="OutputForeign",
            message="the published name is somebody else's",
            hint="move it away, or set overwrite_foreign",
            retry=Retry.FOREIGN,
        )
    if (said == "succeeded" and code == 0) or (said == "skipped" and code in (0, 1)):
        return Outcome(result=said, event=last)
    return _failed(last) if said == "failed" and code in (1, 2) else None


def _failed(event: dict[str, Any]) -> Outcome:
    retry = str(event.get("retry"))
    return Outcome(
        result="failed",
        event=event,
        error=str(event.get("error", "ConversionError")),
        message=str(event.get("message", "")),
        path=str(event.get("path", "")),
        hint=str(event.get("hint", "")),
        retry=Retry(retry) if retry in Retry.__members__.values() else Retry.BACKOFF,
    )
