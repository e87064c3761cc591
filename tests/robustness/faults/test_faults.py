"""Each fault is caught by the check named for it alone, and by nothing where every check is left out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.common import errors
from tests.robustness.faults.catalogue import ALL, INPUT, WORK, document
from tests.robustness.faults.checks import CHECKS, READING, alone
from tests.robustness.faults.fault import Fault
from tests.robustness.faults.faults_unseen import UNSEEN, Unseen
from tests.robustness.faults.scene import Scene, digests
from tests.support.checkpoints.cases import Case

MakeScene = Callable[[Case], Scene]
Right = Callable[..., dict[str, str]]
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "faults.md"
READ_ERRORS = (errors.ConversionError, KeyError, ValueError, IndexError, RuntimeError, OSError)
"""What a conversion without any check may end in, where something cannot be read."""
_said: dict[Fault, str] = {}
"""What its check said of each fault."""
_without: dict[tuple[str, str, str], str] = {}
"""(kind, case, place) -> what became of it with every check replaced by a pass."""


def _key(fault: Fault) -> tuple[str, str, str]:
    return fault.kind, fault.case.name, fault.place


def _right_of(scene: Scene, right: Right) -> dict[str, str]:
    told = {key: value for key, value in scene.options.items() if key in ("dtype", "max_shard_size")}
    return right(scene.case, **told)


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_its_check_alone_catches_it(fault: Fault, scene: MakeScene, right: Right) -> None:
    place = scene(fault.case)
    fault.damage(place)
    alone(fault.check, place.patch)
    if fault.error is None:
        assert digests(place.convert(forward=False)) == _right_of(place, right)
        return
    with pytest.raises(fault.error) as caught:
        place.convert(forward=fault.check == "forward")
    assert type(caught.value) is fault.error
    _said[fault] = caught.value.what
    if fault.check == READING:
        _without[_key(fault)] = f"cannot be read ({fault.error.__name__})"


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_without_any_check_nothing_catches_it(fault: Fault, scene: MakeScene, right: Right) -> None:
    if _key(fault) in _without:
        return
    place = scene(fault.case)
    fault.damage(place)
    alone(READING, place.patch)
    try:
        published = place.convert(forward=False)
    except READ_ERRORS as error:
        if getattr(error, "what", error) == _said.get(fault):
            pytest.fail("a check that was left out has caught it")
        _without[_key(fault)] = f"cannot be read ({type(error).__name__})"
    else:
        same = digests(published) == _right_of(place, right)
        _without[_key(fault)] = "published, right" if same else "published, wrong"


@pytest.mark.parametrize("unseen", UNSEEN, ids=str)
def test_what_nothing_can_see_is_published_and_the_manifest_says_what_was_not_checked(
    unseen: Unseen, scene: MakeScene, right: Right
) -> None:
    place = scene(unseen.case)
    unseen.damage(place)
    published = place.convert(forward=True)
    assert digests(published) != right(unseen.case)
    if unseen.says:
        assert verdicts(published)[unseen.says[0]] == unseen.says[1]


def verdicts(published: Path) -> dict[str, str]:
    """The manifest's checks, by name."""
    said = json.loads((published / "conversion.json").read_text())
    return {check["name"]: check["verdict"] for check in said["checks"]}


def test_there_are_sixty_faults_of_both_kinds_each_in_three_places_over_meshes_and_namings() -> None:
    kinds = Counter((fault.kind, fault.check) for fault in ALL)
    assert len(kinds) >= 60
    assert min(kinds.values()) >= 3
    for groups in (INPUT, WORK):
        found = [fault for group in groups.values() for fault in group]
        assert len({fault.kind for fault in found}) >= 30
        assert {fault.case.mesh for fault in found} == {"fsdp", "2x2", "one"}
        assert {fault.case.naming for fault in found} == {"0.2", "between", "0.3"}
        assert {fault.case.moe for fault in found} == {True, False}
    assert {fault.check for fault in ALL} == {*CHECKS, READING}
    assert len({(*_key(fault), fault.check) for fault in ALL}) == len(ALL)


def test_the_document_says_what_was_seen() -> None:
    if not all(_key(fault) in _without for fault in ALL):
        pytest.skip("not every fault was tried in this run")
    text = document({fault: _without[_key(fault)] for fault in ALL})
    if os.environ.get("WRITE_DOCS"):
        DOCUMENT.write_text(text)
    assert DOCUMENT.read_text() == text, "make it again with WRITE_DOCS=1"
