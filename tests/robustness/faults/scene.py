"""Owns the place of one fault: a private copy of a run, how it is converted, and what came of it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint import probe, tensors
from converter.checkpoint.completeness import METADATA, list_step
from converter.common import errors, names_on_disk
from converter.convert import convert_step
from converter.proof import session
from converter.run.base_assets import Search
from converter.run.options import Options
from tests.support.checkpoints.cases import Case
from tests.unit.converter.running import InProcessProver, ours


def read_here(step: Path, _limits: object = None) -> tuple[Any, tensors.StorageMetadata]:
    """`storage.read` without the limited process: the same functions on the same bytes."""
    listing = list_step(step)
    if listing.get(METADATA) is None:
        raise errors.StepIncomplete("no .metadata", path=step, hint="wait")
    return listing, tensors.from_pickle((step / METADATA).read_bytes(), listing)


@contextmanager
def in_this_process() -> Iterator[None]:
    """Conversions start no process, ask for versions once, and do not wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(probe, "read", read_here)
        patch.setattr(session, "tools", functools.cache(session.tools))
        yield


@dataclass
class Scene:
    """One private copy of a run, to be damaged and converted."""

    case: Case
    checkpoints: Path
    out: Path
    patch: pytest.MonkeyPatch
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of Options that are not the defaults."""
    on_event: Callable[[str], None] = lambda event: None

    @property
    def step(self) -> Path:
        return self.case.step(self.out)

    @property
    def run_config(self) -> Path:
        return self.case.run_config(self.out)

    def copy(self) -> Scene:
        shutil.copytree(self.case.step(self.checkpoints), self.step, symlinks=True)
        shutil.copy2(self.case.run_config(self.checkpoints), self.run_config)
        return self

    def base_assets(self, **changes: Any) -> Path:
        """A private copy of the base assets, with a changed config.json, that conversions use."""
        folder = self.out / "base-assets"
        shutil.copytree(self.case.base_assets(self.checkpoints), folder)
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | changes))
        self._search(hf_assets=folder)
        return folder

    def tokenizer(self) -> Path:
        """A private copy of the run's tokenizer, that conversions use."""
        folder = self.out / "tokenizer"
        shutil.copytree(self.case.tokenizer(self.checkpoints), folder)
        self._search(tokenizer=folder)
        return folder

    def _search(self, **given: Path) -> None:
        self.options["search"] = replace(self.options.get("search", Search()), **given)

    def convert(self, *, forward: bool) -> Path:
        """The published directory. Raises whatever the conversion raises, once it is sure that nothing was left."""
        published: list[str] = []

        def report(event: str, fields: dict[str, Any]) -> None:
            self.on_event(event)
            if event == "conversion_succeeded":
                published.append(fields["output"])

        options = Options(sleep=lambda _: None, threads=2, forward_check="full" if forward else "off")
        folder = self.options.get("output", self.step.parent)
        try:
            convert_step(self.step, replace(options, **self.options), report, prover=InProcessProver)
        except BaseException:
            assert not ours(folder)
            assert not [path for path in folder.iterdir() if names_on_disk.published_step(path.name) is not None]
            raise
        assert not ours(folder)
        return Path(published[0])


def digests(published: Path) -> dict[str, str]:
    """sha256 of each file but the manifest."""
    return {
        str(path.relative_to(published)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(published.rglob("*"))
        if path.is_file() and path.name != names_on_disk.MANIFEST
    }
