"""Owns the judgement of one step: its state, from the scanner's report and the ledger. Pure."""

from pathlib import Path
from typing import NamedTuple

from converter.common import names_on_disk
from daemon.config.flag_to_key import in_keys, retry, with_retry
from daemon.config.settings import Settings
from daemon.ledger.records import CONFIG_ERRORS, Block, Row, State
from daemon.scanner.messages import Published, Run, Step

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Judgement(NamedTuple):
    """A step's state, why, and when it may be tried (epoch seconds; 0: at once)."""

    state: State
    reason: str = ""
    error: str | None = None
    hint: str = ""
    not_before: float = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether a conversion should be started, at `not_before`."""
        is_looked_at_again = self.state == State.QUARANTINED and self.not_before > 0
        return self.state in (State.PENDING, State.FAILED) or is_looked_at_again


def exceptions(settings: Settings) -> str:
    """What the settings allow that may convert a run which was refused without it."""
    asked = (settings.allow_routing_drift, settings.untie, *sorted(settings.ignore_tensors))
    return repr(asked)


def _holds(block: Block, run: Run | None, settings: Settings) -> bool:
    """Whether a run is still refused: with another run config, or other exceptions, it is judged anew."""
    if run is not None and run.config is not None and run.config.digest != block.config:
        return False
    if block.asked:
        return block.asked == exceptions(settings)
    return not (block.error == "RoutingDrift" and settings.allow_routing_drift)


def judge(
    step: Step,
    run: Run | None,
    row: Row | None,
    block: Block | None,
    settings: Settings,
    *,
    now: float,
    fresh: bool = False,
) -> Judgement:
    """The verdict on a step; `row` is of this very save; `fresh` takes up what failed or was removed (`--once`)."""
    answer = step.answer
    has_changed = row is not None and row.is_of_other_files(answer.fingerprint)
    if answer.state in ("complete", "suspect") and not has_changed and _is_published(step, run, row, settings):
        return Judgement(State.DONE, "up_to_date")
    match answer.state:
        case "incomplete" | "settling":
            return Judgement(State.INCOMPLETE, answer.reason, answer.error, answer.hint)
        case "suspect" if not (settings.accept_copies or (row is not None and row.accept_copy)):
            hint = f"if it is a finished copy: {retry(step.path, '--accept-copy')}"
            return Judgement(State.SUSPECT, answer.reason, "StepSuspect", hint)
        case "unsupported" | "no_model":
            return Judgement(State.UNSUPPORTED, answer.reason, answer.error, in_keys(answer.hint))
        case "damaged":
            return Judgement(
                State.QUARANTINED, answer.reason, answer.error, with_retry(in_keys(answer.hint), step.path)
            )
    if block is not None and _holds(block, run, settings):
        return Judgement(State.UNSUPPORTED, block.reason, block.error, block.hint)
    if foreign := _foreign(step, run, settings):
        return foreign
    if row is not None and not fresh:
        # `rm -r` may take the manifest first: what was ours looks foreign until all of it is gone.
        was_published = row.state in (State.DONE, State.REMOVED) or (row.state == State.FOREIGN and row.wish)
        if was_published and not step.has_ours:
            return Judgement(
                State.REMOVED,
                "the published directory was removed",
                hint=f"to have it again: {retry(step.path)}",
            )
        is_refused = row.state == State.QUARANTINED and row.refused in ("", answer.fingerprint)
        if is_refused and not _has_its_config_now(row, run):
            return Judgement(State.QUARANTINED, row.reason, row.error, row.hint, row.next_attempt or 0.0)
    if (run is None or run.config is None) and not fresh:
        return _without_config(run, row, settings, now)
    if row is not None and row.state == State.FAILED and not fresh:
        return Judgement(State.FAILED, row.reason, row.error, row.hint, row.next_attempt or 0.0)
    return Judgement(State.PENDING, "its files are not those that were converted" if has_changed else "")


def config_of(run: Run | None) -> str:
    """Hash of what the run config says; empty: there is none."""
    return run.config.digest if run is not None and run.config is not None else ""


def wish(run: Run | None, settings: Settings) -> str:
    """Dtype and shard size that are asked for now."""
    return f"{_dtype(run, settings)}/{settings.max_shard_size}"


def export_bytes(step: Step, run: Run | None, settings: Settings) -> int:
    """About the bytes that the export of a step takes (a tied head, which it leaves out, counted in)."""
    return step.answer.model_elements * ITEM_BYTES.get(_dtype(run, settings), 4)


def place(step: Step, run: Run | None, settings: Settings) -> str:
    """Where a step is published: alongside or subdirectory.

    `auto` is alongside unless TorchTitan up to 0.3.0 would be hurt: `keep_latest_k` 2 leaves no complete checkpoint
    during a save where siblings count, and an index beside makes it take the export for a checkpoint to resume from.
    """
    if settings.output != "auto":
        return settings.output
    keep = run.config.keep_latest_k if run is not None and run.config is not None else None
    return "subdirectory" if keep == 2 or export_bytes(step, run, settings) > settings.max_shard_size else "alongside"


def output(step: Step) -> str | None:
    """Where a step is published that nobody here converted."""
    for found in step.published:
        if found.ours and found.up_to_date:
            where = Path(step.run)
            return str(names_on_disk.published_path(where, step.step, subdirectory=found.place == "subdirectory"))
    return None


def replaced(step: Step, where: str) -> Published | None:
    """The directory that an export to this place would replace; an empty one counts as none."""
    return next((found for found in step.published if found.place == where and not found.empty), None)


def folder(step: Step, run: Run | None, settings: Settings) -> str:
    """The folder in which `step-N-hf` is made."""
    return f"{step.run}/{names_on_disk.SUBDIRECTORY}" if place(step, run, settings) == "subdirectory" else step.run


def remaining(keep_latest_k: int) -> int:
    """Complete checkpoints that TorchTitan up to 0.3.0 leaves during a save where each has a sibling `step-N-hf`."""
    return (keep_latest_k - 1) // 2


def exports_left(keep_latest_k: int) -> int:
    """Exports that TorchTitan up to 0.3.0 leaves beside the steps in the long run; it deletes the oldest first."""
    return keep_latest_k // 2


def first_loss(keep_latest_k: int) -> int:
    """From which save on TorchTitan up to 0.3.0 deletes exports: at the n-th, n steps and n - 1 exports are counted."""
    return (keep_latest_k + 4) // 2


def hazard(keep_latest_k: int) -> str:
    """What exports beside the steps of a run mean for it, in a sentence."""
    left, kept = remaining(keep_latest_k), exports_left(keep_latest_k)
    return (
        f"TorchTitan up to 0.3.0 counts step-N-hf as checkpoints: keep_latest_k = {keep_latest_k} leaves {left} of "
        f"{keep_latest_k - 1} complete checkpoints during a save; from save {first_loss(keep_latest_k)} on each save deletes old "
        f"exports, and leaves {kept}"
    )


def cure(keep_latest_k: int) -> str:
    """What to set against `hazard`, in a sentence."""
    return (
        'set output = "subdirectory", and move step-N-hf that lie beside the steps into hf/: no export is deleted, and '
        "every checkpoint is kept as without exports; "
        f"or keep_latest_k = {2 * keep_latest_k} in the run: it keeps {keep_latest_k - 1} checkpoints during a save, and "
        f"{exports_left(2 * keep_latest_k)} exports"
    )


def _dtype(run: Run | None, settings: Settings) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    return run.config.dtype if run is not None and run.config is not None else "auto"


def _is_published(step: Step, run: Run | None, row: Row | None, settings: Settings) -> bool:
    """Whether either place holds what is asked for; or what the converter said was that, when it was asked the same.

    The second: a step may have a run config of its own, of which only the converter knows.
    """
    if any(p.up_to_date and p.ours for p in step.published):
        return True
    asked_before = row is not None and row.state == State.DONE and row.wish == wish(run, settings)
    return asked_before and any(p.ours and p.save_id == step.answer.save_id for p in step.published)


def _foreign(step: Step, run: Run | None, settings: Settings) -> Judgement | None:
    where = place(step, run, settings)
    found = replaced(step, where)
    if found is None or found.whose == "ours" or settings.overwrite_foreign:
        return None
    what = f"it holds {', '.join(found.foreign)}" if found.foreign else "it has no manifest of ours"
    reason = f"{names_on_disk.published_name(step.step)} is somebody else's: {what}"
    return Judgement(State.FOREIGN, reason, "OutputForeign", "move it away, or set overwrite_foreign")


def _has_its_config_now(row: Row, run: Run | None) -> bool:
    """Whether a step that was quarantined without an attempt, for want of a run config, has one."""
    return row.error in CONFIG_ERRORS and row.next_attempt is None and run is not None and run.config is not None


def _without_config(run: Run | None, row: Row | None, settings: Settings, now: float) -> Judgement:
    """Users' launchers write the run config after the first step, and not at once: waited for, then given up."""
    since = row.complete_at if row is not None and row.complete_at is not None else now
    until = since + settings.config_grace
    error = (run and run.error) or "RunConfigMissing"
    reason = (run and run.message) or "no run config yet"
    hint = in_keys((run and run.hint) or "")
    if now < until:
        return Judgement(State.PENDING, f"waiting for the run config: {reason}", error, hint, until)
    return Judgement(State.QUARANTINED, reason, error, hint)
