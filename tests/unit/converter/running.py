"""Owns how tests convert: in this process, which imports torch once, with the same requests and answers as across a pipe."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from converter.common import errors, names_on_disk
from converter.convert import convert_step
from converter.proof import session
from converter.run.options import Options


class InProcessProver:
    """Stands in for `converter.proof.client.Prover`: drives the proving side itself, through JSON both ways."""

    def __init__(self, progress: Callable[[int, int], None] = lambda done, total: None):
        self._progress = progress
        self._said = io.StringIO()
        self._prover = session.ProofSession(self._said, whole=True)
        self._turn = threading.Lock()
        self._over = False
        self.tools: dict[str, str] = self._prover.warm_up()["tools"]

    def __enter__(self) -> InProcessProver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._turn:  # a question still being answered: the process would be killed
            self._over = True

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        with self._turn:
            if self._over:
                raise errors.MachineFailure("the process was ended", path=Path(sys.executable), hint="")
            try:
                answer = getattr(self._prover, do)(**json.loads(json.dumps(request)))
            except errors.ConversionError as error:
                said = json.loads(json.dumps(error.as_event()))
                kind = getattr(errors, said["error"])
                raise kind(said["message"], path=said["path"], hint=said["hint"], figures=said.get("figures")) from None
            for line in self._said.getvalue().splitlines():
                self._progress(*json.loads(line)["progress"])
            self._said.seek(0)
            self._said.truncate()
            return dict(json.loads(json.dumps(answer)))


@dataclass
class Converted:
    """One conversion that ended well."""

    published: Path
    events: list[tuple[str, dict[str, Any]]]

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.published / "conversion.json").read_text()))

    @property
    def result(self) -> dict[str, Any]:
        """Fields of the last event."""
        return self.events[-1][1]

    def warnings(self) -> list[str]:
        return [fields["message"] for event, fields in self.events if event == "warning"]

    def check(self, name: str) -> dict[str, Any]:
        """The manifest's entry of a check."""
        return next(dict(check) for check in self.manifest["checks"] if check["name"] == name)


@dataclass
class Convert:
    """Converts one step: `convert(step, dtype="float32", …)`, any field of Options."""

    prover: Callable[..., Any] = InProcessProver
    waits: list[float] = field(default_factory=list)
    """Seconds that conversions wanted to sleep."""
    sleep: Callable[[float], None] = lambda seconds: None
    """What happens meanwhile."""
    on_event: Callable[[str], None] = lambda event: None
    """What happens beside the conversion, by the name of what it reports."""

    def __call__(self, step: Path, **options: Any) -> Converted:
        events: list[tuple[str, dict[str, Any]]] = []

        def sleep(seconds: float) -> None:
            self.waits.append(seconds)
            self.sleep(seconds)

        def report(event: str, fields: dict[str, Any]) -> None:
            events.append((event, fields))
            self.on_event(event)

        convert_step(step, replace(Options(sleep=sleep), **options), report, prover=self.prover)
        return Converted(Path(events[-1][1]["output"]), events)


@dataclass
class Refused:
    """Converts a step that must be refused, and gives the error once it is sure that nothing of ours was left."""

    convert: Convert

    def __call__(self, step: Path, kind: type[errors.ConversionError], **options: Any) -> errors.ConversionError:
        folder = options.get("output") or step.parent
        before = tree(folder)
        with pytest.raises(errors.ConversionError) as caught:
            self.convert(step, **options)
        error = caught.value
        assert type(error) is kind, repr(error)
        assert error.what
        assert error.hint
        assert Path(error.path).is_absolute()
        assert str(error).isprintable()
        assert tree(folder) == before
        return error


def tree(folder: Path, *, times: bool = False) -> dict[str, tuple[int, ...]]:
    """Every name below `folder` (itself too) with mode and size, of files; with `times`, every mtime as well."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        facts = path.lstat()
        size = 0 if path.is_dir() else facts.st_size
        found[str(path)] = (facts.st_mode, size, facts.st_mtime_ns if times else 0)
    return found


def ours(folder: Path) -> list[str]:
    """Names in `folder` that are ours and not published."""
    return [path.name for path in folder.iterdir() if path.name.startswith(names_on_disk.PREFIX)]
