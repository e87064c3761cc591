"""Owns the progress of running conversions, read from the daemon on `metrics_address`. The ledger does not have it.

A display must not wait. Values that are not available at once are left out. The process that listens there may be
another program.
"""

import socket
import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from converter.common.text_columns import about
from daemon.config import units
from daemon.ledger.records import State

_TIMEOUT = 1.0
"""Seconds, for all of it: an answer that comes byte by byte ends as well."""
_MOST = 16 << 20
"""Bytes of an answer: 10,000 steps are a hundredth of it."""
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses to listen on, and where to ask."""


_Count = Annotated[int, Meta(ge=0, lt=1 << 62)]


class _Running(msgspec.Struct, frozen=True):
    """Of the page's `status.json`: what runs."""

    path: str
    phase: Annotated[str, Meta(max_length=100)] = ""
    done: _Count = 0
    total: _Count = 0


class _Said(msgspec.Struct, frozen=True):
    running: list[_Running] = []


def add_progress(found: dict[str, Any], address: str) -> None:
    """Fills in `progress` of the steps that run in a report of `status`; null where the daemon does not say."""
    steps = [step for run in found["runs"] for step in run["steps"] if step["state"] == State.RUNNING]
    said = {one.path: one for one in _ask(address)} if steps and address else {}
    for step in steps:
        one = said.get(step["path"])
        step["progress"] = {"phase": one.phase, "done": one.done, "total": one.total} if one and one.phase else None


def _ask(address: str) -> list[_Running]:
    try:
        host, port = units.address(address)
        return msgspec.json.decode(_get(_EVERYWHERE.get(host, host), port), type=_Said).running
    except (OSError, ValueError, msgspec.MsgspecError):
        return []


def _get(host: str, port: int) -> bytes:
    """The body of `/status.json`. Raises OSError where it is not there in time, or too large."""
    ends, said = time.monotonic() + _TIMEOUT, bytearray()
    with socket.create_connection((host, port), timeout=_TIMEOUT) as asked:
        asked.sendall(b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while (left := ends - time.monotonic()) > 0 and len(said) <= _MOST:
            asked.settimeout(left)
            if not (block := asked.recv(1 << 16)):
                return bytes(said).partition(b"\r\n\r\n")[2]
            said += block
    raise TimeoutError


def text(progress: dict[str, Any] | None) -> str:
    """`export 43 % of 1.2GB`; empty where nothing is known."""
    if not progress:
        return ""
    done, total = progress["done"], progress["total"]
    if not total:
        return str(progress["phase"])
    whole = f"{total} layers" if progress["phase"] == "forward" else about(total)
    return f"{progress['phase']} {min(100, 100 * done // total)} % of {whole}"
