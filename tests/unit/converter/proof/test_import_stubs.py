"""What the proving process does not import changes nothing it says, and is imported after all where it is missed."""

from __future__ import annotations

import asyncio
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from converter.convert import convert_step
from converter.proof import client, import_stubs
from converter.run.options import Options
from tests.support.checkpoints.cases import BY_NAME, Case

DENSE, MOE = BY_NAME["one_rank"], BY_NAME["moe-0.3-2x2-bfloat16"]
CopyStep = Callable[..., Path]
AGAIN = "everything is imported after all"


def proving_by(code: str) -> type[client.Prover]:
    """A prover whose process runs `code` first; what it writes to stderr can be asked for."""

    class Changed(client.Prover):
        command: ClassVar = [
            sys.executable,
            "-P",
            "-c",
            f"{code}\nimport sys\nfrom converter.proof import process as prove\nsys.exit(prove.main())",
        ]
        said = ""

        def __exit__(self, *why: Any) -> None:
            super().__exit__(*why)
            type(self).said = self.stderr

    return Changed


WHOLE = proving_by("from converter.proof import session as proving\nproving.leave_out = lambda: None")
TELLS_MODULES = (
    "import sys\nfrom converter.proof import session as proving; from converter.proof import import_stubs as trim\ncompare = proving.ProofSession.compare\n"
    "def told(self, staging):\n    try:\n        return compare(self, staging)\n"
    "    finally:\n        real = (name for name, module in sys.modules.items() if not isinstance(module, trim._StandIn))\n"
    "        print('imported:', *sorted(real), file=sys.stderr, flush=True)\n"
    "proving.ProofSession.compare = told"
)


def convert(step: Path, output: Path, by: Callable[..., client.Prover]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files that are published, and the measured figures."""
    events: list[tuple[str, dict[str, Any]]] = []
    output.mkdir()
    convert_step(step, Options(output=output), lambda event, fields: events.append((event, fields)), prover=by)
    published = Path(events[-1][1]["output"])
    return {path.name: path.read_bytes() for path in published.iterdir()}, events[-1][1]["figures"]


@pytest.mark.parametrize("case", [pytest.param(DENSE, id="dense"), pytest.param(MOE, id="moe", marks=pytest.mark.slow)])
def test_files_and_figures_are_those_of_whole_imports_and_nothing_left_out_was_missed(
    case: Case, copy_step: CopyStep, tmp_path: Path
) -> None:
    step = copy_step(case)
    trimmed = proving_by(TELLS_MODULES)

    ours = convert(step, tmp_path / "trimmed", trimmed)

    assert ours == convert(step, tmp_path / "whole", WHOLE)
    assert AGAIN not in trimmed.said
    imported = set(trimmed.said.partition("imported:")[2].split())
    assert {"torch", "torchtitan.models.qwen3", "transformers"} <= imported
    assert not {"torch._dynamo", "torch._inductor", "sympy"} & imported


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(
            "from converter.proof import import_stubs as trim\ntrim.NAMES += ('torchtitan.models.qwen3.model',)",
            id="at import",
        ),
        pytest.param(
            "from converter.proof import import_stubs as trim\ntrim.NAMES += ('transformers.core_model_loading',)",
            id="by transformers",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "from converter.proof import session as proving; from converter.proof import import_stubs as trim\ndef fails(*_, **__): raise trim.LeftOut('this')\n"
            "proving.ProofSession.compare = fails",
            id="at the last request",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "from converter.proof import session as proving\ndef fails(): raise ValueError('of another version')\n"
            "proving.leave_out = fails",
            id="as another version may",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_missed_is_imported_after_all_and_the_result_is_the_same(
    code: str, copy_step: CopyStep, tmp_path: Path
) -> None:
    step = copy_step(DENSE)
    missing = proving_by(code)

    assert convert(step, tmp_path / "out", missing) == convert(step, tmp_path / "whole", WHOLE)
    assert missing.said.count(AGAIN) == 1


def test_a_tokenizer_that_does_not_load_is_refused_only_once_everything_was_imported(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    missing = proving_by("")
    with missing() as asked, pytest.raises(client.errors.AssetsInvalid, match="the tokenizer does not load"):
        asked.ask("tokenizer", directory=str(tmp_path), where=str(tmp_path))
    assert missing.said.count(AGAIN) == 1


async def _await(value: Any) -> Any:
    return await value


async def _loop(value: Any) -> None:
    async for _ in value:
        break


def _with(value: Any) -> None:
    with value:
        pass


USES: dict[str, Callable[[Any], Any]] = {
    "called": lambda value: value(),
    "in a condition": bool,
    "iterated": lambda value: next(iter(value)),
    "unpacked": lambda value: [*value],
    "unpacked as keywords": lambda value: dict(**value),
    "searched": lambda value: 1 in value,
    "measured": len,
    "reversed": reversed,
    "compared": lambda value: value == 1,
    "compared from the other side": lambda value: value != 1,
    "ordered": lambda value: sorted([value, 1]),
    "added": lambda value: value + 1,
    "added to": lambda value: 1 + value,
    "and": lambda value: value & 1,
    "an index": lambda value: [1][value],
    "a number": int,
    "assigned to": lambda value: operator.setitem(value, 0, 1),
    "entered": _with,
    "awaited": lambda value: asyncio.run(_await(value)),
    "iterated asynchronously": lambda value: asyncio.run(_loop(value)),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_was_not_imported_refuses_every_use_at_once(use: Callable[[Any], Any]) -> None:
    absent = import_stubs._Absent("torch.export.thing")

    with pytest.raises(import_stubs.LeftOut, match=r"torch\.export\.thing"):
        use(absent)
    with pytest.raises(import_stubs.LeftOut, match=r"torch\.export\.thing"):
        use(absent[0])


def test_what_was_not_imported_can_be_named_in_annotations_tables_and_bases() -> None:
    absent = import_stubs._Absent("torch.export.thing")
    table = {absent: 1, absent.other: 2}

    class Derived(absent):  # type: ignore[misc]
        pass

    assert table[absent] == 1
    assert (absent | None) is (None | absent) is absent[int] is absent
    assert not isinstance(1, absent)  # type: ignore[arg-type]
    assert not issubclass(Derived, absent)  # type: ignore[arg-type]
