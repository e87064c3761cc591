"""Owns the cases of the scanner: looks at a root of which calls fail, and what it may say then and must say later.

Runs in a `family`; the survey is the real one, its clock ours, and it looks into steps in the same process.
"""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converter.checkpoint import probe
from converter.common import names_on_disk
from converter.publish import manifest
from converter.publish.owners import this_host
from daemon.config.settings import Settings
from daemon.scanner import messages
from daemon.scanner.messages import Answer, Config, Gone, Run, Said, Step, Unreachable, answer_of
from daemon.scanner.probe_client import ProbeError
from daemon.scanner.root_scan import Survey
from tests.robustness.calls.plans import Fault
from tests.robustness.calls.scenarios import TOKEN
from tests.robustness.calls.seam import Mode, Plan, Seam
from tests.support.checkpoints.cases import BY_NAME

RUNS = ("one_rank", "last_in_hf_one_file", "two_steps")
SCANS = (10.0, 1.0, 10.0, 121.0, 1.0, 10.0)
"""Seconds before each scan under a fault: second looks and a rescan among them."""
AFTERWARDS = (10.0, 1.0, 121.0, 1.0, 10.0)
"""Without one: at the latest a rescan finds what was missed."""


def begin(seam: Seam, work: Path, checkpoints: str) -> None:
    """A root with three runs, one nested; what is published of them, what is not complete, what a dead owner left."""
    seam.watch(work)
    root = work / "root"
    for name in RUNS:
        shutil.copytree(BY_NAME[name].run(Path(checkpoints)), root / ("nested" if name == "two_steps" else "") / name)
    run = root / "one_rank" / "checkpoint"
    incomplete = run / "step-4"
    shutil.copytree(run / "step-2", incomplete)
    (incomplete / ".metadata").unlink()
    probed = probe.probe(run / "step-2")
    published = run / "step-2-hf"
    published.mkdir()
    (published / "config.json").write_text("{}")
    made = manifest.Manifest(
        step=2, save_id=probed["save_id"], dtype="float32", max_shard_size=Settings().max_shard_size, tensors=1, parameters=1,
        tools={}, run_config_sha256="", files={"config.json": manifest.FileEntry(2, "")}, checks=(),
    )  # fmt: skip
    manifest.write(published, made)
    foreign = root / "nested" / "two_steps" / "checkpoint" / "step-2-hf"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("somebody's")
    (run / names_on_disk.staging_name(2, TOKEN)).mkdir()
    owner = {"token": TOKEN, "host": this_host(), "pid": 1, "started": -1}
    (run / names_on_disk.lock_name(2)).write_text(json.dumps(owner))
    looking = _Looking(_root(work))
    looking.scan(SCANS)
    RIGHT.update(looking.facts())


RIGHT: dict[str, Any] = {}
"""Facts of scans without a fault."""


class _Looking:
    """A survey, and what it has said."""

    def __init__(self, root: Path) -> None:
        settings = Settings()
        given = {name: getattr(settings, name) for name in Config.__struct_fields__ if hasattr(settings, name)}
        self.now = 1000.0
        self.said: list[messages.FromScanner] = []
        self.survey = Survey(
            Config(**given | {"root": str(root)}), self.said.append, look_into=_probe, clock=lambda: self.now
        )

    def scan(self, pauses: tuple[float, ...]) -> None:
        for seconds in pauses:
            self.now += seconds
            self.survey.scan()

    def outcome(self) -> str:
        """What was noticed of a fault."""
        if any(isinstance(message, Unreachable) for message in self.said):
            return "root said to be unreachable"
        return "said" if any(isinstance(message, Said) for message in self.said) else "nothing said"

    def facts(self) -> dict[str, Any]:
        """What was said last of each run and each step."""
        found: dict[str, Any] = {}
        for message in self.said:
            match message:
                case Run(run=run):
                    found[run] = message
                case Step(path=path):
                    found[path] = message
                case Gone(path=path):
                    found.pop(path, None)
        return found


def _probe(path: str, metadata_size: int) -> Answer:
    """As `daemon.scanner.probe_client.probe_step` answers, whose process ends with a traceback where the file system fails."""
    try:
        return answer_of(probe.probe(Path(path)))
    except OSError as error:
        raise ProbeError(str(error)) from None


def count(seam: Seam, work: Path) -> dict[str, Any]:
    """Calls of the scans without a fault, by kind."""
    seam.trace()
    looking = _Looking(_root(work))
    before = len(seam.traced())
    looking.scan(SCANS)
    return {"kinds": Counter(int(kind) for kind, _ in seam.traced()[before:])}


def fails(seam: Seam, work: Path, fault: dict[str, Any], points: list[int] | None = None) -> dict[str, Any]:
    """These calls of the fault's kinds meet it; without `points`, each one, until the scans go by without it."""
    met = Fault.of(fault)
    outcomes: Counter[str] = Counter()
    broken = []
    for n in points or met.points():
        looking = _Looking(_root(work))
        wrong = []
        try:
            seam.arm(Plan(met.kinds, n, met.error, met.mode))
            looking.scan(SCANS)
        except Exception:
            wrong.append(traceback.format_exc())
        finally:
            seam.disarm()
        if seam.fired is None and not wrong:
            if points:
                broken.append(f"{met}, call {n}: there is no such call")
            break
        outcomes[looking.outcome()] += 1
        if not wrong:
            looking.scan(AFTERWARDS)
            wrong += _broken(looking, RIGHT, once=met.mode != Mode.ALWAYS)
        if wrong:
            broken.append(f"{met}, call {n} ({seam.fired}): {'; '.join(wrong)}")
    return {"points": sum(outcomes.values()), "outcomes": outcomes, "broken": broken}


def _root(work: Path) -> Path:
    """A fresh copy, since scans sweep; of files that nothing writes to."""
    shutil.rmtree(work / "case", ignore_errors=True)
    shutil.copytree(work / "root", work / "case", symlinks=True, copy_function=os.link)
    return work / "case"


def _broken(looking: _Looking, right: dict[str, Any], *, once: bool) -> Iterator[str]:
    """Promises that do not hold."""
    for message in looking.said:
        if isinstance(message, Gone):
            yield f"said to be gone: {message.path}"
        if isinstance(message, Step) and message.answer.state == "complete":
            wanted = right[message.path]
            if wanted.answer.state != "complete":
                yield f"said to be complete: {message.path}"
            if any(p.up_to_date for p in message.published) > any(p.up_to_date for p in wanted.published):
                yield f"said to be up to date: {message.path}"
    remarks = Counter((m.event, m.path, m.message) for m in looking.said if isinstance(m, Said))
    if (once and sum(remarks.values()) > 1) or any(count > 1 for count in remarks.values()):
        yield f"said more than once: {remarks}"
    found = looking.facts()
    for path in sorted(right.keys() | found.keys()):
        if found.get(path) != right.get(path):
            yield f"a later scan says {found.get(path)}, not {right.get(path)}"
    root = Path(looking.survey._config.root)
    left = list(root.rglob(f"{names_on_disk.PREFIX}*"))
    if left:
        yield f"not swept: {left}"
