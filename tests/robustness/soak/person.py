"""Owns a person: published directories are removed, failures forgiven."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from converter.common import names_on_disk
from tests.robustness.soak.history import History
from tests.robustness.soak.schedule import Act
from tests.unit.daemon.running import REPOSITORY, clean

PATIENCE = 60.0
"""Seconds for which a directory to remove is waited for."""


class Person:
    """Looks after one run; `checkpoint` is its checkpoint folder."""

    def __init__(self, checkpoint: Path, place: Path, history: History, wait: Callable[[float], None]) -> None:
        self._checkpoint, self._place = checkpoint, place
        self._history, self._wait = history, wait

    def play(self, acts: tuple[Act, ...]) -> None:
        """Does one act after the other."""
        for act in acts:
            self._wait(act.pause)
            if act.kind == "retry":
                self._retry(act.step)
            else:
                self._remove(act.step, 0.3 if act.kind == "remove_slowly" else 0.0)

    def _remove(self, step: int, pause: float) -> None:
        """`rm -r` of what is published, if there comes something."""
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            for below in (False, True):
                published = names_on_disk.published_path(self._checkpoint, step, subdirectory=below)
                with contextlib.suppress(FileNotFoundError):
                    self._remove_directory(published, self._checkpoint / f"step-{step}", pause)
                    return
            self._wait(0.5)
        self._history.record("left_out", what="removal of a published directory: none was there")

    def _remove_directory(self, published: Path, step: Path, pause: float) -> None:
        """By its descriptor, as `rm` does: what is published there meanwhile is left alone."""
        directory = os.open(published, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with open(os.open(names_on_disk.MANIFEST, os.O_RDONLY, dir_fd=directory)) as file:
                save = json.load(file)["save_id"]
            about = {"path": str(step), "at": str(published), "save": save}
            self._history.record("remove_began", **about)
            for name in os.listdir(directory):
                os.unlink(name, dir_fd=directory)
                self._wait(pause)
        finally:
            os.close(directory)
        with contextlib.suppress(OSError):  # another one stands there now
            os.rmdir(published)
        self._history.record("removed", **about)

    def _retry(self, step: int) -> None:
        path = self._checkpoint / f"step-{step}"
        self._history.record("retry_began", path=str(path), ledger="first")
        done = subprocess.run(
            [sys.executable, "-m", "daemon", "retry", str(path)],
            env=clean({"DCP2HF_STATE_DIR": str(self._place / "state-first")}),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        self._history.record("retried", path=str(path), ledger="first", code=done.returncode, said=done.stderr)
