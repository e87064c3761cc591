"""Owns one trial: a mutated checkpoint, read as the daemon's scanner reads it, converted, and what became of it.

Raises AssertionError for whatever must not happen: another exception than a ConversionError, something wrong published,
more memory or time than the house allows, an answer that the daemon could not keep.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint import probe as storage
from converter.common import errors
from converter.common.metadata_limits import Limits
from daemon.scanner import messages
from tests.robustness.faults.scene import Scene, digests, in_this_process
from tests.robustness.fuzz.oracle import dishonest
from tests.robustness.fuzz.reader import Reader

CPU_SECONDS = 20.0
"""Of processor time that a conversion of a tiny checkpoint may take without the forward check: it takes 0.3."""
GROWTH = 256 << 20
"""Bytes by which one conversion may raise the most memory that this process ever had."""
_HOUSE = storage.read


@dataclass(frozen=True)
class Became:
    """What became of one mutated checkpoint."""

    what: str
    """What the mutator did."""
    outcome: str
    """The error's name, "the same" or "honest: other"."""
    seconds: float
    """Of processor time, all processes."""
    memory: int
    """Bytes that reading `.metadata` had at most."""


@contextmanager
def readers() -> Iterator[Reader]:
    """Conversions in this process, whose `.metadata` the light process reads within the house's limits."""
    with Reader() as reader, in_this_process(), pytest.MonkeyPatch.context() as patch:

        def apart(step: Path, limits: Limits, size: int, *flags: str) -> dict[str, Any]:
            read = reader.read(*limits.flags(), *flags, str(step))
            return storage._said(step, read.code, read.out, read.err)

        patch.setattr(storage, "read", _HOUSE)
        patch.setattr(storage, "_run_apart", apart)
        yield reader


def probe(reader: Reader, step: Path) -> tuple[messages.Answer, float, int]:
    """What the scanner learns of a step, through the very messages; seconds and bytes it took."""
    limits = storage.DEFAULT_LIMITS
    read = reader.read(*limits.flags(), str(step))
    metadata = step / ".metadata"
    size = metadata.lstat().st_size if metadata.is_file() else 0
    memory, seconds = limits.of(size)
    assert read.memory <= memory, f"{read.memory:,} bytes to read .metadata"
    assert read.seconds <= seconds + 1, f"{read.seconds} s to read .metadata"
    answer = messages.answer_of(storage._said(step, read.code, read.out, read.err))
    assert answer.error != "MachineFailure", f"the machine is blamed for what the checkpoint is: {answer.reason}"
    said = messages.Step(run=str(step.parent), step=2, path=str(step), answer=answer)
    assert messages.from_scanner(messages.encode(said)) == said
    assert answer.reason.isprintable()
    json.dumps(answer.reason).encode()
    return answer, read.seconds, read.memory


def attempt(scene: Scene, what: str, right: Path, reader: Reader, *, forward: bool) -> Became:
    """Probes and converts the mutated step of `scene`; `right` is what the unmutated one gives."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    answer, seconds, memory = probe(reader, scene.step)
    begun = time.process_time()
    refused: errors.ConversionError | None = None
    try:
        published = scene.convert(forward=forward)
    except errors.ConversionError as error:
        refused = error
    if refused is not None:
        assert str(refused).isprintable()
        blamed = refused.retry in (errors.Retry.BACKOFF, errors.Retry.SPACE)
        blamed &= not isinstance(refused, errors.AssetsMissing)  # a mutated run config may name any folder
        assert not blamed, f"the machine is blamed for what the checkpoint is: {refused!r}"
        outcome = type(refused).__name__
    else:
        assert answer.state in ("complete", "settling"), f"converted, though the scanner says {answer}"
        outcome = "the same" if digests(published) == digests(right) else "honest: other"
        wrong = None if outcome == "the same" else dishonest(scene, published, right)
        assert wrong is None, f"published wrong: {wrong}"
    took = time.process_time() - begun
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss) << 10
    assert took < CPU_SECONDS + 20 * forward, f"{took:.1f} s of processor time"
    assert grown < GROWTH, f"{grown:,} bytes more than ever before"
    return Became(what, outcome, seconds + took, memory)
