"""Owns `dcp2hf inspect` and the dry run: the content of a checkpoint, and what a conversion of it would do."""

from pathlib import Path
from typing import Any

from converter.checkpoint import probe, tensor_names
from converter.checkpoint.tensors import StorageMetadata
from converter.common import errors, names_on_disk
from converter.families.registry import family_of
from converter.families.renamed_tensors import source_names
from converter.publish import manifest
from converter.run import base_assets
from converter.run.options import Options
from converter.run.step_source import check_replaceable, look, output_folder


def preview(step: Path, options: Options) -> tuple[bool, str]:
    """(whether it would be converted: not if it is up to date and may be skipped; to where). Reads metadata and configs only; writes nothing.

    Raises the ConversionError that speaks against it.
    """
    try:
        source = look(step, options, wait=False)
        source_names(family_of(source.metadata, source.run, step), source.metadata, step)
        base_assets.read(step, source.run, options.search, options.architecture)
        number = names_on_disk.step_number(step.name)
        assert number is not None
        published = output_folder(
            step, source.run, source.metadata, source.dtype, options
        ) / names_on_disk.published_name(number)
        current = manifest.is_up_to_date(
            published, save_id=source.metadata.save_id, dtype=source.dtype, max_shard_size=options.max_shard_size
        )
        if current and options.if_exists == "skip":
            return False, f"{published} is up to date"
        try:
            found = check_replaceable(published, published, source, options)
        except errors.OutputForeign as error:
            if options.if_exists != "skip":
                raise
            return False, f"{error} ({error.hint})"
        edited = manifest.edited_files(published) if found is not None else []
    except OSError as error:
        raise errors.from_oserror(error) from error
    text = f"{published} ({source.dtype})"
    if found is None:
        return True, text
    kept = f"; edited files of it are kept beside it: {', '.join(edited[:5])}" if edited else ""
    return True, f"{text}, replacing {'an up-to-date export' if current else found}{kept}"


def describe(step: Path) -> dict[str, Any]:
    """What `dcp2hf inspect --json` prints: state and reason, and the tensors where metadata can be read.

    `unreadable` is a step that the file system does not give: purged meanwhile, or no rights.
    """
    try:
        said: dict[str, Any] = {"path": str(step), **probe.probe_apart(step)}
    except OSError as error:
        said = {"path": str(step), "state": "unreadable", "reason": errors.from_oserror(error, step).what}
    if said.get("kind") == "dcp" and said["state"] not in ("incomplete", "damaged"):
        try:
            _, metadata = probe.read(step)
        except errors.ConversionError as error:
            return said | {"state": "damaged", "reason": error.what}
        said |= {
            "ranks": metadata.ranks,
            "other_items": metadata.others,
            "tensors": {
                t.fqn: {"dtype": t.dtype, "shape": list(t.shape), "chunks": len(t.chunks)}
                for t in metadata.tensors.values()
            },
        }
        if note := _of_the_head(metadata):
            said["note"] = note
    return said


def _of_the_head(metadata: StorageMetadata) -> str:
    """Why an export may have fewer parameters than are stored: of a tied model TorchTitan stores the head as well."""
    tensors = metadata.tensors.values()
    embedding = [t for t in tensors if t.fqn.endswith(tensor_names.EMBEDDING)]
    head = (
        [t for t in tensors if t.fqn.endswith(tensor_names.HEADS) and t.shape == embedding[0].shape]
        if len(embedding) == 1
        else []
    )
    if len(head) != 1:
        return ""
    return (
        f"stored parameters are counted; if the model ties its embeddings, `convert` counts {head[0].elements:,} less: "
        f"{head[0].fqn} is the embedding once more, and is not exported"
    )
