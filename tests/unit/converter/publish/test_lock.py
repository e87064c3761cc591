"""The lock of a published name: one owner at a time, dead owners replaced, live ones waited for, losers told."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from converter.common import errors, names_on_disk
from converter.publish import lock, owners
from converter.publish.lock import Lock
from converter.publish.owners import Owner, is_dead, this_host
from converter.publish.stale_files import sweep

NOBODY = 2**22 - 1
"""A process id past the kernel's default limit."""


def owner(**changes: object) -> Owner:
    """This process."""
    found = Lock(Path("/nowhere"), 1).owner
    return replace(found, **changes)  # type: ignore[arg-type]


def leave(folder: Path, of: Owner, step: int = 1) -> Path:
    """A lock file as its owner writes it."""
    path = folder / names_on_disk.lock_name(step)
    path.write_text(json.dumps(asdict(of)))
    return path


def never(_: float) -> None:
    raise AssertionError("it waits")


def test_a_lock_is_a_file_while_it_is_held_and_none_afterwards(tmp_path: Path) -> None:
    with Lock(tmp_path, 1) as held:
        assert [path.name for path in tmp_path.iterdir()] == [names_on_disk.lock_name(1)]
        assert owners.read_owner(held.path) == held.owner
        held.check()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), Lock(tmp_path, 1):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_locks_of_two_steps_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with Lock(tmp_path, 1, sleep=never), Lock(tmp_path, 11, sleep=never):
        assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("changes", [{"pid": NOBODY}, {"started": 1}], ids=["no process", "another process by now"])
def test_a_dead_owners_lock_is_taken_over_at_once(changes: dict[str, int], tmp_path: Path) -> None:
    dead = owner(token="0" * 16, **changes)
    assert is_dead(dead)
    leave(tmp_path, dead)
    with Lock(tmp_path, 1, sleep=never) as held:
        held.check()
    assert list(tmp_path.iterdir()) == []


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    started = None
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        started = owners.started(child.pid) or started
    assert is_dead(owner(pid=child.pid, started=started or 1))
    child.wait()


def test_an_owner_on_another_host_or_in_another_container_is_not_called_dead() -> None:
    here = this_host()
    for host in ("elsewhere/boot/pid:[1]", here.rpartition("/")[0] + "/pid:[1]"):
        assert not is_dead(owner(host=host, pid=NOBODY))


def test_a_live_owner_is_waited_for_and_named_once(tmp_path: Path) -> None:
    path = leave(tmp_path, owner(token="1" * 16))
    told: list[Owner | None] = []
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            path.unlink()

    with Lock(tmp_path, 1, on_wait=told.append, sleep=sleep):
        pass
    assert len(waits) == 3
    assert [found and found.token for found in told] == ["1" * 16]


def test_an_owner_that_cannot_be_looked_up_is_stale_when_nothing_changes_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave(tmp_path, owner(token="2" * 16, host="elsewhere/boot/ns"))
    clock = [0.0]
    monkeypatch.setattr(lock.time, "monotonic", lambda: clock[0])
    beats = [5]

    def sleep(_: float) -> None:
        clock[0] += lock.LONGEST_LOOK
        if beats[0]:
            beats[0] -= 1
            os.utime(path, ns=(0, int(clock[0] * 1e9)))

    with Lock(tmp_path, 1, sleep=sleep):
        assert clock[0] == 6 * lock.LONGEST_LOOK + lock.STALE  # counted from the last beat that was seen


def test_time_in_which_we_were_stopped_or_our_reads_blocked_is_no_silence_of_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave(tmp_path, owner(token="2" * 16, host="elsewhere/boot/ns"))
    clock, looks = [0.0], [0]
    monkeypatch.setattr(lock.time, "monotonic", lambda: clock[0])

    def sleep(_: float) -> None:
        looks[0] += 1
        clock[0] += 1000.0 if looks[0] == 10 else 1.0  # so long the server answered nobody, the owner neither
        if looks[0] == 20:
            path.unlink()  # it woke up, and went on to its end

    with Lock(tmp_path, 1, sleep=sleep):
        assert looks[0] == 20


