"""Owns the cases of the daemon: `run --once` of which calls below state_dir fail, or which is killed at one of them.

Runs in a `family`. The daemon is the real one with its scanner; the stand-in for the converter publishes real manifests.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon.ledger.database import LedgerError
from tests.robustness.calls.family import REPOSITORY, fork
from tests.robustness.calls.plans import Fault
from tests.robustness.calls.seam import ALL, Mode, Plan, Seam
from tests.support.checkpoints.cases import BY_NAME

RUNS = ("model_only_last",)
"""In the dtype in which the stand-in publishes."""
STEPS = tuple(f"{name}/checkpoint/step-{number}" for name in RUNS for number in BY_NAME[name].steps)
_SERVE = REPOSITORY / "tests" / "unit" / "daemon" / "serve.py"
_CHILD_SUBREAPER = 36


def begin(seam: Seam, work: Path, checkpoints: str) -> None:
    """A run with two complete steps, and an empty state_dir."""
    import daemon.service

    assert daemon.service
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1)  # what a killed daemon leaves running is waited for
    for name in RUNS:
        shutil.copytree(BY_NAME[name].run(Path(checkpoints)), work / "begun" / "root" / name)
    (work / "begun" / "state").mkdir()
    seam.watch(work / "case" / "state")


class _Place:
    """A copy of the root and the state_dir, for one case."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "case"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(work / "begun", self.folder, copy_function=os.link)

    def once(self, seam: Seam, plan: Plan) -> dict[str, Any]:
        """`run --once` under a plan: {"code", "fired"}, {"died"} or {"raised"}; waits for all that it started."""
        said = fork(lambda: self._serve(seam, plan))
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return dict(said)

    def _serve(self, seam: Seam, plan: Plan) -> dict[str, Any]:
        for fd, name in ((1, "log"), (2, "errors")):
            os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = [str(_SERVE), str(self.folder / "state"), "--once", str(self.folder / "root")]
        seam.trace()
        seam.arm(plan)
        code: Any = None
        try:
            runpy.run_path(str(_SERVE), run_name="__main__")
        except SystemExit as end:
            code = end.code
        except LedgerError as error:  # as `dcp2hfd` says it
            print(f"dcp2hfd: {error}", file=sys.stderr)
            code = 1
        finally:
            seam.disarm()
            sys.stdout.flush()
            sys.stderr.flush()
        kinds = Counter(int(kind) for kind, _ in seam.traced())
        return {"code": code, "fired": seam.fired, "counted": seam.counted, "kinds": kinds}

    def log(self) -> list[dict[str, Any]]:
        """What the daemon said; a line that a kill has cut is left out."""
        found = []
        for line in (self.folder / "log").read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def errors(self) -> str:
        return (self.folder / "errors").read_text()

    def published(self) -> dict[str, int]:
        """Published steps, each with the inode of its directory."""
        there = {step: self.folder / "root" / f"{step}-hf" for step in STEPS}
        return {step: path.stat().st_ino for step, path in there.items() if (path / "conversion.json").exists()}

    def conversions(self) -> Counter[str]:
        """How often each step was taken up."""
        found: Counter[str] = Counter()
        for name in RUNS:
            began = self.folder / "root" / name / "checkpoint" / "conversions"
            found.update(f"{name}/checkpoint/{line}" for line in began.read_text().split()) if began.exists() else None
        return found


_NEVER = Plan(ALL, 1 << 40)


def count(seam: Seam, work: Path) -> dict[str, Any]:
    """Calls below state_dir of `run --once` without a fault: in all, and by kind."""
    place = _Place(work)
    said = place.once(seam, _NEVER)
    assert said.get("code") == 0, (said, place.errors())
    return {"kinds": said["kinds"], "whole": said["counted"]}


def fails(seam: Seam, work: Path, fault: dict[str, Any], points: list[int] | None = None) -> dict[str, Any]:
    """These calls of the fault's kinds meet it; without `points`, each one, until a daemon ends without it."""
    met = Fault.of(fault)
    outcomes: Counter[str] = Counter()
    broken = []
    for n in points or met.points():
        place = _Place(work)
        said = place.once(seam, Plan(met.kinds, n, met.error, met.mode))
        if said.get("code") == 0 and said["fired"] is None:
            if points:
                broken.append(f"{met}, call {n}: there is no such call")
            break
        wrong = list(_broken(place, said, outcomes))
        again = place.once(seam, _NEVER)
        if again.get("code") != 0:
            wrong.append(f"the next run: {again} {place.errors()[-500:]}")
        wrong += _lost(place)
        if wrong:
            broken.append(f"{met}, call {n} ({said.get('fired')}): {'; '.join(wrong)}")
    return {"points": sum(outcomes.values()), "outcomes": outcomes, "broken": broken}


def _broken(place: _Place, said: dict[str, Any], outcomes: Counter[str]) -> Iterator[str]:
    """What does not hold once the daemon has ended."""
    if "raised" in said or "died" in said or "Traceback" in place.errors():
        outcomes["broken"] += 1
        yield f"{said} {place.errors()[-1500:]}"
        return
    events = Counter(message["event"] for message in place.log())
    if not events["daemon_started"]:
        outcomes["refused to start"] += 1
        if said["code"] == 0 or place.errors().count("\n") > 3 or str(place.folder / "state") not in place.errors():
            yield f"it did not start, and says {said['code']}: {place.errors()}"
        return
    outcomes["went on in memory" if events["state_dir_failed"] else "nothing said"] += 1
    if said["code"] != 0:
        yield f"exit code {said['code']}: {place.log()[-3:]}"
    if events["state_dir_failed"] > 1:
        yield "it was said more than once"
    if missing := set(STEPS) - place.published().keys():
        yield f"not converted: {missing}"


def _lost(place: _Place, before: dict[str, int] | None = None) -> Iterator[str]:
    """What does not hold once another daemon has been there. `before`: what had been published already."""
    after = place.published()
    if missing := set(STEPS) - after.keys():
        yield f"lost: {missing}"
    if before is None and any(times > 1 for times in place.conversions().values()):
        yield f"converted twice: {place.conversions()}"
    if again := [step for step, inode in (before or {}).items() if after.get(step) != inode]:
        yield f"published again: {again}"


def killed(seam: Seam, work: Path, points: list[int], mode: int) -> dict[str, Any]:
    """kill -9 at these calls below state_dir; then another daemon."""
    outcomes: Counter[str] = Counter()
    broken = []
    for n in points:
        place = _Place(work)
        said = place.once(seam, Plan(ALL, n, mode=Mode(mode)))
        before = place.published()
        outcomes[f"{len(before)} steps published before"] += 1
        wrong = [] if said == {"died": -9} else [f"it was not killed: {said} {place.errors()[-500:]}"]
        again = place.once(seam, _NEVER)
        if again.get("code") != 0:
            wrong.append(f"the next run: {again} {place.errors()[-1500:]}")
        wrong += _lost(place, before)
        if wrong:
            broken.append(f"{Mode(mode).name} {n}: {'; '.join(wrong)}")
    return {"points": len(points), "outcomes": outcomes, "broken": broken}
