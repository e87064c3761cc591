"""Every name that TorchTitan used between 0.2.x and 0.3.0 is known, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.checkpoint import tensors
from converter.checkpoint.completeness import list_step
from converter.common import errors
from converter.families import renamed_tensors
from converter.families.qwen3.spec import SPEC
from tests.support.checkpoints import reference
from tests.support.checkpoints.cases import CASES, Case

STEP = Path("/run/step-1")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_real_name_is_renamed_as_the_reference_renames_it(case: Case, checkpoints: Path) -> None:
    step = case.step(checkpoints)
    metadata = tensors.from_pickle((step / ".metadata").read_bytes(), list_step(step))
    found = renamed_tensors.source_names(SPEC, metadata, STEP)
    assert found == {reference.renamed(fqn): fqn for fqn in metadata.tensors}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("layers.12.attention.wq.weight", "layers.12.attention.qkv_linear.wq.weight"),
        ("layers.0.attention.wo.weight", "layers.0.attention.wo.weight"),
        ("output.weight", "lm_head.weight"),
        ("layers.3.moe.expert_bias", "layers.3.moe.expert_bias_E"),
        ("layers.3.moe.experts.w1", "layers.3.moe.routed_experts.inner_experts.w1_EFD"),
        ("layers.3.moe.experts.w1_EFD", "layers.3.moe.routed_experts.inner_experts.w1_EFD"),
        ("layers.3.moe.experts.w2", "layers.3.moe.routed_experts.inner_experts.w2_EDF"),
        ("layers.3.moe.experts.w2_EDF", "layers.3.moe.routed_experts.inner_experts.w2_EDF"),
        ("layers.3.moe.experts.w3_EFD", "layers.3.moe.routed_experts.inner_experts.w3_EFD"),
        ("layers.3.moe.experts.w2_EFD", "layers.3.moe.experts.w2_EFD"),
        ("my.output.weight", "my.output.weight"),
        ("layers.x.attention.wq.weight", "layers.x.attention.wq.weight"),
        ("layers.3.moe.router.gate.weight", "layers.3.moe.router.gate.weight"),
    ],
)
def test_each_rename_is_one_row_of_the_table(old: str, new: str) -> None:
    assert renamed_tensors.installed_name(SPEC, old) == new
    assert renamed_tensors.installed_name(SPEC, new) == new


def test_two_names_of_one_tensor_are_refused() -> None:
    names = ("layers.0.moe.experts.w1", "layers.0.moe.experts.w1_EFD")
    metadata = tensors.StorageMetadata("", {name: tensors.TensorItems(name, "float32", (1,), ()) for name in names})
    with pytest.raises(errors.UnknownTensor, match="same tensor"):
        renamed_tensors.source_names(SPEC, metadata, STEP)