def test_a_pause_of_each_look_does_not_keep_a_dead_owners_lock_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, owner(token="2" * 16, host="elsewhere/boot/ns"))
    clock = [0.0]
    monkeypatch.setattr(lock.time, "monotonic", lambda: clock[0])

    def sleep(_: float) -> None:
        clock[0] += 30.0

    with Lock(tmp_path, 1, sleep=sleep):
        assert clock[0] == (lock.STALE // lock.LONGEST_LOOK + 1) * 30.0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": 5}', "null"])
def test_a_lock_that_names_nobody_is_waited_for_then_stale(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / names_on_disk.lock_name(1)).write_text(content)
    clock = [0.0]
    monkeypatch.setattr(lock.time, "monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    with Lock(tmp_path, 1, sleep=sleep):
        assert lock.STALE < clock[0] < lock.STALE + 3


def test_an_owner_that_was_taken_over_is_told_and_removes_nothing(tmp_path: Path) -> None:
    with Lock(tmp_path, 1) as held:
        other = owner(token="3" * 16)
        leave(tmp_path, other)
        with pytest.raises(errors.LockLost) as caught:
            held.check()
        assert caught.value.retry == errors.Retry.BACKOFF
    assert owners.read_owner(tmp_path / names_on_disk.lock_name(1)) == other
    with Lock(tmp_path, 2) as held:
        held.path.unlink()
        with pytest.raises(errors.LockLost):
            held.check()


def test_a_takeover_that_finds_another_lock_than_it_saw_leaves_it(tmp_path: Path) -> None:
    live = owner(token="4" * 16)
    path = leave(tmp_path, live)
    Lock(tmp_path, 1)._take_over(owner(token="5" * 16, pid=NOBODY))
    assert owners.read_owner(path) == live
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_takeover_that_moved_another_lock_than_it_saw_puts_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, dead = owner(token="4" * 16), owner(token="5" * 16, pid=NOBODY)
    path = leave(tmp_path, live)
    seen = iter([dead, live])  # the new owner came between the look and the rename: where files cannot be locked
    monkeypatch.setattr(lock, "read_owner", lambda path: next(seen))
    Lock(tmp_path, 1)._take_over(dead)
    monkeypatch.undo()
    assert owners.read_owner(path) == live
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_what_was_moved_and_cannot_be_read_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = owner(token="5" * 16, pid=NOBODY)
    path = leave(tmp_path, dead)

    def fail_aside(found: Path) -> Owner | None:
        if found != path:
            raise OSError(errno.EIO, "Input/output error")
        return owners.read_owner(found)

    monkeypatch.setattr(lock, "read_owner", fail_aside)
    with pytest.raises(OSError, match="Input/output"):
        Lock(tmp_path, 1)._take_over(dead)
    assert owners.read_owner(path) == dead
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_heartbeat_does_not_touch_the_lock_of_the_one_that_took_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    with Lock(tmp_path, 1) as held:
        os.utime(held.path, (1.0, 1.0))
        while held.path.stat().st_mtime == 1.0:
            time.sleep(0.01)
        other = tmp_path / "other"
        other.write_text(json.dumps(asdict(owner(token="3" * 16))))
        os.utime(other, (1.0, 1.0))
        os.rename(other, held.path)
        time.sleep(0.2)
        assert held.path.stat().st_mtime == 1.0


def test_a_takeover_does_not_take_a_new_lock_in_which_no_owner_stands_yet_for_the_broken_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / names_on_disk.lock_name(1)
    path.touch()
    flock = lock.fcntl.flock

    def after_another_takeover(fd: int, how: int) -> None:
        path.unlink()
        path.write_text("")  # just created, not written
        flock(fd, how)

    monkeypatch.setattr(lock.fcntl, "flock", after_another_takeover)
    assert not Lock(tmp_path, 1)._take_over(None)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_release_that_comes_too_late_leaves_the_lock_of_the_one_that_took_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, rename = owner(token="3" * 16), os.rename

    def after_a_long_stop(old: Path, new: Path) -> None:
        leave(tmp_path, other)
        rename(old, new)

    with Lock(tmp_path, 1) as held:
        monkeypatch.setattr(os, "rename", after_a_long_stop)
    assert owners.read_owner(held.path) == other
    assert [found.name for found in tmp_path.iterdir()] == [held.path.name]


def test_a_lock_that_was_made_when_a_signal_came_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Lock(tmp_path, 1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(held._beat, "start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        held.__enter__()
    assert list(tmp_path.iterdir()) == []


def test_of_many_threads_one_holds_it_at_a_time(tmp_path: Path) -> None:
    leave(tmp_path, owner(token="6" * 16, pid=NOBODY))
    inside, most, done = [0], [0], [0]

    def work() -> None:
        with Lock(tmp_path, 1, sleep=lambda seconds: threading.Event().wait(0.002)) as held:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            held.check()
            inside[0] -= 1
            done[0] += 1

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], done[0]) == (1, 16)
    assert list(tmp_path.iterdir()) == []


_RACE = """
import sys, time
from pathlib import Path
from converter.publish.lock import Lock
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(20):
    with Lock(folder, 1, sleep=lambda seconds: time.sleep(0.001)):
        with log.open("a") as file:
            file.write("in\\n")
            file.flush()
            time.sleep(0.001)
            file.write("out\\n")
"""


def test_of_two_processes_one_holds_it_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    command = [sys.executable, "-c", _RACE, str(tmp_path / "folder"), str(tmp_path / "log")]
    racers = [subprocess.Popen(command) for _ in range(2)]
    assert [racer.wait(timeout=60) for racer in racers] == [0, 0]
    assert (tmp_path / "log").read_text().splitlines() == ["in", "out"] * 40


def test_a_sweep_clears_what_the_dead_left_and_nothing_of_the_living(tmp_path: Path) -> None:
    dead, live = owner(token="7" * 16, pid=NOBODY), owner(token="8" * 16)
    leave(tmp_path, dead, 1)
    leave(tmp_path, live, 2)
    for step, token in ((1, dead.token), (2, live.token), (3, "9" * 16)):
        (tmp_path / names_on_disk.staging_name(step, token)).mkdir()
        (tmp_path / names_on_disk.staging_name(step, token) / "model.safetensors").touch()
    aside = tmp_path / f"{names_on_disk.lock_name(4)}.{'a' * 16}"
    aside.write_text(json.dumps(asdict(dead)))
    for mine in ("step-1", "step-1-hf", ".dcp2hf-notes", ".dcp2hf-1.txt"):
        (tmp_path / mine).mkdir()
    cleared = sweep(tmp_path)
    assert set(cleared) == {
        names_on_disk.lock_name(1),
        names_on_disk.staging_name(1, dead.token),
        names_on_disk.staging_name(3, "9" * 16),
        aside.name,
    }
    assert {path.name for path in tmp_path.iterdir()} == {
        names_on_disk.lock_name(2), names_on_disk.staging_name(2, live.token), "step-1", "step-1-hf", ".dcp2hf-notes", ".dcp2hf-1.txt",
    }  # fmt: skip
    assert sweep(tmp_path) == []


def test_a_sweep_keeps_what_is_a_persons_tells_where_and_does_not_call_it_removed(tmp_path: Path) -> None:
    (tmp_path / "step-1-hf").mkdir()
    aside = tmp_path / names_on_disk.replaced_name(1, "9" * 16)
    aside.mkdir()
    (aside / "notes.md").write_text("mine")
    told: list[tuple[Path, str]] = []
    cleared = sweep(tmp_path, kept=lambda path, why: told.append((path, why)))
    assert cleared == []
    assert [path for path, _ in told] == [aside]
    assert "notes.md" in told[0][1]


def test_a_lock_that_could_not_be_written_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock.os, "write", full)
    with pytest.raises(OSError, match="No space"), Lock(tmp_path, 1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_written_in_pieces_names_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, said: write(fd, said[:7]))
    with Lock(tmp_path, 1) as held:
        assert owners.read_owner(held.path) == held.owner


def test_a_lock_whose_last_bytes_did_not_reach_the_disk_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        with pytest.raises(OSError, match="quota"):
            Lock(tmp_path, 1).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_could_not_be_removed_at_once_is_removed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, tries = os.unlink, []

    def once(path: Path) -> None:
        tries.append(path)
        if len(tries) == 1:
            raise OSError(errno.EIO, "Input/output error")
        unlink(path)

    monkeypatch.setattr(os, "unlink", once)
    with Lock(tmp_path, 1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_takeover_whose_answer_was_lost_leaves_nothing_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, owner(token="0" * 16, pid=NOBODY))
    rename = os.rename

    def lose_the_answer(old: Path, new: Path) -> None:
        rename(old, new)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "rename", lose_the_answer)
    with Lock(tmp_path, 1, sleep=never):
        pass
    assert list(tmp_path.iterdir()) == []
