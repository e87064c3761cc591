"""The verdict on two forward passes: what is within the tolerance passes, near-ties alone fail nothing, NaN never passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from converter.common import errors
from converter.proof.compare_logits import COMPARED_AT_LEAST, TOLERANCE, Pass, judge, routing_margin

POSITIONS, ROWS = 32, 50


def passes(unsure_from: int = POSITIONS) -> tuple[Pass, Pass]:
    """TorchTitan's side and HF's, equal; positions from `unsure_from` on are behind a near-tie."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(POSITIONS, ROWS, generator=generator)
    sides = Pass(POSITIONS, logits), Pass(POSITIONS, logits.clone())
    sides[0].sure = torch.arange(POSITIONS) < unsure_from
    for side in sides:
        for name in ("model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
            side.keep(name, torch.ones(1, POSITIONS, 8))
        side.whole["model.layers.0.mlp.experts.3"] = torch.arange(8.0)
    return sides


def refused(expected: Pass, got: Pass) -> errors.ForwardMismatch:
    with pytest.raises(errors.ForwardMismatch) as caught:
        judge(expected, got, Path("/staging"))
    return caught.value


def test_equal_passes_agree_to_the_last_bit() -> None:
    found = judge(*passes(), Path("/staging"))
    assert (found.max_abs_difference, found.kl_divergence, found.top1_agreement) == (0.0, 0.0, 1.0)
    assert (found.positions, found.near_ties) == (POSITIONS, 0)


@pytest.mark.parametrize("position", [0, 13, POSITIONS - 1])
def test_one_logit_beyond_the_tolerance_is_refused(position: int) -> None:
    expected, got = passes()
    got.logits[position, 7] += 0.9 * TOLERANCE
    assert judge(expected, got, Path("/staging")).max_abs_difference < TOLERANCE
    got.logits[position, 7] += 0.9 * TOLERANCE
    assert "the logits" in refused(expected, got).what


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_never_within_the_tolerance(value: float) -> None:
    for side in (0, 1):
        both = passes()
        both[side].logits[3, 4] = value
        refused(*both)


def test_the_first_module_that_diverges_is_named_with_the_figures() -> None:
    expected, got = passes()
    got.logits += 1
    got.outputs["model.layers.0.mlp.down_proj"][5, 2] += 0.5
    error = refused(expected, got)
    assert "first in model.layers.0.mlp.down_proj" in error.what
    assert error.figures["first"] == "model.layers.0.mlp.down_proj"
    got.outputs["model.layers.0.self_attn.q_proj"][0, 0] = float("nan")
    assert "first in model.layers.0.self_attn.q_proj" in refused(expected, got).what


def test_an_expert_that_no_token_reaches_is_compared() -> None:
    expected, got = passes()
    got.whole["model.layers.0.mlp.experts.3"][2] += 0.01
    assert "model.layers.0.mlp.experts.3" in refused(expected, got).what
    del got.whole["model.layers.0.mlp.experts.3"]
    assert "model.layers.0.mlp.experts.3" in refused(expected, got).what


def test_positions_behind_a_near_tie_may_differ_and_are_counted() -> None:
    expected, got = passes(unsure_from=20)
    got.logits[20:] += 1
    found = judge(expected, got, Path("/staging"))
    assert found.max_abs_difference == 0.0
    assert found.near_ties == 12
    got.logits[19] += 1
    refused(expected, got)


def test_near_ties_alone_fail_nothing() -> None:
    found = judge(*passes(unsure_from=0), Path("/staging"))
    assert found.near_ties == POSITIONS


@pytest.mark.parametrize(("left", "enough"), [(COMPARED_AT_LEAST, True), (COMPARED_AT_LEAST - 1, False), (0, False)])
def test_enough_positions_must_remain(left: int, enough: bool) -> None:
    expected, got = passes(unsure_from=left)
    got.logits[left:] += 1
    if enough:
        judge(expected, got, Path("/staging"))
    else:
        refused(expected, got)


def test_the_margin_is_between_the_last_expert_chosen_and_the_first_one_not() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    assert routing_margin(scores, 1).tolist() == pytest.approx([0.2, 0.0, 0.5])
    assert routing_margin(scores, 2).tolist() == pytest.approx([0.1, 0.2, 0.1])
    assert routing_margin(scores, 3).tolist() == [1.0, 1.0, 1.0]
