"""Owns how far running conversions are, as their daemon itself says on `metrics_address`: the ledger does not know.

A display is not worth waiting for: what cannot be had at once is left out.
"""

import contextlib
from typing import Any

import msgspec

from daemon import units
from daemon.records import State

_TIMEOUT = 0.5
"""Seconds."""
_MOST = 16 << 20
"""Bytes of an answer: 10,000 steps are a hundredth of it."""
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses to listen on, and where to ask."""


class _Running(msgspec.Struct, frozen=True):
    """Of the page's `status.json`: what runs."""

    path: str
    phase: str = ""
    done: int = 0
    total: int = 0


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
    import http.client  # the daemon imports this module for its page, and asks nobody

    try:
        host, port = units.address(address)
        with contextlib.closing(
            http.client.HTTPConnection(_EVERYWHERE.get(host, host), port, timeout=_TIMEOUT)
        ) as asked:
            asked.request("GET", "/status.json")
            return msgspec.json.decode(asked.getresponse().read(_MOST), type=_Said).running
    except (OSError, ValueError, http.client.HTTPException, msgspec.MsgspecError):
        return []


def text(progress: dict[str, Any] | None) -> str:
    """`export 43 % of 1.2GB`; empty where nothing is known."""
    if not progress:
        return ""
    done, total = progress["done"], progress["total"]
    if not total:
        return str(progress["phase"])
    whole = f"{total} layers" if progress["phase"] == "forward" else units.about(total)
    return f"{progress['phase']} {min(100, 100 * done // total)} % of {whole}"
