"""Owns what the tests on a real Slurm share: one cluster a module, and sites of their own: a root, a ledger, a shared folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daemon.ledger.ledger import Ledger
from daemon.ledger.slurm_jobs import SlurmJob
from tests.support.checkpoints.cases import BY_NAME, Case
from tests.support.labs import slurm
from tests.support.labs.slurm import Cluster
from tests.unit.daemon.running import Daemon, daemons, dcp2hfd

PATIENCE = 150.0
"""Seconds for what takes ten on a machine that does nothing else."""
ONE = BY_NAME["one_rank"]
SLURM = {"poll": "0.3s", "cpus": 1}
"""So that two jobs run at a time, and are seen to."""


@dataclass
class Site:
    """What one test has for itself."""

    folder: Path
    cluster: Cluster
    checkpoints: Path
    begin: Callable[..., Daemon]
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    def add(self, run: str, *numbers: int, case: Case = ONE) -> Path:
        """Steps of a run appear, there at once: copies of the last one of `case`."""
        folder = self.root / run / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        config = case.run_config(self.checkpoints)
        shutil.copy2(config, folder / config.name)
        for number in numbers:
            incoming = self.folder / f"incoming-{run}-{number}"
            shutil.copytree(case.step(self.checkpoints), incoming)
            os.rename(incoming, folder / f"step-{number}")
        return folder

    def configure(self, keys: Mapping[str, Any] | None = None, **table: Any) -> None:
        """Writes the config: `table` is [slurm]'s."""
        top = {"roots": [str(self.root)], "runner": "slurm", "backoff_initial": "0.5s", "poll_interval": "0.5s"} | (
            keys or {}
        )
        own = SLURM | {"shared": str(self.shared)} | table
        lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()] + ["[slurm]"]
        (self.folder / "dcp2hf.toml").write_text(
            "\n".join(lines + [f"{key} = {json.dumps(value)}" for key, value in own.items()])
        )

    def start(self, *arguments: str, **environ: str) -> Daemon:
        """A daemon on this host of the cluster's."""
        return self.begin(
            "-m", "daemon", "run", "--config", str(self.folder / "dcp2hf.toml"), *arguments,
            **{"DCP2HF_STATE_DIR": str(self.state)} | self.cluster.environ | self.environ | environ,
        )  # fmt: skip

    def jobs(self) -> list[SlurmJob]:
        """What the ledger has of jobs, in order."""
        ledger = Ledger.read(self.state)
        assert ledger is not None
        try:
            columns = ", ".join(SlurmJob.__struct_fields__)
            return [SlurmJob(**dict(row)) for row in ledger._db.execute(f"SELECT {columns} FROM jobs ORDER BY asked")]
        finally:
            ledger.close()

    def submitted(self) -> list[str]:
        """Ids of the jobs of this site that Slurm knows, ended ones too."""
        names = {job.name for job in self.jobs()}
        return [identity for identity, _, name in self.cluster.jobs() if name in names]

    def steps(self) -> dict[str, dict[str, Any]]:
        """Of `status --json`, every step by `run/N`."""
        said = json.loads(dcp2hfd("status", "--json", state=self.state))
        return {f"{run['run']}/{step['step']}": step for run in said["runs"] for step in run["steps"]}

    def published(self) -> dict[str, int]:
        """Inode of every published directory, by its path below the root."""
        return {str(p.relative_to(self.root)): p.stat().st_ino for p in sorted(self.root.rglob("step-*-hf"))}


def running(accounting: bool, forget: int, factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster, or a skip with the reason."""
    if reason := slurm.missing(accounting=accounting):
        pytest.skip(reason)
    with slurm.cluster(factory.mktemp("slurm") / "lab", accounting=accounting, forget=forget) as made:
        yield made


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without accounting."""
    yield from running(False, 300, tmp_path_factory)


@pytest.fixture(scope="session")
def accounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with accounting, whose controller forgets jobs five seconds after their end."""
    yield from running(True, 5, tmp_path_factory)


@pytest.fixture
def make_site(checkpoints: Path, tmp_path: Path) -> Iterator[Callable[[Cluster], Site]]:
    """Makes the test's site on a cluster; its jobs are cancelled in the end."""
    sites: list[Site] = []
    with daemons() as begin:

        def make(cluster: Cluster) -> Site:
            site = Site(tmp_path, cluster, checkpoints, begin)
            sites.append(site)
            for folder in (site.root, site.state, site.shared):
                folder.mkdir()
            site.configure()
            return site

        yield make
    for site in sites:
        site.cluster.run("scancel", "--user=root")
        slurm.wait_for(lambda cluster=site.cluster: not cluster.busy())


@pytest.fixture
def site(plain: Cluster, make_site: Callable[[Cluster], Site]) -> Site:
    """On the cluster without accounting."""
    return make_site(plain)
