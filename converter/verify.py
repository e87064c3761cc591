"""Owns `dcp2hf verify`: it compares a published directory with its checkpoint or, if that is gone, with its manifest.

Uses only numpy and the standard library. Everything is derived again from the checkpoint and compared byte by byte, the
manifest included. Dtype, shard size, architecture and accepted exceptions are taken from the manifest.
"""

import glob
import hashlib
import os
import stat
from dataclasses import replace
from math import prod
from pathlib import Path

from converter.checkpoint import hf_step
from converter.checkpoint.tensors import to_json
from converter.cli.verify_report import VerifyResult
from converter.common import errors, names_on_disk
from converter.common.dtypes import target_dtype
from converter.common.errors import ABSENT
from converter.common.files import REFUSED, exists, kind, named, open_regular, parse_json, read_regular
from converter.common.names_on_disk import INDEX
from converter.export.comparer import Comparer
from converter.export.exporter import Exporter
from converter.export.hf_shards import lay_out
from converter.export.manifest_checks import make_manifest
from converter.export.plan import Plan
from converter.families.registry import family_of
from converter.families.renamed_tensors import source_names
from converter.proof.client import Prover
from converter.publish import manifest
from converter.publish.manifest import FileEntry, Manifest
from converter.run import base_assets
from converter.run.options import Options
from converter.run.path_permission import LIMIT
from converter.run.step_source import look


def locate(path: Path) -> tuple[Path, Path, int]:
    """(step directory, published directory, N) of a step or its `-hf`. The step directory may be gone.

    Raises ValueError for any other path.
    """
    path = path.absolute()
    number = names_on_disk.published_step(path.name)
    if number is not None:
        run = path.parent.parent if path.parent.name == names_on_disk.SUBDIRECTORY else path.parent
        return run / f"step-{number}", path, number
    number = names_on_disk.step_number(path.name)
    if number is None:
        raise ValueError(f"{path} is neither a step directory nor its -hf")
    beside, below = (names_on_disk.published_path(path.parent, number, subdirectory=below) for below in (False, True))
    return path, beside if exists(beside) or not exists(below) else below, number


def verify(
    step: Path, published: Path, number: int, options: Options, sample: tuple[int, int] = (1, 1)
) -> VerifyResult:
    """Compares `published` with what `step` gives; `sample` (n, t) takes the n-th of t parts of the weights.

    Raises OutputForeign where there is no manifest of ours; what the checkpoint's reading raises is not verified.
    """
    made = manifest.read(published)
    if made is None:
        raise errors.OutputForeign(
            "there is no manifest of ours that parses",
            path=published / names_on_disk.MANIFEST,
            hint="convert the step again",
        )
    verdict = VerifyResult(signed=kind(published / names_on_disk.SIGNATURE) == stat.S_IFREG)
    if not manifest.is_intact(published):
        verdict.differs(names_on_disk.MANIFEST, "it has changed since it was written")
        verdict.not_verified.append("all other files: what the manifest says of them cannot be relied on")
        return verdict
    if made.step != number:
        verdict.differs(names_on_disk.MANIFEST, f"it is of step {made.step}")
    if not exists(step):
        verdict.against = "the manifest (the checkpoint is gone)"
        _against_manifest(published, made, verdict, sample)
        return verdict
    try:
        _against_checkpoint(step, published, made, options, verdict, sample)
    except (errors.ConversionError, OSError) as failed:
        error = errors.from_oserror(failed, step) if isinstance(failed, OSError) else failed
        verdict.against = "the manifest"
        verdict.not_verified.append(f"{error} ({error.hint})")
        _against_manifest(published, made, verdict, sample)
    return verdict


def _against_checkpoint(
    step: Path, published: Path, made: Manifest, options: Options, verdict: VerifyResult, sample: tuple[int, int]
) -> None:
    verdicts = {check.name: check.verdict for check in made.checks}
    options = replace(
        options, dtype=made.dtype, max_shard_size=made.max_shard_size, accept_copy=bool(made.accepted.get("copy")),
        architecture="run" if "architecture" in made.accepted else "base",
        ignore_tensors=tuple(map(glob.escape, made.accepted.get("ignored_tensors", ()))),
    )  # fmt: skip
    source = look(step, options, wait=False)
    if source.metadata.save_id != made.save_id:
        verdict.differs(
            names_on_disk.MANIFEST, f"it is of save {made.save_id}; the checkpoint is save {source.metadata.save_id}"
        )
        return
    family = family_of(source.metadata, source.run, step)
    source_names(family, source.metadata, step)
    found = base_assets.read(step, source.run, options.search, options.architecture)
    with Prover() as prover:
        settled = prover.ask(
            "start", step=str(step), metadata=to_json(source.metadata), run=source.run.to_json(), base=found.base, has_config=found.has_config,
            base_path=str(found.base_path), dtype=source.dtype, architecture=options.architecture, untie="untied" in made.accepted, io_bandwidth_limit=0,
            drop_behind=False,
        )  # fmt: skip
        tools = prover.tools
    plan = Plan.from_json(settled["plan"])
    tensors = source.metadata.tensors
    dtypes = {export.name: target_dtype(tensors[export.source].dtype, source.dtype) for export in plan.exports}
    files, index = lay_out(plan.exports, dtypes, made.max_shard_size)
    part = _part(sorted({export.source for export in plan.exports}), sample)
    sampled = Plan(
        tuple(e for e in plan.exports if e.source in part),
        plan.tied if plan.tied and plan.tied[0] in part else None,
        plan.zero,
    )
    with Comparer(published, files) as comparer:
        outcome = Exporter(
            step, sampled, files, tensors, source.dtype, options.threads or 2, lambda n: None, comparer
        ).run()
    verdict.tensors, verdict.bytes_compared = len(sampled.exports), comparer.bytes_compared
    for (file, tensor), position in sorted(comparer.differs.items()):
        verdict.differs(file, f"{tensor} differs, first at byte {position:,}")
    rendered = base_assets.render(found, settled["config"], settled["generation_config"])
    if index is not None:
        rendered[INDEX] = index
    for name, payload in rendered.items():
        _compare_small(published, name, payload, verdict)
    entries = {name: FileEntry(len(payload), hashlib.sha256(payload).hexdigest()) for name, payload in rendered.items()}
    for shard in files:
        entries[shard.name] = (
            _entry(published / shard.name) if sample[1] == 1 else made.files.get(shard.name, FileEntry(0, ""))
        )
    _check_extra(published, entries.keys() | made.added.keys(), verdict)
    _check_added(published, made, verdict)
    if tools != made.tools:
        other = ", ".join(f"{k} {made.tools.get(k)} not {v}" for k, v in tools.items() if made.tools.get(k) != v)
        verdict.not_verified.append(f"it was made with other versions ({other}): what they change would differ")
    compared = {"tolerance": settled["tolerance"]} if verdicts.get("forward") == "passed" else {}
    outcome.tie_checked = True
    expected = make_manifest(made.step, family, source, settled, plan, outcome, compared, entries, made.tools, options)
    expected = replace(expected, added=made.added)
    if sample[1] == 1 and manifest.to_bytes(expected) != (published / names_on_disk.MANIFEST).read_bytes():
        _explain(expected, made, verdict)


