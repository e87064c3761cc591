"""Owns the plan: runs TorchTitan's own adapter on meta tensors and tells from the views what each HF tensor is made of.

Needs torch. Reads no tensor. The adapter drops names it does not know without a word, so every model tensor of the
checkpoint is accounted for here; and what comes out must be what transformers saves, name by name, shape by shape.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key, revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from converter.common import errors
from converter.export.plan import Export, Plan
from converter.families.family import FamilySpec, Shapes


def make_plan(
    step: Path,
    family: FamilySpec,
    sources: Mapping[str, Sequence[str]],
    shapes: Shapes,
    adapter: Any,
    model: PreTrainedModel,
) -> Plan:
    """The plan of one export.

    `sources`: installed name -> FQNs in the checkpoint (several where a step in HF form holds experts one by one); `shapes`: installed name -> shape; `model`: HF's, on meta.
    Raises UnknownTensor, PlanMismatch.
    """
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    made = adapter.to_hf(dict(meta))
    owners = {tensor.untyped_storage()._cdata: name for name, tensor in meta.items()}
    found: dict[str, Export] = {}
    used: dict[str, list[Export]] = {}
    for name, tensor in made.items():
        source = owners.get(tensor.untyped_storage()._cdata)
        if source is None or not tensor.is_contiguous():
            raise errors.PlanMismatch(
                f"{name} is computed, not sliced, from the checkpoint",
                path=step,
                hint="this model family is not converted",
            )
        export = Export(name, sources[source][0], tensor.storage_offset(), tuple(tensor.shape))
        found[name] = export
        used.setdefault(source, []).append(export)
    tied = None
    zero = []
    for name, shape in shapes.items():
        if name in used:
            check_covered(step, name, shape, used[name])
        elif family.must_be_zero(name):
            zero.append(sources[name][0])
        elif name == family.head and adapter.model_config.enable_weight_tying:
            tied = (sources[family.embedding][0], sources[name][0])
        else:
            check_known(step, sources[name][0])
    saved = saved_tensors(model)
    check_saved(step, found, saved)
    return Plan(tuple(replace(found[name], unit=unit) for name, (_, unit) in saved.items()), tied, tuple(zero))


def of_hf_step(step: Path, plan: Plan, held: Set[str]) -> Plan:
    """The plan of a step whose tensors (`held`) are HF's already: each from the whole of its own. Raises PlanMismatch."""
    check_held(step, plan, held)
    return Plan(tuple(replace(export, source=export.name, start=0) for export in plan.exports), plan.tied)


def saved_tensors(model: PreTrainedModel) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and units of what `save_pretrained` of a loaded model writes, in its order.

    In memory, transformers 5 (5.23) fuses experts and takes them apart to save them: those of one projection share
    memory, and what shares memory is saved in one HF shard. A model that was loaded is saved in the order of its names.
    """
    state = remove_tied_weights_from_state_dict(model.state_dict(), model)
    tensors = revert_weight_conversion(model, dict(sorted(state.items(), key=lambda item: dot_natural_key(item[0]))))
    units: dict[int, str] = {}
    return {
        name: (tuple(tensor.shape), units.setdefault(tensor.untyped_storage()._cdata, name))
        for name, tensor in tensors.items()
    }


def check_held(step: Path, plan: Plan, held: Set[str]) -> None:
    """A step in HF form holds every tensor that is exported. Raises PlanMismatch."""
    if lacking := sorted({export.name for export in plan.exports} - held):
        raise errors.PlanMismatch(
            f"the step lacks {len(lacking)} tensors of the HF model ({', '.join(lacking[:3])})",
            path=step,
            hint="convert an earlier step, which has a DCP",
        )


def check_known(step: Path, fqn: str) -> None:
    """Called for a tensor that is nobody's: raises UnknownTensor."""
    raise errors.UnknownTensor(
        f"the checkpoint holds a model tensor {fqn!r} that TorchTitan's adapter does not export",
        path=step,
        hint="if it lies beside the model, leave it out with --ignore-tensors; a custom model is not converted",
    )


def check_covered(step: Path, name: str, shape: tuple[int, ...], exports: Sequence[Export]) -> None:
    """The slices of a source, put together, are the source: nothing left out, nothing twice. Raises PlanMismatch."""
    at = 0
    for export in sorted(exports, key=lambda export: export.start):
        if export.start != at:
            raise errors.PlanMismatch(
                f"elements {min(at, export.start):,} to {max(at, export.start):,} of {name} are exported twice or not at all",
                path=step,
                hint="report this: the adapter and the tensors disagree",
            )
        at += export.elements
    if at != torch.Size(shape).numel():
        raise errors.PlanMismatch(
            f"elements of {name} from {at:,} on are not exported",
            path=step,
            hint="report this: the adapter and the tensors disagree",
        )


def check_saved(step: Path, found: Mapping[str, Export], saved: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """What is exported is what transformers saves, name by name, shape by shape. Raises PlanMismatch."""
    lacking, extra = sorted(saved.keys() - found.keys()), sorted(found.keys() - saved.keys())
    shaped = sorted(name for name in saved.keys() & found.keys() if saved[name][0] != found[name].shape)
    if lacking or extra:
        raise errors.PlanMismatch(
            f"the export lacks {len(lacking)} tensors of the HF model ({', '.join(lacking[:3])}) and has {len(extra)} it does not know ({', '.join(extra[:3])})",
            path=step, hint="are base assets and run config this checkpoint's?",
        )  # fmt: skip
    if shaped:
        name = shaped[0]
        raise errors.PlanMismatch(
            f"{len(shaped)} tensors have another shape than the HF model's, first {name}: {found[name].shape}, not {saved[name][0]}",
            path=step,
            hint="are base assets and run config this checkpoint's?",
        )
