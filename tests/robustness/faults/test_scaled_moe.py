"""30B-A3B's structure, scaled down, converts: every tensor and every logit are TorchTitan's, and its shards have an index."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.robustness.faults.made import MADE
from tests.robustness.faults.scene import Scene
from tests.robustness.faults.test_faults import verdicts
from tests.support.checkpoints import reference
from tests.support.checkpoints.cases import Case

CASE = MADE["a3b"]


def test_a_scaled_down_30b_a3b_converts_and_matches(scene: Callable[[Case], Scene]) -> None:
    place = scene(CASE)
    place.options["max_shard_size"] = 1_000_000
    published = place.convert(forward=True)
    assert verdicts(published)["forward"] == "passed"

    source = reference.weights(CASE, place.step)
    expected = reference.hf_weights(CASE, source)
    index = json.loads((published / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == expected.keys()
    assert len(expected) == 4 * (3 * 128 + 9) + 3
    for file in sorted(set(index.values())):
        held = load_file(published / file)
        assert held.keys() == {name for name, where in index.items() if where == file}
        for name, tensor in held.items():
            assert torch.equal(tensor.view(torch.uint8), expected[name].contiguous().view(torch.uint8)), name

    tokens = reference.some_tokens(CASE, length=48)
    model = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32, experts_implementation="eager")
    with torch.no_grad():
        found = model(tokens, use_cache=False).logits
    wanted = reference.forward(reference.titan_model(CASE, source), tokens)
    clear = wanted.clear()
    assert clear.float().mean() > 0.5
    assert (found - wanted.logits).abs()[clear].max() < 1e-4
    assert wanted.logits.std() > 0.1
