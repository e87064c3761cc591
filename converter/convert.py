"""Owns the conversion of one checkpoint, from step directory to published directory. It alone connects the others.

This process moves bytes and has no torch. The `Prover` beside it has torch. Read `convert_step` from top to bottom.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from converter.common import errors, interrupts, names_on_disk
from converter.common.io_pacing import drop_from_cache
from converter.common.phase_timer import Clock
from converter.export.exporter import ExportOutcome, are_equal
from converter.export.manifest_checks import make_manifest
from converter.export.read_back import read_all, read_back
from converter.export.writer import in_one
from converter.families.family import FamilySpec
from converter.families.registry import family_of
from converter.families.renamed_tensors import source_names
from converter.move import ExportProgress, move
from converter.proof.client import Prover
from converter.proof.requests import Asking
from converter.publish import manifest, stale_files, swap
from converter.publish.existing_output import Existing
from converter.publish.lock import Lock
from converter.publish.owners import Owner
from converter.publish.publish_hooks import Hooked
from converter.run import base_assets
from converter.run.options import Options
from converter.run.step_source import (
    StepSource,
    check_replaceable,
    check_unchanged,
    export_bytes,
    look,
    model_bytes,
    output_folder,
    reason_to_skip,
)
from converter.statistics import weight_statistics

_SPARE = 64 << 20
"""Bytes that stay free beside an export."""
_ONLY_HF = "TorchTitan saved HF's tensors alone, with embedding and head as the run ties them"
Report = Callable[[str, dict[str, Any]], None]
"""Event name and fields; `cli` shows them."""


def convert_step(step: Path, options: Options, report: Report, prover: Callable[..., Prover] = Prover) -> None:
    """Converts one step and publishes it, or leaves nothing. Reports started, progress and succeeded or skipped.

    `prover` starts the process that has torch. Raises a ConversionError.
    """
    try:
        _convert(step, options, report, prover)
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise errors.MachineFailure(
            "no more threads can be started", path=step, hint="fewer --threads, or more memory or tasks"
        ) from error
    except OSError as error:
        if _is_gone(step):
            raise errors.StepVanished("the step is gone", path=step, hint="the trainer purged it") from None
        raise errors.from_oserror(error, error.filename or options.output or step.parent) from error


def _convert(step: Path, options: Options, report: Report, start_prover: Callable[..., Prover]) -> None:
    begun, phase = time.monotonic(), Clock()
    number = names_on_disk.step_number(step.name)
    assert number is not None
    with phase("look"):
        source = look(step, options)
        metadata = source.metadata
        folder = output_folder(step, source.run, metadata, source.dtype, options)
        published = folder / names_on_disk.published_name(number)
    about = {"step": number, "path": str(step), "output": str(published), "save_id": metadata.save_id}

    def skipped() -> bool:
        if reason := reason_to_skip(published, source, options):
            report("conversion_skipped", about | {"reason": reason})
        return reason is not None

    def progress(name: str, done: int, total: int) -> None:
        report("conversion_progress", {"phase": name, "bytes_done": done, "bytes_total": total})

    def waiting(owner: Owner | None) -> None:
        who = {"owner": owner.host.partition("/")[0], "pid": owner.pid} if owner else {}
        report("waiting_for_lock", {"path": str(folder / names_on_disk.lock_name(number)), **who})

    def may_replace(directory: Path) -> Existing | None:
        return check_replaceable(directory, published, source, options)

    def tell_kept(kept: Path, why: str) -> None:
        report("warning", about | {"message": f"{why}; they are kept in {kept}: move or remove them yourself"})

    if skipped():
        return
    with (
        swap.folder_for(folder),
        Lock(folder, number, on_wait=waiting, sleep=options.sleep) as lock,
        start_prover(lambda done, of: progress("forward", done, of)) as prover,
    ):
        stale_files.clear(folder, number, lock.check, tell_kept)
        if skipped():
            return
        may_replace(published)
        with phase("look"):
            found = base_assets.read(step, source.run, options.search, options.architecture)
            family = family_of(metadata, source.run, step)
            sources = source_names(family, metadata, step)
        wanted = export_bytes(metadata, source.dtype)
        _check_space(folder, wanted)
        report("conversion_started", about | {"bytes_total": model_bytes(metadata)})
        staging = swap.staging_path(folder, number, lock.owner.token)
        try:  # before it is made: a signal between the two must not leave it behind
            staging.mkdir()
            gathering = None
            if options.statistics is not None:
                gathering = weight_statistics.Gathering(options.statistics, number, family, source, sources, found)
            untie = options.untie and _lost_its_tie(step, family, source, sources, options)
            with Asking(prover, step, staging, source, found, options, phase, untie=untie) as asking:
                sampler = gathering.sampler if gathering else None
                tied = bool(found.base.get("tie_word_embeddings")) and not untie
                moved = move(family, source, sources, staging, options, phase, progress, asking, sampler, tied=tied)
                settled, outcome = asking.settled(), moved.outcome
                comparing = asking.compare()
                with phase("read_back"):  # beside TorchTitan's pass: HF's finds in the page cache what was read here
                    told = ExportProgress("read_back", sum(shard.size for shard in moved.files), progress)
                    entries = read_all(
                        staging, moved.written, asking.written | moved.index, told,
                        options.traffic(model_bytes(metadata)),
                    )  # fmt: skip
                tokenizer = asking.tokenizer()
                check_bias(step, outcome, options, asking)
                compared = comparing()
            warnings = base_assets.disagreements(settled["config"], found, tokenizer["special"]) + tokenizer["warnings"]
            if settled["borrowed"]:
                warnings.append(f"not checked independently of the base assets: {'; '.join(settled['borrowed'])}")
            if source.metadata.form == "hf":
                asked = {"--ignore-tensors": options.ignore_tensors, "--untie": options.untie}
                warnings += [
                    f"{flag} does nothing for a step in HF form: {_ONLY_HF}" for flag, on in asked.items() if on
                ]
            if source.config_is_later:
                warnings.append(
                    "not checked that the run config is the one this step was trained with: it was written after this step, "
                    f"perhaps at a resume with other settings ({source.run.path})"
                )
            if conflict := source.run.conflict:
                where = {"used": str(source.run.path), "other": str(conflict.other), "differs": list(conflict.differs)}
                report("run_config_conflict", about | where)
            with phase("publish"):
                made = make_manifest(
                    number, family, source, settled, moved.plan, outcome, compared, entries, prover.tools, options
                )
                facts = about | {"dtype": source.dtype, "base_assets": str(found.base_path)}
                hooked = Hooked(staging, options.hooks, facts, alive=lambda name: progress(name, 0, 0))
                made = hooked.before_publish(made)
                manifest.write(staging, made)
                read_back(staging / names_on_disk.MANIFEST, in_one(manifest.to_bytes(made)))
                hooked.sign(made)
                swap.make_durable(staging)
                check_unchanged(step, source)
                swap.check_whole(staging, made, signed=bool(options.hooks.sign))
                lock.check()
                replaced = swap.publish(staging, published, number, lock.owner.token, may_replace, tell_kept)
        except BaseException as error:
            with interrupts.held():
                stale_files.discard(staging)  # what stopped the conversion is told, not what stops the cleaning
            if isinstance(error, Exception):
                with contextlib.suppress(OSError):
                    lock.check()  # whoever took the step over also took the staging directory away
            if isinstance(error, errors.ConversionError) and error.retry == errors.Retry.NEVER:
                check_unchanged(step, source)  # what is wrong with a step that is being saved again is not its fault
            raise
        finally:
            drop_from_cache(step / file.name for file in source.listing.files)
        drop_from_cache(published / name for name in made.files)
    more: dict[str, Any] = {"replaced": replaced.as_event()} if replaced is not None else {}
    if gathering is not None:
        more["statistics"], problems = gathering.finish(moved.plan)
        warnings += problems
    for text in warnings:
        report("warning", about | {"message": text})
    figures = {"cast_to_zero": sum(c.to_zero for c in outcome.counts.values()), "largest_bias": outcome.largest_bias}
    report("conversion_succeeded", about | {
        "listing": source.listing.fingerprint, "dtype": source.dtype, "duration_seconds": round(time.monotonic() - begun, 3), "phases": phase.phases,
        "bytes_read": outcome.bytes_read + compared.get("bytes_read", 0),
        "bytes_written": sum(entry.size for entry in made.files.values()), "tensors": made.tensors,
        "parameters": made.parameters, "checks": [vars(check) for check in made.checks], "warnings": warnings,
        "figures": compared.get("figures", {}) | figures,
    } | more)  # fmt: skip


def _is_gone(step: Path) -> bool:
    """Whether the file system answers, and has no such step."""
    try:
        os.stat(step)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _lost_its_tie(
    step: Path, family: FamilySpec, source: StepSource, sources: dict[str, str], options: Options
) -> bool:
    """Whether embedding and head are both stored, and differ."""
    stored = [sources[name] for name in (family.embedding, family.head) if name in sources]
    if source.metadata.form != "dcp" or len(stored) < 2:
        return False
    embedding, head = (source.metadata.tensors[fqn] for fqn in stored)
    return not are_equal(step, embedding, head, options.traffic(model_bytes(source.metadata)))


def _check_space(folder: Path, wanted: int) -> None:
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize
    if free < wanted + _SPARE:
        raise errors.NoSpace(
            f"the export needs {wanted:,} bytes and {_SPARE:,} beside, {free:,} are free",
            path=folder,
            hint="free space on this file system",
        )


def check_bias(step: Path, outcome: ExportOutcome, options: Options, asking: Asking) -> None:
    """Raises RoutingDrift, with how often routing changes on the check's tokens, unless that is allowed."""
    if not outcome.largest_bias or options.allow_routing_drift:
        return
    drift = asking.trained().get("drift")
    often = f"; routing changes for {drift:.0%} of the check's tokens and layers" if drift is not None else ""
    raise errors.RoutingDrift(
        f"the MoE balancing bias is up to {outcome.largest_bias:.4g}, and HF's model has no place for it{often}", path=step,
        hint="publish all the same with --allow-routing-drift",
        figures={"largest_bias": outcome.largest_bias, "routing_changed": drift},
    )  # fmt: skip
