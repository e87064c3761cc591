"""Owns the decision whether and how a step may be converted, and to where, from the options and the step's own records.

Uses only the standard library.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from converter.checkpoint import hf_step, metadata_checks, probe, tensor_names
from converter.checkpoint import tensors as checkpoint
from converter.checkpoint.completeness import (
    METADATA,
    SETTLE_SECONDS,
    Listing,
    check_links,
    completeness,
    kind_of,
    list_step,
)
from converter.common import errors, names_on_disk
from converter.common.dtypes import SAFETENSORS, target_dtype
from converter.common.files import exists, read_regular
from converter.common.metadata_limits import SIZE_LIMIT
from converter.common.names_on_disk import INDEX
from converter.publish import manifest, swap
from converter.publish.existing_output import Existing
from converter.run import run_config
from converter.run.options import Options

CONFIG_DELAY_SECONDS = 120.0
"""How much later than a step a launcher may write the run config that the step was trained with: users' launcher polls every
5 s for a first step, and an NFS client may see it half a minute late. As the daemon's `config_grace`."""
COPY_WATCH_SECONDS = 60.0
"""How long a copy's listing must stay the same before it is accepted."""


@dataclass(frozen=True)
class StepSource:
    """A step that may be converted: its listing, its storage metadata, what its run says."""

    listing: Listing
    metadata: checkpoint.StorageMetadata
    run: run_config.RunConfig
    dtype: str
    """Of the export."""
    digest: str
    """sha256 of `.metadata`, or of the index of a step in HF form."""
    copied: bool = False
    config_is_later: bool = False
    """The run config is newer than the step; by mtimes, so it is warned of and never part of an export's bytes."""
    ignored: tuple[str, ...] = ()
    """FQNs that `ignore_tensors` left out of `metadata`."""


def look(step: Path, options: Options, *, wait: bool = True) -> StepSource:
    """Reads what a step says of itself and waits for it to settle. Raises what speaks against converting it."""
    listing = list_step(step)
    check_links(listing)
    kind = kind_of(listing)
    if kind == "torch_checkpointing":
        raise errors.UnsupportedFormat(
            "saved by torch_checkpointing, which is not read", path=step, hint="save with DCP"
        )
    if kind == "hf":
        metadata, state, reason = _read_hf(step, listing)
    else:
        listing, metadata = probe.read(step, options.metadata_limits)
        state, reason = completeness(listing, metadata.extent)
    copied = _wait_until_settled(step, listing, state, reason, options, wait=wait)
    ignored: tuple[str, ...] = ()
    if metadata.form == "dcp":
        ignored = tuple(tensor_names.ignored(metadata.tensors, options.ignore_tensors, step))
        left_out = {*ignored}
        kept = {fqn: items for fqn, items in metadata.tensors.items() if fqn not in left_out}
        metadata = replace(metadata, tensors=kept)
    if ignored and not metadata.tensors:
        raise errors.NoModelInStep(
            f"--ignore-tensors leaves out every tensor of the step ({len(ignored)}, first {ignored[0][:200]!r})",
            path=step,
            hint="nothing to convert; if the model's are among them, narrow --ignore-tensors to what lies beside the model",
        )
    if not metadata.tensors:
        raise errors.NoModelInStep(
            "the checkpoint holds no model tensors (optimizer or dataloader only)",
            path=step,
            hint="nothing to convert; fault-tolerant runs save such steps",
        )
    if metadata.form == "dcp":
        metadata_checks.check_dtypes(((t.fqn, t.dtype) for t in metadata.tensors.values()), step / METADATA)
    run = run_config.find(step, names=options.run_config_names, logs_roots=options.logs_roots, file=options.run_config)
    later = not copied and options.run_config is None and _was_written_after(run.path, step, listing)
    dtype = run.dtype if options.dtype == "auto" else options.dtype
    return StepSource(
        listing, metadata, run, dtype, _digest(step, metadata.form), copied, config_is_later=later, ignored=ignored
    )


def _was_written_after(config: Path, step: Path, listing: Listing) -> bool:
    """Whether a run config is so much newer than the end of the step's save that it may be another launch's.

    Both times are the file server's. One in the step's own folder is the step's; of one that is gone nothing is known.
    """
    end = listing.get(METADATA) or listing.get(INDEX)
    if end is None or config.parent == step:
        return False
    try:
        written = config.lstat().st_mtime_ns
    except OSError:
        return False
    return written - end.mtime_ns > CONFIG_DELAY_SECONDS * 1e9


