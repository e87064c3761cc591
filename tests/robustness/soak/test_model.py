"""The model of a soak lets a right history pass, and names the rule that each wrong one breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.robustness.soak.history import Record
from tests.robustness.soak.model import MEMORY_GROWTH, RULES, SAID, check, missing

STEP, AT = "/r/a/checkpoint/step-10", "/r/a/checkpoint/step-10-hf"
OTHER, OTHER_AT = "/r/a/checkpoint/step-20", "/r/a/checkpoint/step-20-hf"
FILES = {"model.safetensors": "one", "config.json": "c"}
Change = Callable[[list[Record]], Any]


def record(t: float, kind: str, **fields: Any) -> Record:
    return {"t": t, "kind": kind, **fields}


def said(t: float, event: str, path: str = STEP, daemon: str = "first", **fields: Any) -> Record:
    line = {"event": event, "path": path, "root": "/r", **fields}
    return record(t, "said", daemon=daemon, ledger=daemon, line=line)


def seen(t: float, save: str = "s1", at: str = AT, path: str = STEP, **fields: Any) -> Record:
    number = int(path.rpartition("-")[2])
    usual = {"inode": hash(save), "made": 1, "step": number, "save": save, "files": FILES, "fault": ""}
    return record(t, "seen", path=path, at=at, **usual | fields)


def saved(t: float, save: str = "s1", path: str = STEP, weights: str = "one", damage: str = "") -> list[Record]:
    return [
        record(t, "save_began", path=path, save=save, damage=damage),
        record(t + 0.5, "saved", path=path, save=save, weights=weights, damage=damage),
    ]


def converted(t: float, save: str = "s1", path: str = STEP, daemon: str = "first") -> list[Record]:
    return [
        said(t, "conversion_started", path, daemon, save_id=save, attempt=1),
        said(t + 3, "conversion_succeeded", path, daemon, save_id=save, attempt=1),
    ]


def failed(t: float, error: str, path: str = STEP, attempt: int = 1) -> list[Record]:
    return [
        said(t, "conversion_started", path, save_id="s1", attempt=attempt),
        said(t + 3, "conversion_failed", path, error=error, message="m", attempt=attempt),
    ]


def removed(t: float, save: str = "s1") -> list[Record]:
    return [record(t + i, kind, path=STEP, at=AT, save=save) for i, kind in enumerate(("remove_began", "removed"))]


def samples(rise: float = 0.0, more: int = 0) -> list[Record]:
    return [
        record(float(t), "sample", daemon="first", pid=1, rss=30_000 + int(rise * t), fds=20 + (more if t > 200 else 0))
        for t in range(100, 300, 4)
    ]


def right() -> list[Record]:
    """Two saves, one of which is saved again; a purge, a person, a kill: all as it should be."""
    return in_order(
        [
            record(1.0, "begun", seed=1, steps=2),
            record(1.5, "configured", path="/r/a/checkpoint"),
            *saved(2.0),
            *converted(4.0),
            seen(6.9),
            *saved(10.0, "s2", weights="two"),
            *converted(12.0, "s2"),
            seen(14.9, "s2", files=FILES | {"model.safetensors": "two"}),
            *saved(20.0, "s3", OTHER, "three", "flip"),
            *failed(22.0, "PayloadCorrupt", OTHER),
            *saved(30.0, "s4", OTHER, "four"),
            record(33.0, "killed", role="worker", daemon="first"),
            *failed(32.0, "MachineFailure", OTHER),
            *converted(36.0, "s4", OTHER),
            seen(38.9, "s4", OTHER_AT, OTHER, files=FILES | {"model.safetensors": "four"}),
            *removed(50.0, "s2"),
            seen(50.5, "s2", fault="FileNotFoundError"),
            record(51.5, "unseen", at=AT),
            record(60.0, "purge_began", path=OTHER),
            record(61.0, "purged", path=OTHER),
            *samples(),
            record(310.0, "stopped", daemon="first", code=0, seconds=1.0, left=[]),
            record(320.0, "ended"),
        ]
    )


def in_order(history: list[Record]) -> list[Record]:
    return sorted(history, key=lambda found: found["t"])


def test_a_right_history_breaks_nothing() -> None:
    assert check(right()) == []


WRONG: dict[str, tuple[str, list[Record]]] = {
    "a file is missing": ("never_half", [seen(7.5, fault="FileNotFoundError: model.safetensors")]),
    "half, long after a person removed it": ("never_half", [seen(100.0, "s2", fault="it holds x")]),
    "weights of two saves": ("of_one_save", [seen(7.5, files=FILES | {"model.safetensors": "mixed"})]),
    "the older save's weights under the newer's name": ("of_one_save", [seen(15.5, "s2", inode=hash("s2"))]),
    "of a save of another step": ("of_one_save", [seen(39.5, "s1", OTHER_AT, OTHER)]),
    "before its save was whole": (
        "of_one_save",
        [seen(2.2, inode=hash("s1"))],
    ),
    "of a damaged save": (
        "of_one_save",
        [seen(24.0, "s3", OTHER_AT, OTHER, files=FILES | {"model.safetensors": "three"})],
    ),
    "with another number": ("of_one_save", [seen(7.5, step=20)]),
    "with another config": ("one_run_one_form", [seen(7.5, files=FILES | {"config.json": "d"})]),
    "published twice": ("never_twice", [seen(8.0, inode=77)]),
    "said to be converted twice, by two daemons": ("never_twice", converted(8.0, daemon="second")),
    "twice, although the removal came later": ("never_twice", [seen(16.0, "s2", made=2, files=FILES | {"model.safetensors": "two"})]),
    "converted again though a person removed it": ("removed_stays_removed", converted(55.0, "s2")),
    "what was published is gone": ("stays_published", [record(45.0, "unseen", at=OTHER_AT), seen(46.0, "s4", OTHER_AT, OTHER, files=FILES | {"model.safetensors": "four"})]),
    "a whole step is not published": ("all_in_the_end", saved(70.0, "s5", OTHER, "five")),
    "what is published is of the save before": ("all_in_the_end", saved(70.0, "s6", STEP, "six")),
    "a failure without a reason": ("fails_for_a_reason", failed(40.0, "MachineFailure", OTHER)),
    "a failure long after the kill": ("fails_for_a_reason", failed(45.0, "MachineFailure", OTHER)),
    "a sound step found corrupt": ("fails_for_a_reason", failed(8.0, "PayloadCorrupt")),
    "no room where there was room": ("fails_for_a_reason", failed(40.0, "NoSpace", OTHER)),
    "a config missing that is there": ("fails_for_a_reason", failed(40.0, "RunConfigMissing", OTHER)),
    "a step that is purged is a failure": ("fails_for_a_reason", failed(62.0, "MachineFailure", OTHER)),
    "the daemon crashed": ("never_dies", [record(40.0, "died", daemon="first", code=1)]),
    "it took too long to stop": ("never_dies", [record(311.0, "stopped", daemon="first", code=0, seconds=11.0, left=[])]),
    "it had to be killed": ("never_dies", [record(311.0, "stopped", daemon="first", code=None, seconds=9.0, left=[7])]),
    "a traceback of the daemon": ("never_dies", [record(40.0, "stderr", daemon="first", text="Traceback")]),
    "a traceback of a converter": ("never_dies", [said(40.0, "converter_output", text="Traceback (most recent")]),
    "a file of training's was changed": ("harms_nothing", [record(40.0, "touched", path=f"{STEP}/.metadata")]),
    "a pickle was run": ("harms_nothing", [record(319.0, "executed", path="/r/a/checkpoint")]),
    "a staging directory is left": ("harms_nothing", [record(319.0, "leftover", path="/r/a/checkpoint/.dcp2hf-10.0.staging")]),
}  # fmt: skip
"""What is added to a right history, and the rule that it breaks."""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_history_breaks_the_rule_for_it(name: str) -> None:
    rule, more = WRONG[name]
    assert rule in {violation.rule for violation in check(in_order([*right(), *more]))}


def test_a_history_that_was_cut_off_or_in_which_nothing_was_published_proves_nothing() -> None:
    for lacking in ("ended", "seen", "saved"):
        history = [found for found in right() if found["kind"] != lacking]
        assert "was_played" in {violation.rule for violation in check(history)}
    assert {violation.rule for violation in check([])} >= {"was_played", "does_not_grow"}


@pytest.mark.parametrize(("rise", "more"), [(MEMORY_GROWTH / 100, 0), (0.0, 1)], ids=["memory", "descriptors"])
def test_a_daemon_that_grows_is_noticed(rise: float, more: int) -> None:
    history = [found for found in right() if found["kind"] != "sample"]
    assert {violation.rule for violation in check(in_order([*history, *samples(rise, more)]))} == {"does_not_grow"}


@pytest.mark.parametrize(("after", "is_known"), [(SAID - 0.01, False), (SAID + 0.01, True)])
def test_what_is_said_to_begin_just_after_the_first_ended_may_have_begun_before(after: float, is_known: bool) -> None:
    """The first ended at 15."""
    broken = {violation.rule for violation in check(in_order([*right(), *converted(15.0 + after, "s2")]))}
    assert ("removed_stays_removed" in broken) is is_known


def test_a_moment_without_a_scanner_is_not_taken_for_the_daemons_quietest() -> None:
    history = [found for found in right() if found["kind"] != "sample"]
    measured = samples()
    measured[len(measured) // 3]["fds"] -= 3
    assert check(in_order([*history, *measured])) == []


def test_what_was_not_measured_is_not_said_not_to_grow() -> None:
    history = [found for found in right() if found["kind"] != "sample"]
    assert {violation.rule for violation in check(history)} == {"does_not_grow"}


def test_a_damaged_a_dead_and_a_purged_step_are_not_waited_for_and_a_whole_one_is() -> None:
    begun = [record(1.0, "begun", seed=1, steps=1)]
    assert missing([*begun, *saved(2.0)]) == [STEP]
    assert missing([*begun, *saved(2.0, damage="flip")]) == []
    assert missing([*begun, *saved(2.0), record(3.0, "rotted", path=STEP)]) == []
    assert missing([*begun, *saved(2.0), record(3.0, "purge_began", path=STEP)]) == []
    assert missing([*begun, *saved(2.0), record(3.0, "save_began", path=STEP, save="s2")]) == []
    assert missing([*begun, *saved(2.0), seen(4.0)]) == []
    assert missing([*begun, *saved(2.0), seen(4.0), record(5.0, "unseen", at=AT)]) == [STEP]


def test_every_rule_has_a_history_that_breaks_it() -> None:
    tried = {rule for rule, _ in WRONG.values()} | {"was_played", "does_not_grow"}
    assert tried == {rule.__name__ for rule in RULES}
