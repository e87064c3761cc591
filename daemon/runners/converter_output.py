"""Owns the reading of a converter's output: which lines are events, and the outcome of the attempt. Pure."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from converter.common.errors import Retry
from daemon.config.flag_to_key import in_keys
from daemon.ledger.records import Outcome

ENDS = {"conversion_succeeded": "succeeded", "conversion_skipped": "skipped", "conversion_failed": "failed"}
"""Events that end a conversion, and its result."""
MOST_OUTPUT = 100
"""Lines of other output that are logged for one attempt."""


_ORDERS = frozenset({"self", "method_name", "exc_info", "stack_info"})
"""Keys that whoever makes log lines takes for orders; no converter's event has one."""
_Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
"""What the ledger has a place for."""
_Seconds = Annotated[float, Meta(ge=0)]


class _Figures(msgspec.Struct, frozen=True):
    """Those of a failure that are counted with."""

    count: _Count = 0
    nan: _Count = 0
    inf: _Count = 0
    tensors: dict[str, Any] = {}


class _End(msgspec.Struct, frozen=True):
    """What of a last event is counted with or kept: it must be numbers, and a path."""

    bytes_read: _Count = 0
    bytes_written: _Count = 0
    duration_seconds: _Seconds = 0.0
    phases: dict[str, _Seconds] = {}
    figures: _Figures = _Figures()
    output: str | None = None
    listing: str = ""


def event_of(line: bytes) -> dict[str, Any] | None:
    """A line as an event; None for what else a library, or somebody who can write where a job says it, may print."""
    try:
        said = msgspec.json.decode(line)
        if not isinstance(said, dict) or not isinstance(said.get("event"), str) or said.keys() & _ORDERS:
            return None
        if said["event"] in ENDS:
            msgspec.convert(said, _End)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return said


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
        hint=in_keys(str(event.get("hint", ""))),
        retry=Retry(retry) if retry in Retry.__members__.values() else Retry.BACKOFF,
    )
