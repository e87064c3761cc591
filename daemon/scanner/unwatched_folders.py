"""Owns a command's access to folders that no scanner of a daemon watches: in a separate thread, for a limited time.

A path that hangs is left to that thread, which ends with the process.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

from converter.common import names_on_disk
from daemon.scanner import folder_rules

PATIENCE = 3.0
"""Seconds for which `status` looks."""
_T = TypeVar("_T")


class _Look(Generic[_T]):
    """One look, in a thread of its own."""

    def __init__(self, look: Callable[[], _T]) -> None:
        self.found: _T | None = None
        self._look = look
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.found = self._look()


class Looks(Generic[_T]):
    """Looks at places again and again: at one that hangs it looks once, until that look has returned."""

    def __init__(self) -> None:
        self._hanging: dict[str, _Look[_T]] = {}

    def within(self, patience: float, looks: Mapping[str, Callable[[], _T]]) -> dict[str, _T | None]:
        """What each of `looks`, by place, returns within `patience` seconds, side by side; None where it does not."""
        ends = time.monotonic() + patience
        self._hanging = {place: look for place, look in self._hanging.items() if look.thread.is_alive()}
        begun = {place: _Look(look) for place, look in looks.items() if place not in self._hanging}
        for look in begun.values():
            look.thread.join(max(0.0, ends - time.monotonic()))
        self._hanging |= {place: look for place, look in begun.items() if look.thread.is_alive()}
        return {place: None if place in self._hanging else begun[place].found for place in looks}


def within(patience: float, look: Callable[[], _T]) -> _T | None:
    """What `look` returns within `patience` seconds; None where it does not."""
    return Looks[_T]().within(patience, {"": look})[""]


def listed(path: str) -> folder_rules.Folder:
    """What a folder holds. Raises OSError."""
    with os.scandir(path) as entries:
        return folder_rules.interpret(map(folder_rules.Entry.of, entries))


class Names(NamedTuple):
    """Which steps and exports of a run are there."""

    steps: frozenset[int]
    exports: frozenset[int]


class Looked(NamedTuple):
    """What a command saw of a root: why it cannot be listed ("" if it can), and its runs."""

    problem: str
    runs: dict[str, Names]


def at_root(root: str, runs: Iterable[str]) -> Looked:
    """Looks at a root and at these runs below it; a run that may not be listed is left out."""
    try:
        os.listdir(root)
    except OSError as error:
        return Looked(f"it cannot be listed now: {error.strerror or error}", {})
    return Looked("", {run: names for run in runs if (names := _names(run)) is not None})


def _names(run: str) -> Names | None:
    try:
        folder = listed(run)
        below = names_on_disk.SUBDIRECTORY in folder.subfolders
        exports = listed(f"{run}/{names_on_disk.SUBDIRECTORY}").published if below else frozenset[int]()
        return Names(folder.steps, folder.published | exports)
    except (FileNotFoundError, NotADirectoryError):
        return Names(frozenset(), frozenset())
    except OSError:
        return None
