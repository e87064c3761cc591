"""What does not fit waits, is said once a root, and holds nothing smaller up."""

from __future__ import annotations

from typing import Any, cast

import pytest

from daemon.config.settings import Settings
from daemon.host.logs import Logger
from daemon.queue.disk_space import Room
from daemon.rules.schedule import Job

S = Settings(min_free_space=100)


def job(step: int, size: int) -> Job:
    return Job(f"/r/a/step-{step}", "/r", "/r/a", step, 0.0, size)


GIANT, OTHER_GIANT, SMALL = job(1, 10_000), job(2, 9_000), job(3, 10)


class Said(list[str]):
    """The events of a room, which takes this for its log."""

    def info(self, event: str, **_: Any) -> None:
        self.append(event)

    warning = info


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def room(said: Said) -> Room:
    return Room(cast(Logger, said))


def fits(room: Room, job: Job, free: int) -> bool:
    lack = room.lack(job, free_bytes=free, reserved=0, settings=S)
    if lack:
        room.waits(job, lack)
    return lack is None


def test_a_giant_holds_no_smaller_step_up_and_is_said_once(room: Room, said: Said) -> None:
    for _ in range(3):
        assert not fits(room, GIANT, 1000)
        assert fits(room, SMALL, 1000)
        assert not fits(room, OTHER_GIANT, 1000)
        assert not room.is_paused("/r", 0.0)
    assert said == ["queue_paused"]


def test_the_queue_has_resumed_once_all_that_waited_fit(room: Room, said: Said) -> None:
    assert not fits(room, GIANT, 1000)
    assert not fits(room, OTHER_GIANT, 1000)
    assert fits(room, OTHER_GIANT, 9_500)
    assert said == ["queue_paused"]
    assert fits(room, GIANT, 20_000)
    assert said == ["queue_paused", "queue_resumed"]


def test_what_was_purged_waits_no_more(room: Room, said: Said) -> None:
    assert not fits(room, GIANT, 1000)
    room.keep_only({SMALL.path})
    assert not fits(room, OTHER_GIANT, 1000)
    assert said == ["queue_paused"] * 2


def test_a_full_file_system_pauses_its_root_and_is_said_once(room: Room, said: Said) -> None:
    room.pause("/r", 0.0, 50.0, {})
    room.pause("/r", 0.0, 90.0, {})
    assert room.is_paused("/r", 60.0)
    assert not room.is_paused("/r", 95.0)
    assert fits(room, SMALL, 1000)
    assert said == ["queue_paused", "queue_resumed"]


def test_a_root_that_was_full_before_the_clock_was_set_back_is_tried_again() -> None:
    room = Room(cast(Logger, Said()))
    room.pause("/r", 5000.0, 5030.0, {})

    assert room.is_paused("/r", 5010.0)
    assert not room.is_paused("/r", 1400.0)
    assert not room.is_paused("/r", 5030.0)
