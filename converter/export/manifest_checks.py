"""Owns what the manifest says was verified: each check with its verdict, and those that did not run with the reason.

numpy and the standard library only.
"""

from typing import Any

from converter.checkpoint import tensor_names
from converter.export.exporter import ExportOutcome
from converter.export.plan import Plan
from converter.families.family import FamilySpec
from converter.publish import manifest
from converter.run import tokenizer_fit
from converter.run.options import Options
from converter.run.step_source import StepSource

OF_DCP = ("storage_metadata", "items", "chunks")
"""Checks of what a DCP says of itself; a step in HF form has headers."""


def make_manifest(
    step: int,
    family: FamilySpec,
    source: StepSource,
    settled: dict[str, Any],
    plan: Plan,
    outcome: ExportOutcome,
    compared: dict[str, Any],
    entries: dict[str, manifest.FileEntry],
    tools: dict[str, str],
    options: Options,
) -> manifest.Manifest:
    def passed(name: str, tolerance: str | None = None) -> manifest.Check:
        return manifest.Check(name, "passed", tolerance)

    def not_run(name: str, reason: str) -> manifest.Check:
        return manifest.Check(name, "not run", reason=reason)

    checks = [passed("complete")]
    checks += [passed(name) for name in (OF_DCP if source.metadata.form == "dcp" else ("headers",))]
    taken = tensor_names.taken_off(source.metadata.tensors) if source.metadata.form == "dcp" else []
    checks.append(
        manifest.Check("names", "passed", reason=f"taken off: {', '.join(taken)}") if taken else passed("names")
    )
    reshaped = "; ".join(settled["reshaped"])
    checks.append(manifest.Check("architecture", "accepted", reason=reshaped) if reshaped else passed("architecture"))
    checks += [passed(name) for name in ("plan", "config", "vocabulary", "tokenizer")]
    trained = tokenizer_fit.TRAINED_WITH & entries.keys()
    checks.append(passed("token_ids") if trained else not_run("token_ids", "TorchTitan does not read these files"))
    checks += [passed(name) for name in ("finite", "cast_range")]
    checks.append(
        not_run("checksums", f"none stored for {len(outcome.unchecked)} tensors")
        if outcome.unchecked
        else passed("checksums")
    )
    if settled["untied"]:
        checks.append(
            manifest.Check("tied_weights", "accepted", reason="embedding and head differ: exported as two by untie")
        )
    elif plan.tied:
        checks.append(passed("tied_weights"))
    else:
        tied = settled["config"].get("tie_word_embeddings")
        checks.append(not_run("tied_weights", "only one of them is stored" if tied else "the model does not tie them"))
    if plan.zero:
        drift = manifest.Check("balancing_bias", "accepted", reason="not zero: allowed by allow_routing_drift")
        checks.append(drift if outcome.largest_bias else passed("balancing_bias"))
    elif source.metadata.form == "hf" and settled["config"].get("model_type") in family.hf_types_without_place:
        checks.append(not_run("balancing_bias", "a step in HF form does not hold it"))
    if compared:
        checks.append(passed("forward", f"logits within {compared['tolerance']:g}"))
    else:
        checks.append(not_run("forward", "switched off by forward_check"))
    if settled["borrowed"]:
        checks.append(not_run("independence", "; ".join(settled["borrowed"])))
    checks += [passed("read_back"), passed("source_unchanged")]
    accepted: dict[str, Any] = {}
    if source.copied:
        accepted["copy"] = True
    if settled["reshaped"]:
        accepted["architecture"] = settled["reshaped"]
    if settled["untied"]:
        accepted["untied"] = True
    if source.ignored:
        accepted["ignored_tensors"] = list(source.ignored)
    if outcome.largest_bias:
        accepted["routing_drift"] = True
    return manifest.Manifest(
        step=step, save_id=source.metadata.save_id, dtype=source.dtype, max_shard_size=options.max_shard_size, tensors=len(plan.exports),
        parameters=sum(e.elements for e in plan.exports), tools=tools, run_config_sha256=source.run.sha256, files=dict(sorted(entries.items())),
        checks=tuple(checks), accepted=accepted, run_config_conflict_sha256=source.run.conflict.other_sha256 if source.run.conflict else None,
    )  # fmt: skip
