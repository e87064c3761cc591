"""Owns the hosts of the session, with the unit installed on each, and how another host's steps come to lie there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.checkpoints.cases import Case
from tests.support.labs import installed, nfs
from tests.support.labs.installed import CASES, TRAIN, TRAINING_GROUP, Unit
from tests.support.labs.nfs import Guest, Server

PATIENCE = 450.0
"""Seconds for a conversion in a guest, which takes 40 on a host that does nothing else."""
POLL = 2
"""Seconds between two looks of a daemon at its root."""
ATTRIBUTES = 60
"""Seconds for which a client may believe what it knew of a directory (acdirmax, nfs(5))."""

APPEARING = {
    "renamed": 'cp --recursive --preserve=timestamps "$from" "$to.incoming" && mv "$to.incoming" "$to"',
    "metadata last": 'mkdir "$to" && cp -p "$from"/* "$to" && sleep 6 && cp -p "$from/.metadata" "$to"',
    "metadata first": 'mkdir "$to" && cp -p "$from/.metadata" "$to" && for f in "$from"/*; do sleep 2; cp -p "$f" "$to"; done',
}
"""Orders in which the names of a step are there; the daemon looks in between."""


@dataclass(frozen=True)
class Host:
    """A guest with the unit on it."""

    guest: Guest
    unit: Unit


@dataclass(frozen=True)
class Hosts:
    server: Server
    one: Host
    other: Host
    checkpoints: Path

    def __iter__(self) -> Iterator[Host]:
        return iter((self.one, self.other))


@dataclass(frozen=True)
class Root:
    """A root on the export: made by the training user on the other host, where its runs are saved."""

    hosts: Hosts
    name: str

    @property
    def path(self) -> str:
        """On a guest."""
        return f"/checkpoints/{self.name}"

    @property
    def exported(self) -> Path:
        """On the server's own disk."""
        return self.hosts.server.export / self.name

    def make(self) -> None:
        self._as_trainer(f"mkdir {self.path}")

    def save(self, case: Case, number: int, appearing: str = "renamed", by: Host | None = None) -> float:
        """A step of `case` appears; returns the time at which it was complete (seconds since the epoch)."""
        run = f"{self.path}/{case.name}/{case.folder}"
        there = f"{CASES}/{case.name}"
        lines = (
            f"mkdir -p {run} && cp -p {there}/{case.config_file} {self.path}/{case.name}/{case.config_file}",
            f"from={there}/{case.folder}/step-{number} to={run}/step-{number}; {APPEARING[appearing]}",
            "date +%s.%N",
        )
        return float(self._as_trainer(" && ".join(lines), by))

    def published(self, case: Case, number: int) -> Path:
        """On the server's own disk."""
        return case.published(self.exported, number)

    def _as_trainer(self, line: str, by: Host | None = None) -> str:
        guest = (by or self.hosts.other).guest
        return guest.run("bash", "-c", f"umask 007; {line}", user="train", timeout=120)


@pytest.fixture(scope="session")
def hosts(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if reason := nfs.missing():
        pytest.skip(reason)

    def prepare(export: Path) -> None:
        os.chown(export, TRAIN, TRAINING_GROUP)
        export.chmod(0o2775)

    binds = installed.binds(tmp_path_factory.mktemp("installed"), checkpoints)
    with nfs.hosts(tmp_path_factory.mktemp("nfs"), binds, prepare=prepare) as (server, guests):
        one, other = (Host(guest, Unit(guest, checkpoints, pause=2.0)) for guest in guests)
        for host in (one, other):
            host.unit.install()
        yield Hosts(server, one, other, checkpoints)


@pytest.fixture
def root(hosts: Hosts, request: pytest.FixtureRequest) -> Iterator[Root]:
    """A root of this test's own, configured on both hosts, and nothing started; all stopped in the end."""
    made = Root(hosts, f"{request.node.name[:60]}")
    made.make()
    for host in hosts:
        host.unit.configure(f'poll_interval = "{POLL}s"', roots=[made.path])
    yield made
    for host in hosts:
        host.unit.reset()
