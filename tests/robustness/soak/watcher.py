"""Owns a pair of eyes beside the daemons: what is published, whole or not, each time it changes; memory; what is left over.

It lists often, and reads and hashes each directory that it has not seen, by the directory's descriptor: what it reads is
one directory, whatever its name stands for meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from converter.common import names_on_disk
from tests.robustness.soak.history import History

INTERVAL = 0.2
"""Seconds between two listings."""
SAMPLES = 2.0
"""Seconds between two samples of memory and descriptors."""

Key = tuple[int, int]
"""Inode and mtime (ns) of a directory: another one, or one in which a file came or went, is looked at anew."""


class Watcher:
    """Watches checkpoint folders until it is told to end; `sample` is called now and then."""

    def __init__(self, checkpoints: Sequence[Path], history: History, sample: Callable[[], None]) -> None:
        self._checkpoints, self._history, self._sample = checkpoints, history, sample
        self._known: dict[Path, Key] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher")

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def end(self) -> None:
        """Ends, after a last look at everything, and at what is left over."""
        self._ends.set()
        self._thread.join()
        self._known.clear()
        self._look()
        for path in sorted(
            path for folder in self._checkpoints for path in folder.parent.rglob(f"{names_on_disk.PREFIX}*")
        ):
            self._history.record("leftover", path=str(path))

    def _watch(self) -> None:
        sampled = 0.0
        while not self._ends.wait(INTERVAL):
            self._look()
            if time.monotonic() - sampled > SAMPLES:
                sampled = time.monotonic()
                self._sample()

    def _look(self) -> None:
        there = {}
        for checkpoint in self._checkpoints:
            for folder in (checkpoint, checkpoint / names_on_disk.SUBDIRECTORY):
                for name in _names(folder):
                    if (number := names_on_disk.published_step(name)) is not None:
                        there[folder / name] = checkpoint / f"step-{number}"
        for at in [at for at in self._known if at not in there and not os.path.lexists(at)]:
            del self._known[at]
            self._history.record("unseen", at=str(at))
        for at, step in there.items():
            self._look_at(at, step)

    def _look_at(self, at: Path, step: Path) -> None:
        try:
            directory = os.open(at, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            facts = os.fstat(directory)
            key = (facts.st_ino, facts.st_mtime_ns)
            if self._known.get(at) == key:
                return
            found = _read(directory)
            still = os.path.lexists(at) and os.lstat(at).st_ino == facts.st_ino
            if found["fault"] and not still:
                return  # replaced or removed while it was read
            self._known[at] = key
            self._history.record("seen", path=str(step), at=str(at), inode=facts.st_ino, **found)
        except FileNotFoundError:
            return
        finally:
            os.close(directory)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _read(directory: int) -> dict[str, Any]:
    """What a published directory is: its manifest's step and save id, digests of its files, and what is wrong with it."""
    found: dict[str, Any] = {"step": None, "save": "", "made": 0, "files": {}, "fault": ""}
    try:
        manifest = json.loads(_content(directory, names_on_disk.MANIFEST))
        found |= {"step": manifest["step"], "save": manifest["save_id"]}
        found["made"] = os.stat(names_on_disk.MANIFEST, dir_fd=directory).st_mtime_ns
        for name, said in manifest["files"].items():
            content = _content(directory, name)
            found["files"][name] = hashlib.sha256(content).hexdigest()
            if (said["size"], said["sha256"]) != (len(content), found["files"][name]):
                found["fault"] = f"{name} is not what the manifest says"
        if others := set(os.listdir(directory)) - {names_on_disk.MANIFEST, *manifest["files"]}:
            found["fault"] = f"it holds {', '.join(sorted(others))}"
    except (FileNotFoundError, ValueError, KeyError) as error:
        found["fault"] = f"{type(error).__name__}: {error}"
    return found


def _content(directory: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
        return file.read()
