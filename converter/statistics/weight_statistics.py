"""Owns the statistics of a step: RMS of its weights and of their change since another step, by part of the model.

Uses only numpy and the standard library. All values are estimates from the samples of `element_sampling`. docs/page.md
explains their precision. A part is a layer, the embedding, the head, or the final norm, by HF's names of tensors.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from converter.export.plan import Plan
from converter.families.family import FamilySpec
from converter.run.base_assets import Assets
from converter.run.step_source import StepSource
from converter.run.tokenizer_fit import added_rows
from converter.statistics import sample_files
from converter.statistics.element_sampling import Sample, Sampler, weights
from converter.statistics.sample_files import NOTHING, Kept, Nothing

_DIGITS = 6
"""Significant ones: the estimate is never that good."""


@dataclass
class _Squares:
    """A sum of squares over all elements of a part, as the samples let one estimate it."""

    sum: float = 0.0
    variance: float = 0.0
    """Of that estimate."""

    def add(self, values: Any, elements: int) -> None:
        """Adds a tensor of so many elements by the values at its positions."""
        share, squares = weights(elements, values.size), values * values
        mean = float(share @ squares)
        self.sum += elements * mean
        if squares.size < elements:
            self.variance += elements**2 * float(share @ (squares - mean) ** 2) / squares.size

    def rms(self, elements: int) -> float:
        return math.sqrt(self.sum / elements)

    def error(self, elements: int) -> float:
        """One standard error of `rms`."""
        return math.sqrt(self.variance) / (2 * elements * self.rms(elements)) if self.sum else 0.0


@dataclass
class _Sum:
    """What adds up to the figures of one part."""

    elements: int = 0
    weights: _Squares = field(default_factory=_Squares)
    changes: _Squares | None = field(default_factory=_Squares)
    """Of the change since another step; None where a tensor of the part cannot be compared."""

    def add(self, sample: Sample, before: Any) -> None:
        """Adds a tensor; `before` are its values in the other step, or None."""
        values = sample.values.astype(np.float64)
        self.elements += sample.elements
        self.weights.add(values, sample.elements)
        if before is None:
            self.changes = None
        elif self.changes is not None:
            self.changes.add(values - before, sample.elements)

    @property
    def rms(self) -> float:
        return self.weights.rms(self.elements)

    @property
    def error(self) -> float:
        return self.weights.error(self.elements)

    @property
    def change(self) -> float | None:
        return None if self.changes is None else self.changes.rms(self.elements)

    @property
    def change_error(self) -> float | None:
        return None if self.changes is None else self.changes.error(self.elements)


class Gathering:
    """The statistics of one step, from before its bytes move until it is published."""

    def __init__(
        self, folder: Path, step: int, family: FamilySpec, source: StepSource, sources: Mapping[str, str], found: Assets
    ):
        """`folder` keeps the samples of the run's steps. `sources`: installed name -> FQN in the checkpoint."""
        self._folder, self._step, self._family = folder, step, family
        names = (family.embedding, family.hf_embedding)  # HF's in a step of HF form
        self._embedding = next((sources[name] for name in names if name in sources), "")
        self._added = None
        if (tensor := source.metadata.tensors.get(self._embedding)) is not None:
            base_rows = found.base.get("vocab_size")
            height = tensor.shape[0] if tensor.shape else 0
            known = base_rows if type(base_rows) is int and base_rows > 0 else height
            self._added = added_rows(known, found.highest_id, found.added_ids, height)
        rows = {self._embedding: self._added.ids} if self._added else None
        self.sampler = Sampler(rows, tensors=len(source.metadata.tensors))
        """Sees the blocks that pass."""

    def finish(self, plan: Plan) -> tuple[dict[str, Any], list[str]]:
        """The figures, compared with the nearest step that is kept, and warnings; keeps the samples for the next step.

        Figures are `{"compared_with", "parts", "rms", "rms_error", "update", "update_error", "added_rows"}`, all but the first and last
        as columns.
        Files that cannot be read or written are warnings: what is published is right without them.
        """
        warnings: list[str] = []
        try:
            with contextlib.closing(self._nearest(warnings)) as other:
                figures = self._figures(plan, other)
        except OSError as error:
            warnings.append(f"statistics cannot be read, this step is compared with no other: {self._at(error)}")
            figures = self._figures(plan, NOTHING)
        taken = self.sampler
        try:
            sample_files.write(
                self._folder, self._step, {taken.identities[name]: s.values for name, s in taken.whole.items()}
            )
        except OSError as error:
            warnings.append(f"statistics cannot be kept, no other step is compared with this one: {self._at(error)}")
        return figures, warnings

    def _nearest(self, warnings: list[str]) -> Kept | Nothing:
        for number in sample_files.others(self._folder, self._step):
            try:
                return Kept(self._folder, number)
            except FileNotFoundError:  # another conversion of this run keeps newer ones
                continue
            except ValueError as error:
                warnings.append(f"the statistics of step {number} cannot be read, and are left out: {error}")
        return NOTHING

    def _figures(self, plan: Plan, other: Kept | Nothing) -> dict[str, Any]:
        sums: dict[str, _Sum] = {}
        parts = {export.source: self._family.part_of(export.name) for export in plan.exports}
        for source, part in parts.items():
            if (sample := self.sampler.whole.get(source)) is not None:
                before = other.get(self.sampler.identities[source], sample.values.size)
                sums.setdefault(part, _Sum()).add(sample, before)
        named = sorted(sums, key=_order)
        changes = [sums[part].change for part in named]
        is_compared = any(change is not None for change in changes)
        return {
            "compared_with": other.step if is_compared else None,
            "parts": named,
            "rms": _rounded(sums[part].rms for part in named),
            "rms_error": _rounded(sums[part].error for part in named),
            "update": _rounded(changes) if is_compared else None,
            "update_error": _rounded(sums[part].change_error for part in named) if is_compared else None,
            "added_rows": self._of_added_rows(),
        }

    def _of_added_rows(self) -> dict[str, Any] | None:
        """RMS of the embedding's rows of added tokens; None where there are none."""
        sample = self.sampler.of_rows.get(self._embedding)
        if self._added is None or sample is None:
            return None
        rows = _Sum()
        rows.add(sample, None)
        rms, error = _rounded((rows.rms, rows.error))
        return {"rule": self._added.rule, "rows": len(self._added.ids), "rms": rms, "rms_error": error}

    def _at(self, error: OSError) -> str:
        return f"{error.filename or self._folder}: {error.strerror or error}"


def _order(part: str) -> tuple[int, int]:
    outside = ("embedding", "", "norm", "head", "other")
    return (1, int(part)) if part.isdigit() else (outside.index(part), 0)


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.{_DIGITS}g}") for value in values]
