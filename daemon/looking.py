"""Owns how a command looks at folders that no scanner of a daemon watches now: bounded in time, in a thread of its own.

A path that hangs is left to that thread, which ends with the process.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from converter import layout
from daemon import roots

PATIENCE = 3.0
"""Seconds for which `status` looks."""
_T = TypeVar("_T")


def within(patience: float, *looks: Callable[[], _T]) -> list[_T | None]:
    """What each of `looks` returns within `patience` seconds, side by side; None where it does not."""
    found: list[_T | None] = [None] * len(looks)

    def run(place: int) -> None:
        found[place] = looks[place]()

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(looks))]
    ends = time.monotonic() + patience
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    return list(found)


def listed(path: str) -> roots.Folder:
    """What a folder holds. Raises OSError."""
    with os.scandir(path) as entries:
        return roots.interpret(roots.Entry(e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries)


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
        below = layout.SUBDIRECTORY in folder.subfolders
        exports = listed(f"{run}/{layout.SUBDIRECTORY}").published if below else frozenset[int]()
        return Names(folder.steps, folder.published | exports)
    except (FileNotFoundError, NotADirectoryError):
        return Names(frozenset(), frozenset())
    except OSError:
        return None
