"""What TorchTitan's retention leaves beside exports is what the daemon says, and what docs/retention.md says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from converter.common import names_on_disk
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.queue.log_events import News
from daemon.rules import judge_step
from tests.integration.retention.document import Row, document
from tests.integration.retention.titan_run import EVERY, MORE, Convert, Exports, Moment, TitanRun, nothing, saves
from tests.support.checkpoints.save import save_alone
from tests.unit.converter.running import tree
from tests.unit.daemon.conftest import facts, run_facts, with_

KEPT = range(2, 11)
MakeRun = Callable[[int], TitanRun]
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "retention.md"


@pytest.fixture(scope="module", autouse=True)
def _process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The manager asks for its rank."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    step = tmp_path_factory.mktemp("saved") / "step-1"
    save_alone({"tok_embeddings.weight": torch.zeros(4, 4)}, step)
    return step


@pytest.fixture
def make_run(saved: Path, tmp_path: Path) -> MakeRun:
    """`make_run(keep)`: a new run without steps."""
    made: list[TitanRun] = []

    def make(keep: int) -> TitanRun:
        made.append(TitanRun(tmp_path / f"run-{len(made)}", saved, keep))
        return made[-1]

    return make


def begin_converting(run: TitanRun, step: int) -> None:
    """A conversion in progress, and one that replaces an older export: every name that can be there meanwhile."""
    token = f"{step:016x}"
    for name in (names_on_disk.staging_name(step, token), names_on_disk.replaced_name(step, token)):
        (run.folder / name).mkdir(exist_ok=True)
        (run.folder / name / "model.safetensors.index.json").write_text("{}")
    (run.folder / names_on_disk.lock_name(step)).write_text("{}")


def fewest(moments: Iterator[Moment]) -> int:
    """The fewest complete checkpoints at any moment."""
    return min(len(moment.complete) for moment in moments)


@pytest.mark.parametrize("keep", KEPT)
def test_without_exports_all_but_the_one_being_saved_are_left(keep: int, make_run: MakeRun) -> None:
    assert fewest(saves(make_run(keep), nothing)) == keep - 1


@pytest.mark.parametrize("keep", KEPT)
def test_exports_alongside_leave_as_many_as_the_daemon_says(keep: int, make_run: MakeRun) -> None:
    assert fewest(saves(make_run(keep), Exports("alongside").publish)) == judge_step.remaining(keep)


@pytest.mark.parametrize("keep", KEPT)
def test_exports_below_leave_as_many_as_without_any_and_are_never_deleted(keep: int, make_run: MakeRun) -> None:
    run = make_run(keep)
    assert fewest(saves(run, Exports("subdirectory").publish)) == keep - 1
    assert len(run.exported()) == keep + MORE


@pytest.mark.parametrize("has_index", [False, True], ids=["one file", "index"])
@pytest.mark.parametrize("in_flight", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize("keep", KEPT)
def test_auto_leaves_a_complete_checkpoint_and_resumes_from_it_whenever_the_purge_comes(
    keep: int, in_flight: bool, has_index: bool, make_run: MakeRun
) -> None:
    exports = Exports("auto", has_index)
    promised = keep - 1 if exports.place(keep) == "subdirectory" else judge_step.remaining(keep)
    assert promised >= 1
    for moment in saves(make_run(keep), exports.publish, in_flight=in_flight):
        assert len(moment.complete) >= promised
        assert moment.resumes_from == moment.complete[-1]


@pytest.mark.parametrize("exports", [None, Exports("alongside"), Exports("subdirectory")], ids=str)
@pytest.mark.parametrize("keep", KEPT)
def test_what_a_conversion_in_progress_is_called_is_neither_counted_nor_deleted(
    keep: int, exports: Exports | None, make_run: MakeRun
) -> None:
    publish: Convert = exports.publish if exports else nothing
    begun: dict[str, tuple[int, ...]] = {}

    def both(run: TitanRun, step: int) -> None:
        publish(run, step)
        begin_converting(run, step)
        begun.update(staged(run))

    busy = make_run(keep)
    assert list(saves(busy, both)) == list(saves(make_run(keep), publish))
    assert len(begun) == (keep + MORE) * 5
    assert staged(busy) == begun


def staged(run: TitanRun) -> dict[str, tuple[int, ...]]:
    """Names of ours that are not published, and what is in them."""
    return {path: facts for path, facts in tree(run.folder).items() if names_on_disk.PREFIX in path}


@pytest.mark.parametrize("keep", KEPT)
def test_a_step_whose_conversion_takes_until_after_the_purge_makes_it_no_worse(keep: int, make_run: MakeRun) -> None:
    """The newest complete step has only its staging directory yet, when the next save purges."""

    def late(run: TitanRun, step: int) -> None:
        if step < run.complete()[-1]:
            Exports("alongside").publish(run, step)
        else:
            begin_converting(run, step)

    assert fewest(saves(make_run(keep), late)) >= judge_step.remaining(keep)


def test_an_export_with_an_index_beside_two_kept_checkpoints_breaks_the_resume(make_run: MakeRun) -> None:
    """Why `auto` goes below: TorchTitan would resume from a step of which only the export is left."""
    for moment in saves(make_run(2), Exports("alongside", has_index=True).publish):
        assert moment.complete == []
        assert moment.resumes_from == moment.exported[-1]


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.said.append({"event": event, **fields})


@pytest.mark.parametrize("keep", KEPT)
def test_the_hazard_is_told_with_what_remains_and_its_advice_restores_what_was(
    keep: int, make_run: MakeRun, tmp_path: Path
) -> None:
    log, settings = Lines(), with_(Settings(), output="alongside")
    ledger = Ledger.open(tmp_path)
    news = News(ledger, log, once=False)  # type: ignore[arg-type]
    news.retention("/r", facts(), run_facts(keep_latest_k=keep), settings)
    ledger.close()

    (said,) = log.said
    assert said["event"] == "retention_hazard"
    assert said["remaining"] == fewest(saves(make_run(keep), Exports("alongside").publish))
    assert said["exports_left"] == min(len(m.exported) for m in saves(make_run(keep), Exports("alongside").publish))
    assert said["deletes_from_save"] == first_loss(make_run(keep))
    cure = (
        f"or keep_latest_k = {2 * keep} in the run: it keeps {keep - 1} checkpoints during a save, and {keep} exports"
    )
    assert cure in said["hint"]
    moments = list(saves(make_run(2 * keep), Exports("alongside").publish))
    assert min(len(moment.complete) for moment in moments) == keep - 1
    assert min(len(moment.exported) for moment in moments) == keep


@pytest.mark.parametrize("keep", KEPT)
def test_a_run_whose_exports_do_not_count_is_told_nothing(keep: int, tmp_path: Path) -> None:
    log, ledger = Lines(), Ledger.open(tmp_path)
    news = News(ledger, log, once=False)  # type: ignore[arg-type]
    ledger.note_retention("/r/a", keep)
    news.retention("/r", facts(), run_facts(keep_latest_k=keep), with_(Settings(), output="subdirectory"))
    news.scanned("/r")

    assert (log.said, ledger.retention()) == ([], {})
    ledger.close()


def first_loss(run: TitanRun) -> int:
    """The save at which TorchTitan deletes an export for the first time, where each complete step has one."""
    for number in range(1, run.keep + MORE):
        run.begin(number * EVERY)
        run.purge()
        if len(run.exported()) < number - 1:
            return number
        run.finish(number * EVERY)
        Exports("alongside").publish(run, number * EVERY)
    raise AssertionError("no export was deleted")


def test_the_document_says_what_was_seen(make_run: MakeRun) -> None:
    text = document([_row(keep, make_run) for keep in KEPT])
    if os.environ.get("WRITE_DOCS"):
        DOCUMENT.write_text(text)
    assert DOCUMENT.read_text() == text, "make it again with WRITE_DOCS=1"


def _row(keep: int, make_run: MakeRun) -> Row:
    def seen(exports: Exports) -> list[Moment]:
        return list(saves(make_run(keep), exports.publish))

    alongside, indexed = seen(Exports("alongside")), seen(Exports("alongside", has_index=True))
    auto = Exports("auto")
    return Row(
        keep=keep,
        below=fewest(iter(seen(Exports("subdirectory")))),
        alongside=fewest(iter(alongside)),
        exports_left=min(len(moment.exported) for moment in alongside),
        deletes_from_save=first_loss(make_run(keep)),
        index_resumes=all(moment.resumes_from in moment.complete for moment in indexed),
        auto_place=auto.place(keep),
        auto=fewest(iter(seen(auto))),
    )
