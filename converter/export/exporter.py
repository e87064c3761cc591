"""Owns carrying a plan out: reads each source once, checks, casts and writes each block at its place.

numpy and the standard library only. Memory is threads x block, whatever the model's size.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from converter.checkpoint.tensor_reader import Band, Bytes, Shards, bands
from converter.checkpoint.tensors import TensorItems
from converter.common import errors
from converter.common.dtypes import SAFETENSORS, target_dtype
from converter.common.io_pacing import Traffic
from converter.export.cast import Caster, Counts
from converter.export.hf_shards import HFShard
from converter.export.plan import Export, Plan

BLOCK = 1 << 20
"""Bytes of source that a thread holds: 256 KB and 4 MB were both slower (0.6B, 2 cores)."""


@dataclass
class ExportOutcome:
    """What the export met and did."""

    counts: dict[str, Counts] = field(default_factory=dict)
    """HF tensor -> counts, only where something was met."""
    unchecked: list[str] = field(default_factory=list)
    """Sources with a chunk whose writer stored no checksum."""
    tie_checked: bool = False
    largest_bias: float = 0.0
    bytes_read: int = 0


Sample = Callable[[TensorItems], Callable[[int, Bytes], None]]
"""Of a tensor, what takes its blocks as they pass: the index of the first element, its bytes."""


class Sink(Protocol):
    """Where blocks go: into files (`writer.Writer`), or against files that are there (`comparer.Comparer`)."""

    def put(self, tensor: str, name: str, position: int, block: Bytes) -> None:
        """A block of a HF tensor and its place in the HF shard `name`; called by several threads."""

    def finish(self) -> None:
        """All blocks were put."""


class Exporter:
    """Carries the blocks of one plan from the checkpoint to a sink."""

    def __init__(
        self, step: Path, plan: Plan, files: list[HFShard], tensors: Mapping[str, TensorItems], dtype: str, threads: int,
        progress: Callable[[int], None], sink: Sink, traffic: Traffic | None = None,
        sample: Sample | None = None,
    ):  # fmt: skip
        self.step, self.plan, self.files, self.tensors = step, plan, files, tensors
        self.dtype, self.threads, self.progress, self.sink = dtype, threads, progress, sink
        self._traffic, self._sample = traffic, sample
        self.outcome = ExportOutcome()
        self._places = {name: (shard.name, at) for shard in files for name, at in shard.positions.items()}
        self._by_source: dict[str, list[Export]] = {}
        for export in plan.exports:
            self._by_source.setdefault(export.source, []).append(export)
        for exports in self._by_source.values():
            exports.sort(key=lambda export: export.start)
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self) -> ExportOutcome:
        """Raises the first failure of any thread; NonFiniteTensor and CastOverflow when all has been read."""
        with Shards(self.step, self._traffic) as shards, ThreadPoolExecutor(self.threads, "export") as pool:
            tasks = sorted(self._tasks(shards), key=lambda task: task[0].first)
            running = [pool.submit(self._carry, *task) for task in tasks]
            try:
                for task in running:
                    task.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            self._check_zero(shards)
            self.outcome.bytes_read = shards.bytes_read
        self.sink.finish()
        check_finite(self.step, self.outcome, {export.name: export.source for export in self.plan.exports})
        check_range(self.step, self.outcome, self.dtype)
        return self.outcome

    def _tasks(self, shards: Shards) -> Iterable[tuple[Band, Band | None]]:
        tied = self.plan.tied
        for source in self._by_source:
            found = self._bands(shards, source)
            if tied is None or source != tied[0]:
                yield from ((band, None) for band in found)
                continue
            pairs = _paired(shards, self.tensors[source], found, self.tensors[tied[1]], self._bands(shards, tied[1]))
            check_tied(self.step, tied, same=pairs is not None)
            if pairs is None:
                yield from ((band, None) for band in found)
                continue
            self.outcome.tie_checked = True
            yield from pairs

    def _bands(self, shards: Shards, source: str) -> list[Band]:
        found = bands(shards, self.tensors[source])
        self.outcome.unchecked += [source] if any(band.unchecked for band in found) else []
        return found

    def _carry(self, band: Band, head: Band | None) -> None:
        """One band: its blocks to where their elements belong."""
        source = band.tensor
        target = target_dtype(source.dtype, self.dtype)
        cast = Caster(source.dtype, target)
        exports = self._by_source[source.fqn]
        starts = [export.start for export in exports]
        size = SAFETENSORS[target][1]
        other = head.read(BLOCK) if head else None
        differs, words = False, f"u{band.item_bytes}"  # bytes one by one took four times as long to compare
        take = self._sample(source) if self._sample else None
        for first, raw in band.read(BLOCK):
            if self._stop.is_set():
                return
            if take is not None:
                take(first, raw)
            if other is not None:
                differs = differs or not np.array_equal(raw.view(words), next(other)[1].view(words))
            at, last = first, first + raw.size // band.item_bytes
            while at < last:
                export = exports[max(0, bisect_right(starts, at) - 1)]
                upto = min(last, export.start + export.elements)
                if not export.start <= at < upto:  # a provisional plan may leave elements out: nobody's
                    at = min((start for start in starts if start > at), default=last)
                    continue
                out, counts = cast(raw[(at - first) * band.item_bytes : (upto - first) * band.item_bytes])
                if counts != Counts():
                    with self._lock:
                        self.outcome.counts.setdefault(export.name, Counts()).add(counts)
                name, position = self._places[export.name]
                self.sink.put(export.name, name, position + (at - export.start) * size, out)
                at = upto
            self.progress(raw.size)
        if other is not None:
            next(other, None)  # lets the head's own checksums be compared, before its values are
            assert self.plan.tied
            check_tied(self.step, self.plan.tied, same=not differs)

    def _check_zero(self, shards: Shards) -> None:
        for name in self.plan.zero:
            for band in self._bands(shards, name):
                dtype = self.tensors[name].dtype
                for _, raw in band.read(BLOCK):
                    wide, counts = Caster(dtype, "float32")(raw)
                    if counts.nan or counts.inf:
                        self.outcome.counts.setdefault(name, Counts()).add(counts)
                    values = wide.view(np.float32)
                    self.outcome.largest_bias = max(self.outcome.largest_bias, float(np.abs(values).max(initial=0)))


def _paired(
    shards: Shards, one: TensorItems, found: list[Band], other: TensorItems, heads: list[Band]
) -> list[tuple[Band, Band]] | None:
    """Bands of the same rows of two tensors, of which these are all; None where they have another shape or dtype."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return None
    if [band.row_range for band in heads] != [band.row_range for band in found]:
        found = [Band(shards, one, [box for band in found for box in band.boxes])]
        heads = [Band(shards, other, [box for band in heads for box in band.boxes])]
    return list(zip(found, heads, strict=True))


