"""Owns a training run as the disk sees it: saves as DCP and TorchTitan make them, purges, damage, copies, the run config.

It also keeps watch over its own files: nobody but itself may change one (`custody`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.robustness.soak.history import History
from tests.robustness.soak.saves import METADATA, Save, Template
from tests.robustness.soak.schedule import Act, Run

PIECES = 4
"""Writes in which a DCP shard grows."""
TOLERATED = 6.0
"""Seconds after `.metadata` from which a shard is suspect (docs/checks.md: 5), and one for this host's clock ticks."""
FULL_FOR = 6.0
"""Seconds that a disk stays full."""

Facts = dict[str, tuple[int, int, int]]
"""Size, mtime (ns) and inode of files, by path."""


class Trainer:
    """One run; `checkpoint` is its checkpoint folder."""

    def __init__(
        self, run: Run, root: Path, template: Template, config: bytes, history: History, wait: Callable[[float], None]
    ) -> None:
        self.run, self.root = run, root
        self.checkpoint = root / run.name / "checkpoint"
        self.marker = root.parent / f"executed-{run.name}"
        self._template, self._history, self._wait = template, history, wait
        self._config = self._with_keep(config)
        self._saved: dict[int, Save] = {}
        self._custody: Facts = {}
        self._saves = 0

    def play(self, acts: tuple[Act, ...]) -> None:
        """Does one act after the other."""
        self.checkpoint.mkdir(parents=True)
        if self.run.config == "first":
            self._write_config()
        elif self.run.config == "half":
            self._config_path.write_bytes(self._config[: len(self._config) // 2])
        self._take_custody()
        for act in acts:
            self._wait(act.pause)
            self._check_custody()
            self._act(act, random.Random(act.chance))
            self._take_custody()
        if not self._has_config:
            self._write_config()
        self._take_custody()

    def finish(self) -> None:
        """At the end: what was never written by anybody but this run is as it was left."""
        self._check_custody()
        if self.marker.exists():
            self._history.record("executed", path=str(self.checkpoint))

    def _act(self, act: Act, chance: random.Random) -> None:
        step = self.checkpoint / f"step-{act.step}"
        match act.kind:
            case "save" | "flip" | "nan" | "truncate" | "hostile":
                self._save(step, act, chance, damage="" if act.kind == "save" else act.kind)
            case "resave":
                self._save(step, act, chance)
            case "save_dies" | "resave_dies":
                self._save(step, act, chance, dies=True)
            case "purge" | "purge_slowly":
                self._purge(step, slowly=act.kind == "purge_slowly")
            case "rot":
                self._rot(step, chance)
            case "copy" | "copy_fast" | "copy_slow":
                self._copy(act, step)
            case "full_disk":
                self._fill()
            case _:
                raise ValueError(act.kind)

    # Saves
    def _save(self, step: Path, act: Act, chance: random.Random, damage: str = "", *, dies: bool = False) -> None:
        save = self._template.save(act.number, chance, damage, self.marker)
        about = {"path": str(step), "save": save.save_id}
        old = step / METADATA
        if dies and old.exists():  # within 5 s of it nothing tells a mix from a whole save (docs/architecture.md)
            self._wait(max(0.0, old.stat().st_mtime + TOLERATED - time.time()))
        self._history.record("save_began", **about, damage=save.damage)
        step.mkdir(exist_ok=True)
        self._write_shards(step, save, chance, dies=dies)
        self._saves += 1
        if dies:
            self._history.record("save_died", **about)
            self._saved.pop(act.step, None)
            return
        (step / f"{METADATA}.tmp").write_bytes(save.files[METADATA])
        old.unlink(missing_ok=True)
        self._saved[act.step] = save
        self._history.record("saved", **about, weights=save.weights, damage=save.damage)  # no later than it can be seen
        os.rename(step / f"{METADATA}.tmp", old)
        if not self._has_config and self._saves >= 2:
            self._write_config()

    def _write_shards(self, step: Path, save: Save, chance: random.Random, *, dies: bool) -> None:
        """All DCP shards at the same time, piece by piece, in place: those of an older save keep their inodes."""
        pause = chance.uniform(0.0, 0.5)
        half_way = dies and chance.random() < 0.5
        with contextlib.ExitStack() as stack:
            files = {
                name: stack.enter_context(open(step / name, "wb")) for name in sorted(save.files) if name != METADATA
            }
            for piece in range(PIECES // 2 if half_way else PIECES):
                for name, file in files.items():
                    length = len(save.files[name])
                    file.write(save.files[name][length * piece // PIECES : length * (piece + 1) // PIECES])
                    file.flush()
                self._wait(pause)
            for file in files.values():
                os.fsync(file.fileno())

    def _purge(self, step: Path, *, slowly: bool) -> None:
        """As TorchTitan purges: rmtree; on a slow file system a file at a time."""
        self._history.record("purge_began", path=str(step))
        if slowly:
            for path in list(step.iterdir()):
                path.unlink()
                self._wait(0.4)
        shutil.rmtree(step)
        self._history.record("purged", path=str(step))
        self._custody = {path: facts for path, facts in self._custody.items() if not path.startswith(f"{step}/")}

    def _rot(self, step: Path, chance: random.Random) -> None:
        """A disk loses a bit of a saved step; no time changes."""
        name, at, bit = self._template.rot(chance)
        self._history.record("rotted", path=str(step))
        facts = (step / name).stat()
        with open(step / name, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << bit]))
        os.utime(step / name, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    def _copy(self, act: Act, step: Path) -> None:
        """`cp -a`, or `cp -r` within a moment or over a slow line (DCP shards last, much newer than `.metadata`)."""
        source = self.checkpoint / f"step-{act.source}"
        save = self._saved[act.source]
        about = {"path": str(step), "save": save.save_id}
        self._history.record("save_began", **about, damage="")
        subprocess.run(["cp", "-a" if act.kind == "copy" else "-r", str(source), str(step)], check=True)
        if act.kind == "copy_slow":
            late = (step / METADATA).stat().st_mtime_ns + 60_000_000_000
            for shard in step.glob("*.distcp"):
                os.utime(shard, ns=(late, late))
        self._saved[act.step] = save
        self._history.record(
            "saved", **about, weights=save.weights, damage="suspect" if act.kind == "copy_slow" else ""
        )

    def _fill(self) -> None:
        """Something else fills the file system for a moment."""
        ballast = self.root / "ballast"
        self._history.record("full", root=str(self.root))
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        self._wait(FULL_FOR)
        ballast.unlink()
        self._history.record("roomy", root=str(self.root))

    # The run config
    @property
    def _config_path(self) -> Path:
        return self.checkpoint / "config.json"

    @property
    def _has_config(self) -> bool:
        return self._config_path.exists() and self._config_path.stat().st_size == len(self._config)

    def _write_config(self) -> None:
        """As launchers do: in place, not at once."""
        with self._config_path.open("wb") as file:
            file.write(self._config[:1000])
            file.flush()
            self._wait(0.3)
            file.write(self._config[1000:])
        self._history.record("configured", path=str(self.checkpoint))

    def _with_keep(self, config: bytes) -> bytes:
        said = json.loads(config)
        said["checkpoint"]["keep_latest_k"] = self.run.keep_latest_k
        return json.dumps(said, indent=2).encode()

    # Custody
    def _facts(self) -> Facts:
        paths = [path for path in self.checkpoint.glob("step-*/*") if not path.parent.name.endswith("-hf")]
        found = {str(path): path.lstat() for path in [*paths, self._config_path] if path.exists()}
        return {path: (facts.st_size, facts.st_mtime_ns, facts.st_ino) for path, facts in found.items()}

    def _take_custody(self) -> None:
        self._custody = self._facts()

    def _check_custody(self) -> None:
        there = self._facts()
        for path in sorted(self._custody.keys() | there.keys()):
            if self._custody.get(path) != there.get(path):
                self._history.record("touched", path=path, was=self._custody.get(path), found=there.get(path))
