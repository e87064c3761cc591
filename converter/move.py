"""Owns moving the bytes of one export: first by the provisional plan, then by the real plan where the two differ.

Uses only numpy and the standard library.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.common import errors
from converter.common.dtypes import target_dtype
from converter.common.files import write_durably
from converter.common.names_on_disk import INDEX
from converter.common.phase_timer import Clock
from converter.export import provisional_plan
from converter.export.exporter import Exporter, ExportOutcome
from converter.export.hf_shards import HFShard, lay_out
from converter.export.plan import Export, Plan
from converter.export.writer import Writer, Writes
from converter.families.family import FamilySpec
from converter.proof.requests import Asking
from converter.run.options import Options
from converter.run.step_source import StepSource, export_bytes, model_bytes
from converter.statistics.element_sampling import Sampler

Tell = Callable[[str, int, int], None]
"""(phase, bytes done, bytes in all)"""


@dataclass(frozen=True)
class Moved:
    """What was written, by which plan, and what was met in it."""

    plan: Plan
    files: list[HFShard]
    outcome: ExportOutcome
    written: dict[str, Writes]
    index: dict[str, bytes]
    """The index, by its name, where there are several HF shards."""


class ExportProgress:
    """Adds up bytes from several threads and reports them a few times a second, and that all are moved at once."""

    def __init__(
        self, name: str, total: int, report: Callable[[str, int, int], None], check: Callable[[], None] = lambda: None
    ):
        self._name, self._total, self._report, self._check = name, total, report, check
        self._done = 0
        self._told = 0.0

    def __call__(self, moved: int) -> None:
        self._done += moved
        self._check()
        now = time.monotonic()
        if now - self._told > 0.25 or self._done - moved < self._total <= self._done:
            self._told = now
            self._report(self._name, min(self._done, self._total), self._total)


def move(
    family: FamilySpec, source: StepSource, sources: Mapping[str, str], staging: Path, options: Options, phase: Clock,
    tell: Tell, asking: Asking, sampler: Sampler | None = None, *, tied: bool,
) -> Moved:  # fmt: skip
    """Writes the HF shards into `staging`. `sources`: installed name -> FQN in the checkpoint; `sampler` sees what passes; `tied` is
    the base assets' word, which the run's may contradict.

    Bytes move while the other process still imports; several HF shards need HF's order of tensors, and wait for it.
    Raises what the export raises, or what has been answered meanwhile.
    """
    early = failed = moved = None
    if export_bytes(source.metadata, source.dtype) <= options.max_shard_size:
        early = _provisional(family, source, sources, tied=tied)
    with phase("export"):
        try:
            if early is not None:
                moved = _export(early, source, staging, options, tell, asking, sampler)
        except errors.ConversionError as error:
            failed = error  # the real plan may not ask for it (a head that the run does not tie)
    with phase("wait_for_plan"):
        plan = Plan.from_json(asking.settled()["plan"])
    if early is not None and provisional_plan.same(early, plan):
        if failed is not None:
            raise failed
        assert moved is not None
        return moved
    for path in staging.glob("*.safetensors"):
        path.unlink()
    with phase("export"):
        return _export(plan, source, staging, options, tell, asking, sampler)


def _provisional(family: FamilySpec, source: StepSource, sources: Mapping[str, str], *, tied: bool) -> Plan | None:
    tensors = source.metadata.tensors
    if source.metadata.form == "hf":
        return Plan(tuple(Export(name, name, 0, items.shape) for name, items in tensors.items()))
    shapes = {name: tensors[fqn].shape for name, fqn in sources.items()}
    return provisional_plan.provisional_plan(family, sources, shapes, tied=tied)


def _export(
    plan: Plan, source: StepSource, staging: Path, options: Options, tell: Tell, asking: Asking, sampler: Sampler | None
) -> Moved:
    """Lays out and writes the HF shards; ends early where what is asked meanwhile has failed."""
    tensors = source.metadata.tensors
    dtypes = {export.name: target_dtype(tensors[export.source].dtype, source.dtype) for export in plan.exports}
    files, index = lay_out(plan.exports, dtypes, options.max_shard_size)
    if index is not None:
        write_durably(staging / INDEX, index)
    total = model_bytes(source.metadata)
    told = ExportProgress("export", total, tell, asking.check)
    traffic = options.traffic(model_bytes(source.metadata))
    threads = options.threads or min(4, len(os.sched_getaffinity(0)))
    with Writer(staging, files, traffic) as writer:
        outcome = Exporter(
            source.listing.path,
            plan,
            files,
            tensors,
            source.dtype,
            threads,
            told,
            writer,
            traffic,
            sampler.of if sampler else None,
        ).run()
        tell("export", total, total)  # what a tied head leaves out is never moved
        return Moved(plan, files, outcome, writer.written, {} if index is None else {INDEX: index})
