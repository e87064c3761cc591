"""Owns what happens to the daemons of a soak: the first, which should run always, and a second, part of the time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.robustness.soak.daemons import Daemon, send
from tests.robustness.soak.history import History
from tests.robustness.soak.schedule import Act

PATIENCE = 15.0
"""Seconds for which a process to kill is waited for."""
CONFIG = """\
roots = [{roots}]
workers = 2
poll_interval = "1s"
rescan_interval = "5s"
backoff_initial = "1s"
backoff_max = "4s"
max_attempts = 30
config_grace = "1h"
min_free_space = "1MB"
nice = 0
[root."{plain}"]
forward_check = "off"
observer = "polling"
poll_interval = "{poll}s"
[root."{small}"]
forward_check = "off"
"""
"""Intervals are shorter than the defaults, so that minutes of playing are hours of training."""


class Accidents:
    """The daemons, and what is done to them. `place` holds the roots, the configuration and the state_dirs."""

    def __init__(self, place: Path, history: History, wait: Callable[[float], None]) -> None:
        self._place, self._history, self._wait = place, history, wait
        self._can_be_elsewhere = os.geteuid() == 0 and shutil.which("unshare") is not None
        self.first: Daemon | None = None
        self.second: Daemon | None = None

    def begin(self) -> None:
        """Starts the first daemon."""
        self._write_config(1.0)
        self.first = Daemon("first", "first", self._place, self._history)

    def play(self, acts: tuple[Act, ...]) -> None:
        """Does one act after the other."""
        for act in acts:
            self._wait(act.pause)
            self._act(act.kind, random.Random(act.chance))

    def look_after(self) -> None:
        """Samples the first daemon, and notices one that ended by itself."""
        if self.first is not None and self.first.is_running():
            self.first.sample()
        if self.second is not None:
            self.second.is_running()

    def are_idle(self) -> bool:
        """Whether no daemon converts anything."""
        daemons = [daemon for daemon in (self.first, self.second) if daemon is not None and daemon.is_running()]
        return not any(role == "worker" for daemon in daemons for _, role in daemon.below())

    def end(self) -> None:
        """A clean stop of what runs."""
        for daemon in (self.second, self.first):
            if daemon is not None:
                daemon.stop()

    def kill_all(self) -> None:
        """Whatever happened: no process is left."""
        for daemon in (self.second, self.first):
            if daemon is not None and daemon.is_running():
                daemon.kill(record=False)

    def _act(self, kind: str, chance: random.Random) -> None:
        assert self.first is not None
        second = self.second if self.second is not None and self.second.is_running() else None
        match kind:
            case "kill_worker" | "kill_prover" | "kill_scanner":
                self._kill_one(kind.removeprefix("kill_"), chance)
            case "kill_daemon" | "kill_tree" | "stop":
                self._end(self.first, kind)
                self._wait(chance.uniform(0.0, 5.0))
                self.first = Daemon("first", "first", self._place, self._history)
            case "hangup":
                self._write_config(round(chance.uniform(0.5, 2.0), 1))
                self.first.hang_up()
            case "second_same" | "second_own" | "second_host":
                if second is not None:
                    second.stop()
                self._start_second(kind.removeprefix("second_"))
            case "kill_second" | "stop_second":
                if second is None:
                    self._kill_one("worker", chance)
                else:
                    self._end(second, "kill_tree" if kind == "kill_second" else "stop")
            case _:
                raise ValueError(kind)

    def _start_second(self, where: str) -> None:
        elsewhere = where == "host" and self._can_be_elsewhere
        if where == "host" and not elsewhere:
            self._history.record("left_out", what="a daemon as on another host (needs root and unshare)")
        ledger = {"same": "first", "own": "second", "host": "elsewhere" if elsewhere else "second"}[where]
        self.second = Daemon("second", ledger, self._place, self._history, another_host=elsewhere)

    def _end(self, daemon: Daemon, how: str) -> None:
        if how == "stop":
            daemon.stop()
        elif daemon.is_running():
            daemon.kill(tree=how == "kill_tree")

    def _kill_one(self, role: str, chance: random.Random) -> None:
        """Kills one process of this role, at some moment of its life; if there comes none, says so."""
        self._wait(chance.uniform(0.0, 3.0))
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            daemons = [daemon for daemon in (self.first, self.second) if daemon is not None and daemon.is_running()]
            found = [(pid, daemon) for daemon in daemons for pid, its in daemon.below() if its == role]
            if found:
                pid, daemon = chance.choice(found)
                self._history.record("killed", role=role, daemon=daemon.name, pid=pid)
                send(pid, signal.SIGKILL)
                return
            self._wait(0.2)
        self._history.record("left_out", what=f"kill of a {role}: none was there")

    def _write_config(self, poll: float) -> None:
        path = self._place / "dcp2hf.toml"
        roots = {name: str(self._place / name) for name in ("full", "plain", "small")}
        text = CONFIG.format(
            roots=", ".join(f'"{root}"' for root in roots.values()),
            plain=roots["plain"],
            small=roots["small"],
            poll=poll,
        )
        path.with_suffix(".new").write_text(text)
        os.rename(path.with_suffix(".new"), path)
