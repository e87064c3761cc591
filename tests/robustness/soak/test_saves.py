"""The saves of a soak are what DCP's own reader takes for a checkpoint, and no two of them share an element."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.robustness.soak.saves import DAMAGES, METADATA, Template
from tests.robustness.soak.schedule import RUNS
from tests.support.checkpoints import reference
from tests.support.checkpoints.cases import BY_NAME


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_element_of_the_model_carries_the_number(run: object, checkpoints: Path, tmp_path: Path) -> None:
    case = BY_NAME[run.case]  # type: ignore[attr-defined]
    save = Template.of(case, checkpoints).save(0x5A5A5, random.Random(1))
    for name, content in save.files.items():
        (tmp_path / name).write_bytes(content)

    real = reference.load_source(case.step(checkpoints))
    found = reference.load_source(tmp_path)

    assert found.keys() == real.keys()
    for name, tensor in found.items():
        numbered = real[name].view(torch.int32) ^ (0 if "expert_bias" in name else 0x5A5A5)
        assert torch.equal(tensor.view(torch.int32), numbered), name


def test_two_saves_have_two_ids_and_two_exports_and_damage_is_where_it_is_said_to_be(checkpoints: Path) -> None:
    template = Template.of(BY_NAME[RUNS[0].case], checkpoints)
    one, other = (template.save(number, random.Random(number)) for number in (1, 2))
    assert one.save_id != other.save_id
    assert one.weights != other.weights
    assert one.files[METADATA].count(one.save_id.encode()) == 1
    for damage in DAMAGES:
        bad = template.save(1, random.Random(1), damage, Path("/marker"))
        changed = {name for name, content in bad.files.items() if content != one.files[name]}
        assert len(changed) == 1, damage
        assert (changed == {METADATA}) == (damage == "hostile")