def _part(names: list[str], sample: tuple[int, int]) -> set[str]:
    return set(names[sample[0] - 1 :: sample[1]])


def _compare_small(published: Path, name: str, payload: bytes, verdict: VerifyResult) -> None:
    try:
        there = read_regular(published / name, limit=LIMIT)
    except OSError as error:
        if error.errno not in ABSENT | REFUSED:
            raise
        verdict.differs(name, f"cannot be read ({error.strerror})")
        return
    if there != payload:
        at = next(
            (i for i, (a, b) in enumerate(zip(there, payload, strict=False)) if a != b), min(len(there), len(payload))
        )
        verdict.differs(name, f"differs, first at byte {at:,}")


def _entry(path: Path) -> FileEntry:
    try:
        with named(path), os.fdopen(open_regular(path)[0], "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileEntry(file.tell(), digest)
    except OSError as error:
        if error.errno not in ABSENT | REFUSED:
            raise
        return FileEntry(0, "")


def _check_extra(published: Path, known: set[str], verdict: VerifyResult) -> None:
    for path in sorted(published.rglob("*")):
        name = str(path.relative_to(published))
        if (
            (path.is_symlink() or not path.is_dir())
            and name not in (names_on_disk.MANIFEST, names_on_disk.SIGNATURE)
            and name not in known
            and not manifest.is_of_nfs(name)
        ):
            verdict.differs(name, "is no part of the export")


def _check_added(published: Path, made: Manifest, verdict: VerifyResult) -> None:
    for name, entry in made.added.items():
        if _entry(published / name) != entry:
            verdict.differs(name, "is not what the hook put there")


def _explain(expected: Manifest, made: Manifest, verdict: VerifyResult) -> None:
    """Which parts of the manifest are not what they should be."""
    before = len(verdict.differences)
    for key, value in vars(expected).items():
        recorded = getattr(made, key)
        if recorded == value:
            continue
        if key == "files":
            names = [name for name in sorted(value.keys() | recorded.keys()) if value.get(name) != recorded.get(name)]
            verdict.differs(names_on_disk.MANIFEST, f"size or sha256 of {', '.join(names)} is not the file's")
        else:
            verdict.differs(names_on_disk.MANIFEST, f"{key} is not what the checkpoint gives")
    if len(verdict.differences) == before:
        verdict.differs(names_on_disk.MANIFEST, "its bytes are not those that were written")


def _against_manifest(published: Path, made: Manifest, verdict: VerifyResult, sample: tuple[int, int]) -> None:
    """Every file against the manifest, and the manifest against the files' own headers."""
    weights = sorted(name for name in made.files if name.endswith(".safetensors"))
    part = _part(weights, sample)
    for name, entry in sorted((made.files | made.added).items()):
        if name in weights and name not in part:
            continue
        there = _entry(published / name)
        verdict.bytes_compared += there.size
        if there != entry:
            verdict.differs(
                name, "is missing" if not exists(published / name) else "size or sha256 is not the manifest's"
            )
    _check_extra(published, made.files.keys() | made.added.keys(), verdict)
    _check_self(published, made, weights, verdict)


def _check_self(published: Path, made: Manifest, weights: list[str], verdict: VerifyResult) -> None:
    """The manifest's own figures against the headers of the weights and the config."""
    try:
        found = [entry for name in weights for entry in hf_step.header(published / name)[0]]
        config = parse_json(read_regular(published / "config.json", limit=LIMIT))
        dtype = config.get("dtype")
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in ABSENT | REFUSED:
            raise
        verdict.differs("config.json or a HF shard", f"cannot be read ({type(error).__name__})")
        return
    verdict.tensors = len(found)
    elements = sum(prod(entry.shape) for entry in found)
    for name, recorded, counted in (
        ("tensors", made.tensors, len(found)), ("parameters", made.parameters, elements), ("dtype", made.dtype, dtype),
    ):  # fmt: skip
        if recorded != counted:
            verdict.differs(names_on_disk.MANIFEST, f"{name} is {recorded}, the files say {counted}")
