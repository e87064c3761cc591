"""A lock whose owner cannot be looked up is stale when nothing changed in it for long, by our own clock, and only then."""

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from converter.common import names_on_disk
from converter.publish import lock, owners, stale_files
from daemon.scanner import lock_ages
from daemon.scanner.lock_ages import Sightings


class Seen:
    """Sightings of one lock, with a clock of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 1000.0
        self._sightings = Sightings(lambda: self.now)

    def is_stale(self, after: float = 0.0) -> bool:
        self.now += after
        return self._sightings.is_stale(self.path, owners.read_owner(self.path))


def leave(folder: Path, step: int = 10, **changes: object) -> Path:
    """What an owner that cannot be looked up left, long ago by its own clock: a staging directory and its lock."""
    owner = replace(
        lock.Lock(folder, step).owner, **{"host": "elsewhere/1/pid:[1]", "token": f"{step:016x}", **changes}
    )
    path = folder / names_on_disk.lock_name(step)
    path.write_text(json.dumps(asdict(owner)))
    os.utime(path, (1.0, 1.0))
    (folder / names_on_disk.staging_name(step, owner.token)).mkdir()
    return path


def test_an_owner_elsewhere_is_dead_once_its_lock_did_not_change_for_long(tmp_path: Path) -> None:
    seen = Seen(leave(tmp_path))

    assert not seen.is_stale()
    for _ in range(3):
        assert not seen.is_stale(after=lock.STALE / 3)
    assert seen.is_stale(after=1.0)


def test_a_pause_of_our_own_counts_as_no_more_than_a_part_of_that_time(tmp_path: Path) -> None:
    """The server may have answered nobody, the owner neither."""
    seen = Seen(leave(tmp_path))

    assert not seen.is_stale()
    assert not seen.is_stale(after=3600.0)
    os.utime(seen.path)  # the owner goes on
    assert not seen.is_stale(after=10.0)
    assert [seen.is_stale(after=3600.0) for _ in range(3)] == [False, False, True]


def test_a_heartbeat_or_another_owner_begins_the_time_anew(tmp_path: Path) -> None:
    seen = Seen(leave(tmp_path))
    assert not seen.is_stale()
    os.utime(seen.path)
    assert not seen.is_stale(after=lock.STALE + 1)
    before = seen.path.stat().st_mtime_ns
    leave_another = json.loads(seen.path.read_text()) | {"token": "f" * 16}
    seen.path.write_text(json.dumps(leave_another))
    os.utime(seen.path, ns=(before, before))
    assert [seen.is_stale(after=lock.STALE + 1) for _ in range(4)] == [False, False, False, True]


def test_a_dead_owner_that_can_be_looked_up_is_not_waited_for(tmp_path: Path) -> None:
    here = owners.this_host()
    assert Seen(leave(tmp_path, host=here, pid=2**22 - 1)).is_stale()


def test_a_lock_that_names_nobody_is_stale_after_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / names_on_disk.lock_name(10)
    path.touch()
    seen = Seen(path)
    assert [seen.is_stale(after=lock.STALE + 1) for _ in range(4)] == [False, False, False, True]


def test_what_is_kept_in_mind_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_ages, "MOST", 2)
    known = Sightings(lambda: 0.0)
    for step in range(5):
        path = leave(tmp_path, step)
        assert not known.is_stale(path, owners.read_owner(path))
        assert len(known._seen) <= 2


def test_a_sweep_takes_over_what_is_stale_without_waiting_and_leaves_the_rest(tmp_path: Path) -> None:
    leave(tmp_path, 10)
    leave(tmp_path, 20)
    nobodys = tmp_path / names_on_disk.lock_name(30)
    nobodys.touch()
    began = time.monotonic()

    cleared = stale_files.sweep(tmp_path, is_stale=lambda path, owner: path != tmp_path / names_on_disk.lock_name(20))

    assert time.monotonic() - began < lock.STALE / 2
    assert set(cleared) == {names_on_disk.lock_name(10), names_on_disk.staging_name(10, f"{10:016x}"), nobodys.name}
    assert {path.name for path in tmp_path.iterdir()} == {
        names_on_disk.lock_name(20),
        names_on_disk.staging_name(20, f"{20:016x}"),
    }
