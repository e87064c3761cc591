"""No mutated checkpoint is published wrong, ends a process, or takes more than the limits of the house.

`make test` runs a few hundred, `make fuzz` thousands (FUZZ_TRIALS), the same ones each time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from daemon.config.settings import Settings
from daemon.scanner import messages
from daemon.scanner.messages import Config
from daemon.scanner.root_scan import Survey
from tests.robustness.faults.scene import Scene
from tests.robustness.fuzz.document import DOCUMENT, document, said_in
from tests.robustness.fuzz.mutators import DCP, HF, MUTATORS, WEIGHTED, Mutator
from tests.robustness.fuzz.reader import Reader
from tests.robustness.fuzz.trial import Became, attempt, readers
from tests.support.checkpoints.cases import Case

TRIALS = int(os.environ.get("FUZZ_TRIALS", "250"))
SEED = 2026
KEPT = max(1, TRIALS // 25)
"""Of so many trials one is kept for a scanner, all files as they were mutated."""
FORWARD = 50
"""One of so many conversions runs the forward check."""
_became: dict[int, list[Became]] = {}


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with readers() as reader:
        yield reader


@pytest.fixture(scope="module")
def right(checkpoints: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """What the unmutated checkpoint of a case gives."""
    made: dict[str, Path] = {}

    def published(case: Case) -> Path:
        if case.name not in made:
            scene = Scene(case, checkpoints, tmp_path_factory.mktemp("right"), pytest.MonkeyPatch()).copy()
            made[case.name] = scene.convert(forward=False)
        return made[case.name]

    return published


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one run, of mutated steps that were kept."""
    root = tmp_path_factory.mktemp("root")
    (root / "run").mkdir()
    return root


@pytest.mark.timeout(0)
@pytest.mark.parametrize("number", range(len(MUTATORS)), ids=lambda number: MUTATORS[number].name)
def test_a_mutated_checkpoint_is_refused_or_published_as_what_it_says(
    number: int, checkpoints: Path, reader: Reader, right: Callable[[Case], Path], root: Path, tmp_path: Path
) -> None:
    mutator, became = MUTATORS[number], _became.setdefault(number, [])

    @seed(SEED)
    @settings(
        max_examples=max(1, TRIALS * mutator.weight // len(WEIGHTED)), deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(st.data())
    def trials(data: st.DataObject) -> None:
        became.append(_trial(data, mutator, checkpoints, reader, right, root, tmp_path / "scene"))

    trials()


def _trial(
    data: st.DataObject, mutator: Mutator, checkpoints: Path, reader: Reader, right: Callable[[Case], Path], root: Path, out: Path
) -> Became:  # fmt: skip
    case: Case = data.draw(st.sampled_from(mutator.cases))
    shutil.rmtree(out, ignore_errors=True)
    scene = Scene(case, checkpoints, out, pytest.MonkeyPatch()).copy()
    what = mutator.change(data.draw, scene)
    forward = data.draw(st.integers(0, FORWARD - 1)) == 0
    total = sum(map(len, _became.values()))
    if total % KEPT == 0:
        shutil.copytree(scene.step, root / "run" / f"step-{total}", symlinks=True, copy_function=_copy)
    return attempt(scene, what, right(case), reader, forward=forward)


def _copy(source: str, target: str) -> None:
    """As `cp -a`: pipes are made again, not read."""
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy2(source, target)


def test_a_scanner_looks_at_mutated_steps_and_lives(root: Path) -> None:
    """The real one, each step in a process of its own; what it says goes through its messages."""
    if not any((root / "run").iterdir()):
        pytest.skip("no trial was run")
    own = Settings()
    fields = {name: getattr(own, name) for name in Config.__struct_fields__ if hasattr(own, name)}
    lines: list[bytes] = []
    now = 1000.0
    survey = Survey(
        Config(**fields | {"root": str(root)}), lambda said: lines.append(messages.encode(said)), clock=lambda: now
    )
    for _ in range(3):
        survey.scan()
        now += 15.0
    said = [messages.from_scanner(line) for line in lines]
    steps = {m.step: m.answer for m in said if isinstance(m, messages.Step)}
    assert len(steps) == len(list((root / "run").iterdir()))
    assert not [m for m in said if isinstance(m, messages.Said)]
    assert {answer.state for answer in steps.values()} <= {"complete", "incomplete", "damaged", "no_model", "suspect"}


def test_the_document_says_what_a_run_of_thousands_gave() -> None:
    if TRIALS >= 2000 and os.environ.get("WRITE_DOCS"):
        if len(_became) < len(MUTATORS):
            pytest.skip("not every mutator was run")
        DOCUMENT.write_text(document({MUTATORS[n]: found for n, found in _became.items()}, SEED))
    trials, mutators = said_in(DOCUMENT.read_text())
    assert trials >= 2000
    assert mutators == [mutator.name for mutator in MUTATORS], "make it again: make fuzz"
    assert {case.moe for case in DCP} == {case.moe for case in HF} == {True, False}
