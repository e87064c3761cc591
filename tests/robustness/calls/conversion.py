"""Owns the cases of the converter: one conversion under a plan, what is promised of it, and of the one after it.

Runs in a `family`: nothing here is called by a test itself.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter import convert
from converter.checkpoint import probe
from converter.common import errors
from converter.proof import session
from converter.publish import lock, stale_files
from converter.run.base_assets import Search
from converter.run.options import Options
from tests.robustness.calls import promises
from tests.robustness.calls.family import fork
from tests.robustness.calls.plans import EFFECTS, Fault
from tests.robustness.calls.promises import NEW, OLD, harmed, is_done, original, touched
from tests.robustness.calls.scenarios import SCENARIOS, Place, Scenario, crash, digest, lay_out
from tests.robustness.calls.seam import ALL, Kind, Mode, Plan, Seam, environment
from tests.robustness.faults.scene import read_here
from tests.unit.converter.running import InProcessProver

_READ_APART = probe.read
_ENVIRONMENT = probe._environment


def begin(seam: Seam, work: Path, checkpoints: str) -> None:
    """Imports what a conversion needs, and makes the folder of each scenario with what is right in it."""
    import torch

    seam.watch(work)
    torch.set_num_threads(1)
    gc.disable()
    probe.read = read_here
    lock.STALE = 1.0
    session.tools = functools.cache(session.tools)
    for scenario in SCENARIOS.values():
        place = lay_out(Path(checkpoints), work / scenario.name)
        assert "error" not in _convert(place, scenario, force_dtype="float16")
        OLD[scenario.name] = digest(place.published(scenario))
        new = lay_out(Path(checkpoints), work / "new")
        assert "error" not in _convert(new, scenario)
        NEW[scenario.name] = digest(new.published(scenario))
        shutil.rmtree(new.out)
        if scenario.crashed:
            crash(place, scenario)
        elif not scenario.has_old:
            shutil.rmtree(place.published(scenario))
            if scenario.name == "sharded":
                place.folder(scenario).rmdir()
    gc.freeze()
    assert _threads() == 1, "a fork would not be safe"


def _threads() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("Threads:")[2].split()[0])


def _convert(place: Place, scenario: Scenario, force_dtype: str = "") -> dict[str, Any]:
    """One conversion: {} or {"error", "retry", "message"}; {"unexpected"} of what is no ConversionError."""
    said: list[str] = []
    search = Search(hf_assets=place.out / "base-assets", tokenizer=place.out / "tokenizer")
    options = Options(
        search=search, threads=1, forward_check="off", sleep=lambda seconds: time.sleep(min(seconds, 0.01))
    )
    options = replace(options, **scenario.options, **({"dtype": force_dtype} if force_dtype else {}))
    try:
        convert.convert_step(place.step, options, lambda event, fields: said.append(event), prover=InProcessProver)
    except errors.ConversionError as error:
        late = {"unexpected": "it failed after it had said that it succeeded"} if "conversion_succeeded" in said else {}
        return {"error": type(error).__name__, "retry": str(error.retry), "message": str(error)} | late
    except BaseException:
        return {"unexpected": traceback.format_exc()}
    return {}


def fails(
    seam: Seam, work: Path, scenario: str, fault: dict[str, Any], points: list[int] | None = None
) -> dict[str, Any]:
    """These calls of the fault's kinds meet it; without `points`, each one, until a conversion goes by without it."""
    return _tried(work, scenario, fault, points, functools.partial(_under, seam))


def _tried(
    work: Path,
    scenario: str,
    fault: dict[str, Any],
    points: list[int] | None,
    convert_under: Callable[[Place, Scenario, Plan], dict[str, Any]],
) -> dict[str, Any]:
    found, met = SCENARIOS[scenario], Fault.of(fault)
    outcomes: Counter[str] = Counter()
    broken = []
    for n in points or met.points():
        plan = Plan(met.kinds, n, met.error, met.mode)
        with _Copy(work, found) as place:
            said = fork(lambda place=place, plan=plan: convert_under(place, found, plan))
            if said.get("fired") is None and "raised" not in said:
                if points or "error" in said or "unexpected" in said:
                    broken.append(f"{met}: there is no call {n}, and {said}")
                break
            outcomes[said.get("error", "published")] += 1
            wrong = [*promises.broken(place, found, met, said), *_broken_after(place, found)]
            if wrong:
                broken.append(f"{met}, call {n} ({said.get('fired')}): {'; '.join(wrong)}")
    return {"points": sum(outcomes.values()), "outcomes": outcomes, "broken": broken}


