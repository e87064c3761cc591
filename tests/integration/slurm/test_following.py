"""What a job says is heard as a worker's lines are, whoever wrote them; where it stopped reading is known to whoever comes next."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from converter.common.errors import Retry
from daemon.config.settings import Settings
from daemon.host import logs
from daemon.runners import converter_output
from daemon.runners.base import Order
from daemon.runners.slurm.job_events import Following
from tests.unit.daemon.conftest import facts, row

BEGUN = json.dumps({"event": "conversion_started"})
DONE = json.dumps({"event": "conversion_succeeded", "bytes_written": 7})
WAITS = json.dumps({"event": "waiting_for_lock"})


class Heard:
    """What came of lines."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.output: list[str] = []

    def follow(self, go: Callable[[Following], Any]) -> Any:
        """What `go` says of a following that hands on to this one."""

        async def inside() -> Any:
            return go(
                Following(
                    Order(
                        [], Settings(), facts(), row(), logs.logger(), lambda event: self.events.append(event["event"]), self.output.append
                    )
                )
            )  # fmt: skip

        return asyncio.run(inside())


def test_events_are_handed_on_and_all_else_is_output() -> None:
    heard = Heard()
    heard.follow(
        lambda following: following.read(
            [(0, BEGUN), (30, "a warning of a library "), (50, ""), (51, WAITS), (80, DONE)]
        )
    )

    assert (heard.events, heard.output) == (
        ["conversion_started", "waiting_for_lock", "conversion_succeeded"],
        ["a warning of a library"],
    )


def test_output_without_end_is_cut_off() -> None:
    heard = Heard()
    heard.follow(lambda following: following.read([(n, "again") for n in range(10_000)]))

    assert len(heard.output) == converter_output.MOST_OUTPUT


def test_its_end_is_what_its_last_event_says_and_its_exit_code_agrees_with() -> None:
    def end(code: int) -> Callable[[Following], Any]:
        def go(following: Following) -> Any:
            following.read([(0, BEGUN), (30, DONE)])
            following.has_ended(code, "n1")
            return following.said, following.place

        return go

    outcome, place = Heard().follow(end(0))
    assert (outcome.result, outcome.event["bytes_written"], place) == ("succeeded", 7, 30)
    outcome, _ = Heard().follow(end(7))
    assert (outcome.result, outcome.retry, "exit code 7" in outcome.message) == ("failed", Retry.BACKOFF, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"bytes_read": "many"},
        {"phases": ["export"]},
        {"phases": {"export": "long"}},
        {"duration_seconds": {}},
        {"figures": {"nan": "x"}},
        {"figures": {"tensors": 7}},
        {"figures": {"inf": 10**25}},
        {"bytes_written": 1 << 63},
        {"bytes_read": -1},
        {"phases": {"export": -1.0}},
        {"output": ["/r"]},
    ],
)
@pytest.mark.parametrize("event", list(converter_output.ENDS))
def test_an_end_whose_figures_are_none_is_no_event(event: str, fields: dict[str, Any]) -> None:
    assert converter_output.event_of(json.dumps({"event": event} | fields).encode()) is None
    assert converter_output.event_of(json.dumps({"event": event}).encode()) == {"event": event}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b'{"event": 7}',
        b'{"a": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"event": "warning", "self": 1}',
        b'{"event": "warning", "exc_info": true}',
    ],
)
def test_a_line_that_is_no_event_is_none(line: bytes) -> None:
    assert converter_output.event_of(line) is None
