"""Owns what is played: from a seed and a number of saves, each actor's list of acts. Pure: the same seed, the same acts.

Every act waits its pause (seconds) and is done; so timings differ from run to run, the order within an actor does not. A
deck is shuffled and dealt to its end before it is shuffled again: a short soak plays every kind, too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FRESH = ("save",) * 7 + ("save", "save_dies", "flip", "nan", "truncate", "hostile")
"""How a save to a new step goes; a damage's name: it is damaged from its beginning."""
LATER = ("resave", "resave", "resave_dies", "purge", "purge", "purge_slowly", "rot", "copy", "copy_fast", "copy_slow")
"""What becomes of steps afterwards. `copy`: cp -a; the others cp -r, within a moment or over more than 5 s."""
ACCIDENTS = (
    "kill_worker", "kill_worker", "kill_prover", "kill_scanner", "kill_daemon", "kill_tree", "stop", "hangup",
    "second_same", "second_own", "second_host", "kill_second", "stop_second",
)  # fmt: skip
"""What happens to daemons. `second_…`: another daemon is started, with the first one's state_dir, with its own, or with its
own and as on another host (PID namespace)."""
SURVIVES = ("kill_daemon", "kill_tree", "stop")
"""Not done to the first daemon in the second half: its memory and descriptors are measured there."""
PERSON = ("remove", "remove_slowly", "remove", "retry")


@dataclass(frozen=True)
class Run:
    """One run of the soak: which test case its saves are made of, and what is special about it."""

    name: str
    case: str
    root: str
    """full: all checks, inotify; plain: no forward check, listed; small: the same on a small file system."""
    config: str = "first"
    """When its run config comes: first, late, or half (half-written until the second save)."""
    keep_latest_k: int = 4


RUNS = (
    Run("dense", "two_steps", "full"),
    Run("moe", "moe-0.2-2x2-float32", "full", config="half", keep_latest_k=2),
    Run("untied", "dense_untied-between-2x2-float32", "plain", config="late"),
    Run("single", "one_rank", "small"),
)


@dataclass(frozen=True)
class Act:
    """One thing that an actor does, `pause` seconds after the one before."""

    kind: str
    pause: float
    step: int = 0
    source: int = 0
    """Of a copy: the step that is copied."""
    number: int = 0
    """Of a save: its number, unlike any other's."""
    chance: int = 0
    """Seeds what is left to chance within the act."""


@dataclass(frozen=True)
class Plan:
    """Everything that is played."""

    seed: int
    steps: int
    trainers: dict[str, tuple[Act, ...]]
    """By name of the run."""
    accidents: tuple[Act, ...]
    person: dict[str, tuple[Act, ...]]


def plan(seed: int, steps: int, pace: float) -> Plan:
    """What a soak of `steps` saves plays; a save of any run comes about every `pace` seconds."""
    chance = random.Random(f"{seed}/{steps}")
    numbers = iter(range(1, 1 << 20))
    fresh, later = _deck(FRESH, chance), _deck(LATER, chance)
    trainers = {
        run.name: tuple(_trains(run, steps // len(RUNS) + (i < steps % len(RUNS)), pace, chance, numbers, fresh, later))
        for i, run in enumerate(RUNS)
    }
    length = steps * pace
    person = {run.name: tuple(_meddles(trainers[run.name], length, chance)) for run in RUNS}
    return Plan(seed, steps, trainers, tuple(_happens(steps, length, chance)), person)


def _deck(cards: Sequence[str], chance: random.Random) -> Iterator[str]:
    while True:
        yield from chance.sample(cards, len(cards))


def _trains(
    run: Run,
    saves: int,
    pace: float,
    chance: random.Random,
    numbers: Iterator[int],
    fresh: Iterator[str],
    later: Iterator[str],
) -> Iterator[Act]:
    """Saves to new steps, and after each perhaps something that becomes of an earlier one."""
    whole: list[int] = []
    """Steps that were saved and are as they were saved."""
    there: list[int] = []

    def act(kind: str, **fields: int) -> Act:
        pause = pace * len(RUNS) * chance.uniform(0.2, 1.0) * (1.0 if kind in FRESH else 0.4)
        return Act(kind, round(pause, 3), chance=chance.getrandbits(32), **fields)

    for i in range(saves):
        step = 10 * (i + 1)
        kind = next(fresh) if i else "save"
        yield act(kind, step=step, number=next(numbers))
        there.append(step)
        if kind == "save":
            whole.append(step)
        if run.root == "small" and (i + 1) % 5 == 3:
            yield act("full_disk")
        if chance.random() < 0.35 or len(there) < 2:
            continue
        kind = next(later)
        among = there if kind.startswith(("purge", "resave")) else whole
        if not among:
            continue
        target = chance.choice(among)
        if kind.startswith("copy"):
            yield act(kind, step=step + 1, source=target)
            there.append(step + 1)
            continue
        yield act(kind, step=target, **({"number": next(numbers)} if kind.startswith("resave") else {}))
        if kind.startswith("purge"):
            there.remove(target)
        if target in whole and kind != "resave":
            whole.remove(target)
        elif kind == "resave" and target not in whole:
            whole.append(target)


def _happens(steps: int, length: float, chance: random.Random) -> Iterator[Act]:
    """Accidents of the daemons, spread over the soak."""
    count = max(4, steps // 3)
    deck = _deck(ACCIDENTS, chance)
    for i in range(count):
        kind = next(card for card in deck if i < count / 2 or card not in SURVIVES)
        yield Act(kind, round(length / count * chance.uniform(0.4, 1.2), 3), chance=chance.getrandbits(32))


def _meddles(trained: Sequence[Act], length: float, chance: random.Random) -> Iterator[Act]:
    """What a person does to published directories of a run: to earlier ones first, as they come."""
    saved = [act.step for act in trained if act.kind in ("save", "copy", "resave")]
    targets = sorted(chance.choices(saved, k=max(1, len(saved) // 4)))
    for kind, step in zip(_deck(PERSON, chance), targets, strict=False):
        pause = length / len(targets) * chance.uniform(0.5, 1.0)
        yield Act(kind, round(pause, 3), step=step, chance=chance.getrandbits(32))