class _Copy:
    """A copy of the scenario's folder, for one case."""

    def __init__(self, work: Path, scenario: Scenario) -> None:
        self._from, self._to = work / scenario.name, work / "case"

    def __enter__(self) -> Place:
        shutil.rmtree(self._to, ignore_errors=True)
        shutil.copytree(self._from, self._to, symlinks=True)
        return Place(self._to)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._to)


def _under(seam: Seam, place: Place, scenario: Scenario, plan: Plan, *, late: bool = False) -> dict[str, Any]:
    """One conversion under `plan`, armed at once or, with `late`, as the manifest is about to be written."""
    seam.without_exchange(not scenario.exchanges)
    seam.trace()
    if late:
        write = convert.manifest.write
        convert.manifest.write = lambda *given: (seam.arm(plan), write(*given))[1]
    else:
        seam.arm(plan)
    said = _convert(place, scenario)
    seam.disarm()
    return said | {"fired": seam.fired, "touched": list(touched(seam.traced()))}


def _broken_after(place: Place, scenario: Scenario) -> Iterator[str]:
    """Promises that do not hold once another conversion went by without a fault.

    Where the folder is as it was before, that is the conversion that has been seen to go well already.
    """
    now = digest(place.published(scenario))
    before = digest(original(place, scenario).published(scenario))
    if not place.ours() and now in (before, NEW[scenario.name]):
        return
    again = fork(lambda: _recover(place, scenario))
    if again:
        yield f"the next conversion: {again}"
    yield from is_done(place, scenario)


def count(seam: Seam, work: Path, scenario: str) -> dict[str, Any]:
    """Calls of a conversion without a fault: by kind, in all, and from the manifest on (`window`; `effects` of these)."""
    found = SCENARIOS[scenario]

    def conversion(kinds: tuple[Kind, ...], *, late: bool) -> dict[str, Any]:
        with _Copy(work, found) as place:

            def task() -> dict[str, Any]:
                _under(seam, place, found, Plan(kinds, 1 << 40), late=late)
                return {"counted": seam.counted, "kinds": Counter(int(kind) for kind, _ in seam.traced())}

            return dict(fork(task))

    whole = conversion(ALL, late=False)
    window, effects = (conversion(kinds, late=True)["counted"] for kinds in (ALL, EFFECTS))
    return {"kinds": whole["kinds"], "whole": whole["counted"], "window": window, "effects": effects}


def fails_apart(
    seam: Seam, work: Path, scenario: str, fault: dict[str, Any], points: list[int] | None = None
) -> dict[str, Any]:
    """As `fails`, of the calls of the small process that reads `.metadata`."""

    def convert_apart(place: Place, found: Scenario, plan: Plan) -> dict[str, Any]:
        told = place.out / "one_rank" / "told"
        under = _ENVIRONMENT() | environment(Path(os.environ["SEAM_LIBRARY"]), work, plan, told)
        probe.read, probe._environment = _READ_APART, lambda: under
        said = _convert(place, found)
        kind, _, name = told.read_text().partition(" ")
        told.unlink()
        return said | {"fired": f"{Kind(int(kind)).name} {name.strip()}" if kind else None, "touched": []}

    return _tried(work, scenario, fault, points, convert_apart)


def killed(
    seam: Seam, work: Path, scenario: str, kinds: list[int], points: list[int], mode: int, late: bool
) -> dict[str, Any]:
    """kill -9 at these calls of these kinds, counted from the manifest on if `late`; what is there at once, and what comes of it."""
    found = SCENARIOS[scenario]
    broken = []
    seen: Counter[str] = Counter()
    for n in points:
        with _Copy(work, found) as place:
            plan = Plan(tuple(map(Kind, kinds)), n, mode=Mode(mode))
            said = fork(lambda place=place, plan=plan: _under(seam, place, found, plan, late=late))
            wrong = [] if said == {"died": -9} else [f"it was not killed: {said}"]
            wrong += harmed(place, found)
            now = digest(place.published(found))
            seen["new" if now == NEW[scenario] else "old" if now else "absent"] += 1
            recovered = fork(lambda place=place: _recover(place, found))
            if recovered:
                wrong.append(f"recovery: {recovered}")
            wrong += is_done(place, found)
            if wrong:
                broken.append(f"{Mode(mode).name} {n} of the {'window' if late else 'whole'}: {'; '.join(wrong)}")
    return {"points": len(points), "outcomes": seen, "broken": broken}


def _recover(place: Place, scenario: Scenario) -> dict[str, Any]:
    """What the daemon does: sweeps, then converts again."""
    folder = place.folder(scenario)
    if folder.exists():
        stale_files.sweep(folder)
        now = digest(place.published(scenario))
        if scenario.has_old and not place.ours() and now not in (OLD[scenario.name], NEW[scenario.name]):
            return {"unexpected": "nothing is published after sweeping"}
    return _convert(place, scenario)
