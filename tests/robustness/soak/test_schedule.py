"""The same seed plays the same, a soak of any length plays something of every kind, and nothing impossible."""

from __future__ import annotations

import pytest

from tests.robustness.soak.schedule import ACCIDENTS, FRESH, LATER, PERSON, SURVIVES, plan


def test_a_seed_and_a_length_give_one_plan_and_others_another() -> None:
    assert plan(5, 40, 2.0) == plan(5, 40, 2.0)
    assert plan(5, 40, 2.0) != plan(6, 40, 2.0)


def test_as_many_saves_are_made_as_were_asked_for_each_with_a_number_of_its_own() -> None:
    for steps in (12, 13, 200):
        acts = [act for acts in plan(1, steps, 1.0).trainers.values() for act in acts]
        assert sum(act.kind in FRESH for act in acts) == steps
        numbers = [act.number for act in acts if act.number]
        assert len(set(numbers)) == len(numbers)


def test_a_long_soak_plays_every_kind() -> None:
    played = plan(3, 200, 1.0)
    trained = {act.kind for acts in played.trainers.values() for act in acts}
    assert trained == {*FRESH, *LATER, "full_disk"}
    assert {act.kind for act in played.accidents} == set(ACCIDENTS)
    assert {act.kind for acts in played.person.values() for act in acts} == set(PERSON)


def test_the_first_daemon_lives_through_the_second_half() -> None:
    accidents = plan(3, 200, 1.0).accidents
    assert not [act for act in accidents[len(accidents) // 2 + 1 :] if act.kind in SURVIVES]
    assert [act for act in accidents[: len(accidents) // 2] if act.kind in SURVIVES]


@pytest.mark.parametrize("seed", range(20))
def test_only_steps_that_are_there_are_touched_and_only_whole_ones_copied(seed: int) -> None:
    for acts in plan(seed, 60, 1.0).trainers.values():
        there: set[int] = set()
        whole: set[int] = set()
        for act in acts:
            if act.kind in FRESH or act.kind.startswith("copy"):
                assert act.step not in there
                there.add(act.step)
                assert not act.kind.startswith("copy") or act.source in whole & there
            elif act.kind != "full_disk":
                assert act.step in there
            if act.kind in ("save", "resave"):
                whole.add(act.step)
            elif not act.kind.startswith("copy"):
                whole.discard(act.step)
            if act.kind.startswith("purge"):
                there.discard(act.step)
