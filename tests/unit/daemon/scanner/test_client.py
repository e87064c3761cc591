"""A watcher whose scanner, or whose daemon, meets what nobody foresaw: the root is said to be away, and tried again."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any, cast

import pytest

from daemon.config.settings import Settings
from daemon.host.logs import Logger
from daemon.scanner.client import RootWatcher
from daemon.scanner.messages import FromScanner, Run, Scanned, Unreachable
from tests.unit.daemon.conftest import add_step


class Log:
    """Keeps what is said, and by whom it is bound."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def bind(self, **_: Any) -> "Log":
        return self

    def error(self, event: str, **fields: Any) -> None:
        self.said.append((event, fields))

    info = warning = error


def test_a_message_that_cannot_be_taken_in_is_said_and_the_root_is_watched_again(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "a").mkdir()
    add_step(saved, tmp_path / "a", 10)
    log, runs = Log(), 0
    later = asyncio.Event()

    def take(root: str, message: FromScanner) -> None:
        nonlocal runs
        if isinstance(message, Run):
            runs += 1
            if runs == 1:
                raise OverflowError("too large")
            later.set()

    async def watch() -> None:
        watcher = RootWatcher(
            str(tmp_path), Settings(), on_message=take, known=lambda root: (), log=cast(Logger, log), read_only=True
        )
        task = asyncio.create_task(watcher.run())
        await asyncio.wait_for(later.wait(), 30)
        assert watcher.scanner_ends == 1
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(watch())

    ((_, fields),) = [said for said in log.said if said[0] == "root_unreachable"]
    assert "OverflowError: too large" in fields["message"]


@pytest.mark.parametrize(
    ("name", "event", "message", "hint"),
    [
        ("here", "root_empty", "no run, which is a folder with step-*, up to 3 folders below", "as it should be before the first save"),
        ("here/step-2", "root_empty", "no run", "this is a step: name the folder that holds it"),
        ("nowhere", "root_unreachable", "No such file or directory", "is `roots` right?"),
        ("file", "root_unreachable", "Not a directory", "name a folder in `roots`"),
    ],
)  # fmt: skip
def test_a_root_that_is_not_what_was_meant_is_said_with_what_to_look_at(
    name: str, event: str, message: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "here/step-2").mkdir(parents=True) if "step" in name else (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    log = Log()

    async def watch() -> None:
        done = asyncio.Event()
        watcher = RootWatcher(
            str(tmp_path / name), Settings(), known=lambda root: (), log=cast(Logger, log), read_only=True,
            on_message=lambda root, said: done.set() if isinstance(said, Scanned | Unreachable) else None,
        )  # fmt: skip
        task = asyncio.create_task(watcher.run())
        await asyncio.wait_for(done.wait(), 30)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(watch())

    ((_, fields),) = [said for said in log.said if said[0] in ("root_empty", "root_unreachable")]
    assert [said for said, _ in log.said if said == event]
    assert message in fields["message"]
    assert hint in fields["hint"]