def are_equal(step: Path, one: TensorItems, other: TensorItems, traffic: Traffic) -> bool:
    """Whether two tensors of the checkpoint are the same, byte for byte; reads them up to the first difference.

    Raises PayloadCorrupt, StepDamaged and UnsupportedModel, as an export of them does.
    """
    with Shards(step, traffic) as shards:
        pairs = _paired(shards, one, bands(shards, one), other, bands(shards, other))
        return pairs is not None and all(
            np.array_equal(block, head)
            for band, heads in pairs
            for (_, block), (_, head) in zip(band.read(BLOCK), heads.read(BLOCK), strict=True)
        )


def check_tied(step: Path, tied: tuple[str, str], *, same: bool) -> None:
    """Embedding and head are the same where the model ties them. Raises TiedWeightsDiffer."""
    if not same:
        raise errors.TiedWeightsDiffer(
            f"the model ties {tied[0]} and {tied[1]}, but they differ", path=step,
            hint="TorchTitan 0.2.0 and 0.2.1 lost the tie: export them as two with --untie; or name base assets and a run "
            "config that do not tie them",
        )  # fmt: skip


def check_finite(step: Path, outcome: ExportOutcome, sources: Mapping[str, str]) -> None:
    """No NaN and no infinity in any tensor. `sources`: HF's name -> FQN in the checkpoint. Raises NonFiniteTensor."""
    bad = {name: c for name, c in outcome.counts.items() if c.nan or c.inf}
    if bad:
        first = sorted(bad)
        fqn = sources.get(first[0], first[0])
        stored = f"; in the checkpoint {fqn[:200]}" if fqn != first[0] else ""
        raise errors.NonFiniteTensor(
            f"{len(bad)} tensors hold NaN or infinity, first {first[0]} ({bad[first[0]].nan} NaN, {bad[first[0]].inf} infinite){stored}",
            path=step, hint="look at the training run: its weights are broken",
            figures={"tensors": {name: {"nan": bad[name].nan, "inf": bad[name].inf} for name in first[:50]}, "count": len(bad),
                     "nan": sum(c.nan for c in bad.values()), "inf": sum(c.inf for c in bad.values())},
        )  # fmt: skip


def check_range(step: Path, outcome: ExportOutcome, dtype: str) -> None:
    """Every finite value stays finite in the export's dtype. Raises CastOverflow."""
    lost = {name: c.to_inf for name, c in outcome.counts.items() if c.to_inf > 0}
    if lost:
        raise errors.CastOverflow(
            f"{sum(lost.values()):,} finite values do not fit {dtype}, first in {min(lost)}", path=step, hint="export in a wider --dtype",
            figures={"tensors": dict(sorted(lost.items())[:50])},
        )  # fmt: skip