def _wait_until_settled(step: Path, listing: Listing, state: str, reason: str, options: Options, *, wait: bool) -> bool:
    """Whether the step is an accepted copy. Raises StepIncomplete or StepSuspect unless it may be converted."""
    if state == "incomplete":
        raise errors.StepIncomplete(
            f"the step is not complete: {reason}",
            path=step,
            hint="wait for the save to end; a save that died never does",
        )
    if state == "suspect" and not options.accept_copy:
        raise errors.StepSuspect(
            f"the step is suspect: {reason}",
            path=step,
            hint="if it is a whole copy, say --accept-copy",
        )
    if state != "complete" and wait:
        options.sleep(SETTLE_SECONDS if state == "settling" else COPY_WATCH_SECONDS)
        if list_step(step).fingerprint != listing.fingerprint:
            raise errors.StepIncomplete("the step is being written", path=step, hint="wait for the save to end")
    return state == "suspect"


def _read_hf(step: Path, listing: Listing) -> tuple[checkpoint.StorageMetadata, str, str]:
    """A step in HF form as storage metadata, its state and why: its tensors are HF's, each one raw chunk of a safetensors file."""
    said = hf_step.state_of(step, listing)
    if said["state"] == "incomplete":
        return checkpoint.StorageMetadata("", {}, form="hf"), said["state"], said["reason"]
    tensors = {}
    for entry in hf_step.entries(step):
        chunk = checkpoint.Chunk(
            (0,) * len(entry.shape), entry.shape, entry.file, entry.position, entry.length, raw=True
        )
        tensors[entry.name] = checkpoint.TensorItems(entry.name, entry.dtype, entry.shape, (chunk,))
    return checkpoint.StorageMetadata(said["save_id"], tensors, form="hf"), said["state"], said["reason"]


def model_bytes(metadata: checkpoint.StorageMetadata) -> int:
    """Bytes of the model's items in the checkpoint."""
    return sum(chunk.length for items in metadata.tensors.values() for chunk in items.chunks)


def export_bytes(metadata: checkpoint.StorageMetadata, dtype: str) -> int:
    """Bytes that the model's tensors take in the export's dtype; a tied head counts although it is not exported."""
    sizes = ((t.elements, t.dtype) for t in metadata.tensors.values() if t.dtype in SAFETENSORS)
    return sum(elements * SAFETENSORS[target_dtype(stored, dtype)][1] for elements, stored in sizes)


def output_folder(
    step: Path, run: run_config.RunConfig, metadata: checkpoint.StorageMetadata, dtype: str, options: Options
) -> Path:
    """Where `step-N-hf` is made: beside the step, unless siblings would hurt training (TorchTitan up to 0.3.0).

    With `keep_latest_k` 2, a sibling leaves not one complete checkpoint during a save; an export with an index would
    be taken for a checkpoint to resume from.
    """
    if options.output is not None:
        return options.output
    size = export_bytes(metadata, dtype)
    hurts = run.keep_latest_k == 2 or size > options.max_shard_size
    return step.parent / names_on_disk.SUBDIRECTORY if hurts else step.parent


def check_replaceable(directory: Path, published: Path, source: StepSource, options: Options) -> Existing | None:
    """What an export of `source` to `published` would replace, which lies at `directory` now; None where nothing is there.

    Raises OutputForeign where that is somebody's work.
    """
    run = source.listing.path.parent
    own = {os.path.realpath(folder) for folder in (run, run / names_on_disk.SUBDIRECTORY)}
    is_shared = os.path.realpath(published.parent) not in own
    return swap.check_replaceable(
        directory,
        force=options.force,
        ours_only=options.ours_only or options.if_exists == "skip",
        named=published,
        shared_by=(source.metadata.save_id, source.run.sha256) if is_shared else None,
    )


def reason_to_skip(published: Path, source: StepSource, options: Options) -> str | None:
    """Why `--if-exists skip` leaves what is published: "up to date" or "foreign"; None where the step is converted."""
    if options.if_exists != "skip" or not exists(published):
        return None
    if manifest.is_up_to_date(
        published, save_id=source.metadata.save_id, dtype=source.dtype, max_shard_size=options.max_shard_size
    ):
        return "up to date"
    try:
        check_replaceable(published, published, source, options)
    except errors.OutputForeign:
        return "foreign"
    return None


def _digest(step: Path, form: str) -> str:
    payload = read_regular(step / (INDEX if form == "hf" else METADATA), limit=SIZE_LIMIT)
    return hashlib.sha256(payload).hexdigest()


def check_unchanged(step: Path, source: StepSource) -> None:
    """Raises StepVanished unless what was read is the save that is still there."""
    same = (
        exists(step)
        and list_step(step).fingerprint == source.listing.fingerprint
        and _digest(step, source.metadata.form) == source.digest
    )
    if not same:
        raise errors.StepVanished(
            "the step was purged or saved again while it was being read",
            path=step,
            hint="nothing was published; a newer save is converted next",
        )
