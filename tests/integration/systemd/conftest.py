"""Owns one machine with systemd for the session, the unit installed on it, and how a run comes to lie there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.checkpoints.cases import Case
from tests.support.labs import installed, namespaces
from tests.support.labs.installed import TRAIN, TRAINING_GROUP, Unit
from tests.support.labs.machine import Bind
from tests.support.labs.namespaces import Namespaces

Save = Callable[[Case], Path]


@dataclass(frozen=True)
class Lab:
    machine: Namespaces
    unit: Unit
    root: Path
    """What the machine has at /checkpoints, on this host's disk."""


@pytest.fixture(scope="session")
def lab(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if reason := namespaces.missing():
        pytest.skip(reason)
    folder, root = tmp_path_factory.mktemp("systemd"), tmp_path_factory.mktemp("root")
    binds = [*installed.binds(tmp_path_factory.mktemp("installed"), checkpoints), Bind(root, "/checkpoints", True)]
    with namespaces.machine(folder, binds) as machine:
        unit = Unit(machine, checkpoints)
        unit.install()
        yield Lab(machine, unit, root)


@pytest.fixture
def machine(lab: Lab) -> Namespaces:
    return lab.machine


@pytest.fixture
def root(lab: Lab) -> Path:
    """The root, empty: the training user's, writable by the group, as its runs will be."""
    for old in lab.root.iterdir():
        shutil.rmtree(old)
    os.chown(lab.root, TRAIN, TRAINING_GROUP)
    lab.root.chmod(0o2775)
    return lab.root


@pytest.fixture
def unit(lab: Lab, root: Path) -> Iterator[Unit]:
    """The unit as installed, with the example config, not started; stopped in the end."""
    lab.unit.configure()
    yield lab.unit
    lab.unit.reset()


@pytest.fixture
def save(checkpoints: Path, root: Path) -> Save:
    """`save(case)` lets a run appear at once, the training user's, and gives the `out` for the case's paths."""

    def appear(case: Case) -> Path:
        save_as_trained(case, checkpoints, root, case.name)
        return root

    return appear


def save_as_trained(case: Case, checkpoints: Path, root: Path, name: str, *, assets: str | None = None) -> None:
    """A run appears at once in `root`, the training user's; `assets`: where it recorded that `checkpoints` lies."""
    incoming = root / f".{name}"
    shutil.copytree(case.run(checkpoints), incoming)
    if assets is not None:
        config = incoming / case.run_config(checkpoints).relative_to(case.run(checkpoints))
        config.write_text(config.read_text().replace(str(checkpoints), assets))
    for path in [incoming, *incoming.rglob("*")]:
        os.chown(path, TRAIN, TRAINING_GROUP)
        path.chmod(0o2770 if path.is_dir() else 0o640)
    os.rename(incoming, root / name)
