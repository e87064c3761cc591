"""Two things at once, bytes moving and torch proving: which failure is told, and that neither writes once the other failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter import convert as composer
from converter.common import errors
from converter.publish import stale_files
from converter.run.base_assets import Search
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.editing import edit_json
from tests.unit.converter.running import Convert, InProcessProver, Refused, ours

CopyStep = Callable[..., Path]


class Slow(InProcessProver):
    """Answers `start` when it is let go: moving the bytes is over by then."""

    let_go = threading.Event()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        if do == "start":
            self.let_go.wait(10)
        return super().ask(do, **request)


class After(InProcessProver):
    """Answers `start` some time later."""

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        if do == "start":
            time.sleep(0.3)
        return super().ask(do, **request)


def test_nothing_is_written_to_a_staging_directory_that_is_being_removed(
    copy_step: CopyStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = copy_step(BY_NAME["one_rank"])
    seen: list[list[str]] = []
    remove = stale_files.remove_tree

    def slowly(path: Path) -> None:
        Slow.let_go.set()
        time.sleep(0.3)
        seen.append(sorted(found.name for found in path.iterdir()))
        remove(path)

    def interrupt(event: str) -> None:
        if event == "conversion_progress":
            raise KeyboardInterrupt

    monkeypatch.setattr(composer.stale_files, "remove_tree", slowly)
    Slow.let_go.clear()
    with pytest.raises(KeyboardInterrupt):
        Convert(prover=Slow, on_event=interrupt)(step)
    assert seen == [["model.safetensors"]]
    assert ours(step.parent) == []


@pytest.mark.parametrize("prover", [InProcessProver, After], ids=["as it comes", "torch last"])
def test_what_speaks_against_the_plan_is_told_before_what_the_tensors_hold(
    prover: type[InProcessProver], copy_step: CopyStep, base_assets: Callable[..., Path]
) -> None:
    case = BY_NAME["nan"]
    step = copy_step(case)
    refused = Refused(Convert(prover=prover))
    refused(step, errors.NonFiniteTensor)
    other = base_assets(case, rms_norm_eps=1e-5)
    refused(step, errors.ArchitectureMismatch, search=Search(hf_assets=other))
    edit_json(case.run_config(step.parents[2]), lambda said: said["model_spec"]["model"].update(vocab_size=637))
    refused(step, errors.VocabularyMismatch)


@pytest.mark.parametrize("prover", [InProcessProver, After], ids=["as it comes", "torch last"])
def test_base_assets_that_tie_what_the_run_does_not_cost_nothing_but_a_second_pass(
    prover: type[InProcessProver], copy_step: CopyStep, base_assets: Callable[..., Path]
) -> None:
    case = next(c for c in BY_NAME.values() if (c.kind, c.naming, c.assets) == ("dense_untied", "0.3", "hub"))
    step = copy_step(case)
    search = Search(hf_assets=base_assets(case, tie_word_embeddings=True))
    converted = Convert(prover=prover)(step, search=search, architecture="run")
    assert converted.check("forward")["verdict"] == "passed"
    assert converted.check("tied_weights")["verdict"] == "not run"


def test_without_the_forward_check_the_manifest_says_so(copy_step: CopyStep, convert: Convert) -> None:
    converted = convert(copy_step(BY_NAME["one_rank"]), forward_check="off")
    assert converted.check("forward") == {
        "name": "forward", "verdict": "not run", "tolerance": None, "reason": "switched off by forward_check",
    }  # fmt: skip
