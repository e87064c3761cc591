"""Owns the way of one checkpoint, from step directory to published directory: the only composer of the rest.

This process moves bytes and has no torch; the `Prover` beside it does. Read `convert_step` from top to bottom.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter import assets, errors, layout, manifest, publish, storage
from converter.evidence import make_manifest
from converter.export import Exporter, Outcome, read_back
from converter.exports import HFShard, Plan, lay_out, target_dtype
from converter.lock import Lock, Owner
from converter.prover import Prover
from converter.source import Options, check_unchanged, look, output_folder, reason_to_skip

Report = Callable[[str, dict[str, Any]], None]
"""Event name and fields; `cli` shows them."""


@dataclass
class Clock:
    """Seconds by phase."""

    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = round(self.phases.get(name, 0.0) + time.monotonic() - begun, 3)


def convert_step(step: Path, options: Options, report: Report, prover: Callable[..., Prover] = Prover) -> None:
    """Converts one step and publishes it, or leaves nothing. Reports started, progress and succeeded or skipped.

    `prover` starts the process that has torch. Raises a ConversionError.
    """
    try:
        _convert(step, options, report, prover)
    except OSError as error:
        if not step.exists():
            raise errors.StepVanished("the step is gone", path=step, hint="the trainer purged it") from None
        raise errors.from_oserror(error) from error


def _convert(step: Path, options: Options, report: Report, start_prover: Callable[..., Prover]) -> None:
    begun, phase = time.monotonic(), Clock()
    number = layout.step_number(step.name)
    assert number is not None
    with phase("look"):
        source = look(step, options)
        run, metadata = source.run, source.metadata
        folder = output_folder(step, run, metadata, source.dtype, options)
        published = folder / layout.published_name(number)
        if reason := reason_to_skip(published, source, options):
            report(
                "conversion_skipped", {"step": number, "path": str(step), "output": str(published), "reason": reason}
            )
            return
        folder.mkdir(exist_ok=True)

    def waiting(owner: Owner | None) -> None:
        report(
            "waiting_for_lock",
            {
                "path": str(folder / layout.lock_name(number)),
                "owner": owner and owner.host.partition("/")[0],
                "pid": owner and owner.pid,
            },
        )

    with (
        Lock(folder, number, on_wait=waiting, sleep=options.sleep) as lock,
        start_prover(lambda done, of: progress("compare", done, of)) as prover,
    ):
        publish.clear(folder, number)
        if reason := reason_to_skip(published, source, options):
            report(
                "conversion_skipped", {"step": number, "path": str(step), "output": str(published), "reason": reason}
            )
            return
        publish.check_replaceable(published, force=options.force)
        with phase("look"):
            found = assets.read(step, run, options.search)
        model_bytes = sum(chunk.length for items in metadata.tensors.values() for chunk in items.chunks)
        report(
            "conversion_started",
            {
                "step": number,
                "path": str(step),
                "output": str(published),
                "save_id": metadata.save_id,
                "bytes_total": model_bytes,
            },
        )

        def progress(name: str, done: int, total: int) -> None:
            report("conversion_progress", {"phase": name, "bytes_done": done, "bytes_total": total})

        with phase("plan"):
            settled = prover.ask(
                "start", step=str(step), metadata=storage.to_json(metadata), run=run.to_json(), base=found.base,
                base_path=str(found.base_path), dtype=source.dtype, architecture=options.architecture,
            )  # fmt: skip
            plan = Plan.from_json(settled["plan"])
            dtypes = {e.name: target_dtype(metadata.tensors[e.source].dtype, source.dtype) for e in plan.exports}
            files, index = lay_out(plan.exports, dtypes, options.max_shard_size)
            _check_space(folder, sum(shard.size for shard in files))
        staging = publish.make_staging(folder, number, lock.owner.token)
        try:
            with phase("assets"):
                assets.write(staging, found, settled["config"], settled["generation_config"])
                if index is not None:
                    (staging / "model.safetensors.index.json").write_bytes(index)
                tokenizer = prover.ask("tokenizer", directory=str(staging))
                assets.check_vocabulary(
                    run, settled["rows"], tokenizer["length"], tokenizer["highest"], found.tokenizer_path
                )
            with phase("export"):
                moved = _Progress("export", model_bytes, progress)
                threads = options.threads or min(4, len(os.sched_getaffinity(0)))
                outcome = Exporter(step, staging, plan, files, metadata.tensors, source.dtype, threads, moved).run()
            _check_bias(step, outcome, options)
            compared, entries = _prove(prover, phase, staging, files, outcome, tokenizer, options, progress)
            warnings = assets.disagreements(settled["config"], found, tokenizer["special"])
            if settled["borrowed"]:
                warnings.append(f"not checked independently of the base assets: {'; '.join(settled['borrowed'])}")
            if run.conflict:
                report(
                    "run_config_conflict",
                    {"used": str(run.path), "other": str(run.conflict.other), "differs": list(run.conflict.differs)},
                )
            with phase("publish"):
                made = make_manifest(number, source, settled, plan, outcome, compared, entries, prover.tools, options)
                manifest.write(staging, made)
                publish.make_durable(staging)
                check_unchanged(step, source)
                lock.check()
                publish.publish(staging, published, number, lock.owner.token)
        except BaseException:
            publish.remove_tree(staging)
            raise
    for text in warnings:
        report("warning", {"message": text, "path": str(step)})
    report("conversion_succeeded", {
        "step": number, "path": str(step), "output": str(published), "save_id": metadata.save_id, "dtype": source.dtype,
        "duration_seconds": round(time.monotonic() - begun, 3), "phases": phase.phases,
        "bytes_read": outcome.bytes_read + compared.get("bytes_read", 0), "bytes_written": sum(entry.size for entry in made.files.values()),
        "tensors": made.tensors, "parameters": made.parameters, "checks": [vars(check) for check in made.checks], "warnings": warnings,
        "figures": compared.get("figures", {}) | {"cast_to_zero": sum(c.to_zero for c in outcome.counts.values()), "largest_bias": outcome.largest_bias},
    })  # fmt: skip


def _check_space(folder: Path, wanted: int) -> None:
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize
    if free < wanted + (64 << 20):
        raise errors.NoSpace(
            f"the export needs {wanted:,} bytes, {free:,} are free", path=folder, hint="free space on this file system"
        )


class _Progress:
    """Adds up bytes from several threads and reports them a few times a second."""

    def __init__(self, name: str, total: int, report: Callable[[str, int, int], None]):
        self._name, self._total, self._report = name, total, report
        self._done = 0
        self._told = 0.0

    def __call__(self, moved: int) -> None:
        self._done += moved
        now = time.monotonic()
        if now - self._told > 0.25:
            self._told = now
            self._report(self._name, min(self._done, self._total), self._total)


def _check_bias(step: Path, outcome: Outcome, options: Options) -> None:
    if outcome.largest_bias and not options.allow_routing_drift:
        raise errors.RoutingDrift(
            f"the MoE balancing bias is up to {outcome.largest_bias:.4g}: HF's model has no place for it and would route tokens otherwise", path=step,
            hint="publish all the same with --allow-routing-drift (dcp2hfd: allow_routing_drift = true)", figures={"largest_bias": outcome.largest_bias},
        )  # fmt: skip


def _prove(
    prover: Prover, phase: Clock, staging: Path, files: list[HFShard], outcome: Outcome, tokenizer: dict[str, Any], options: Options,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[str, Any], dict[str, manifest.FileEntry]]:  # fmt: skip
    """The forward check in the other process, and meanwhile every file read back and hashed here."""

    def read_all() -> dict[str, manifest.FileEntry]:
        with phase("read_back"):
            moved = _Progress("read_back", sum(shard.size for shard in files), progress)
            entries = {
                shard.name: manifest.FileEntry(*read_back(staging / shard.name, outcome.written[shard.name], moved))
                for shard in files
            }
            for path in sorted(staging.rglob("*")):
                name = str(path.relative_to(staging))
                if path.is_file() and name not in entries:
                    payload = path.read_bytes()
                    entries[name] = manifest.FileEntry(len(payload), hashlib.sha256(payload).hexdigest())
            return entries

    with ThreadPoolExecutor(1, "read-back") as pool:
        reading = pool.submit(read_all)
        compared: dict[str, Any] = {}
        if options.forward_check == "full":
            with phase("compare"):
                token_ids = assets.check_tokens(tokenizer["length"], tokenizer["added"], 32)
                sent = [{"name": f.name, "positions": f.positions, "size": f.size} for f in files]
                compared = prover.ask("compare", staging=str(staging), files=sent, token_ids=token_ids)
        return compared, reading.result()
