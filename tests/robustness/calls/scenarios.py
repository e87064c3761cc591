"""Owns the situations in which a conversion meets a fault, each a folder that is copied for every case."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.common import names_on_disk
from tests.support.checkpoints.cases import BY_NAME, Case

CASE: Case = BY_NAME["one_rank"]
TOKEN = "0123456789abcdef"


@dataclass(frozen=True)
class Scenario:
    """One conversion of one step, and what lies there before it."""

    name: str
    what: str
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of Options."""
    has_old: bool = False
    """The step was published before, in another dtype."""
    exchanges: bool = True
    """Whether the file system can exchange two names."""
    crashed: bool = False
    """The owner before died between two renames: the old directory is set aside, lock and staging directory lie about."""
    is_whole: bool = False
    """Every call meets every errno, those of which there are hundreds one each, in turn; else every third call does."""


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("fresh", "a first export, all checks on", {"forward_check": "full"}, is_whole=True),
        Scenario("exchanged", "an older export is replaced by exchanging names", has_old=True),
        Scenario("renamed", "an older export is replaced by two renames (NFS)", has_old=True, exchanges=False),
        Scenario("sharded", "several HF shards and an index, in the subdirectory", {"max_shard_size": 200_000}),
        Scenario("crashed", "after an owner that died between two renames", has_old=True, crashed=True),
    )
}


@dataclass(frozen=True)
class Place:
    """The folder of one case."""

    out: Path

    @property
    def step(self) -> Path:
        return CASE.step(self.out)

    @property
    def run(self) -> Path:
        return CASE.run(self.out)

    def folder(self, scenario: Scenario) -> Path:
        """Where the step is published."""
        return self.step.parent / names_on_disk.SUBDIRECTORY if scenario.name == "sharded" else self.step.parent

    def published(self, scenario: Scenario) -> Path:
        return self.folder(scenario) / f"{self.step.name}-hf"

    def ours(self) -> list[str]:
        """What is ours and not published, a folder made for it too."""
        folders = [self.step.parent, self.step.parent / names_on_disk.SUBDIRECTORY]
        there = [path.name for folder in folders if folder.exists() for path in folder.iterdir()]
        empty = [folders[1].name] if folders[1].exists() and not any(folders[1].iterdir()) else []
        return [name for name in there if name.startswith(names_on_disk.PREFIX)] + empty

    def trainings(self) -> dict[str, tuple[str, int]]:
        """Hash and mtime of every file that is not ours, by name below the place."""
        found = {}
        for folder, below, names in os.walk(self.out):
            below[:] = [n for n in below if not n.endswith("-hf") and not n.startswith(names_on_disk.PREFIX)]
            for name in names:
                path = Path(folder) / name
                if not name.startswith(names_on_disk.PREFIX):
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    found[str(path.relative_to(self.out))] = (digest, path.stat().st_mtime_ns)
        return found


def digest(directory: Path) -> str:
    """Of every name and every byte of a directory; "" where there is none."""
    if not os.path.lexists(directory):
        return ""
    whole = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        whole.update(f"{path.relative_to(directory)}\0".encode() + (path.read_bytes() if path.is_file() else b""))
    return whole.hexdigest()


def lay_out(checkpoints: Path, out: Path) -> Place:
    """A copy of the run, with its assets, and nothing of ours."""
    shutil.copytree(CASE.run(checkpoints), CASE.run(out), symlinks=True)
    shutil.copytree(CASE.base_assets(checkpoints), out / "base-assets")
    shutil.copytree(CASE.tokenizer(checkpoints), out / "tokenizer")
    return Place(out)


def crash(place: Place, scenario: Scenario) -> None:
    """Leaves what an owner leaves that is killed between two renames: it ran on this host, as no process does now."""
    from converter.publish.owners import this_host

    folder, number = place.folder(scenario), names_on_disk.step_number(place.step.name)
    assert number is not None
    os.rename(place.published(scenario), folder / names_on_disk.replaced_name(number, TOKEN))
    staging = folder / names_on_disk.staging_name(number, TOKEN)
    staging.mkdir()
    (staging / "config.json").write_text("{}")
    owner = {"token": TOKEN, "host": this_host(), "pid": 1, "started": -1}
    (folder / names_on_disk.lock_name(number)).write_text(json.dumps(owner))
