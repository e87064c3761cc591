"""Owns what is allowed: a history of a soak in, what it breaks out. Pure; `test_model` feeds it wrong histories.

The model knows saves, damage, purges, removals and kills, and nothing of how the daemon works. What it reads of a history,
each record with `t` (seconds since the epoch) and `kind`:

- `saved` (path, save, weights, damage): a step directory became a whole save; `weights` is the sha256 of the
  model.safetensors that it must give. Before it `save_began`; instead of it `save_died`. `rotted`: a bit of it was lost.
  `purge_began`, `purged`. `configured`: its run has a run config.
- `remove_began`, `removed` (path, at, save): a person removes a published directory. `retry_began`: asks for it again.
- `seen` (path, at, inode, made, step, save, files, fault): a published directory as it was read; `unseen`: it is gone.
- `said` (daemon, ledger, line): a line of a daemon's log. `started`, `killed` (daemon, role), `stopped`, `died`, `stderr`.
- `full`, `roomy` (root). `sample` (daemon, pid, rss in kB, fds). `touched`, `executed`, `leftover`. `begun`, `ended`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.robustness.soak.facts import SLACK, has_reason, in_removal, lines, of, run_of, shown, wanted, whole
from tests.robustness.soak.history import Record
from tests.robustness.soak.measures import growth_of

WEIGHTS = "model.safetensors"
STOPS_WITHIN = 10.0
"""Seconds that a clean stop may take."""
SAID = 0.2
"""Seconds within which the lines of two daemons with one ledger may come in another order than what they tell of."""
MEMORY_GROWTH = 3_000
"""kB by which the daemon's resident memory may grow while it is measured (a line through all samples)."""


class Violation(NamedTuple):
    """A rule that the history breaks, where, and when (`t`)."""

    rule: str
    what: str
    t: float


Broken = Iterator[tuple[str, float]]


def check(history: list[Record]) -> list[Violation]:
    """Everything in the history that is not allowed, in its order."""
    found = [Violation(rule.__name__, what, t) for rule in RULES for what, t in rule(history)]
    return sorted(found, key=lambda violation: violation.t)


def missing(history: list[Record]) -> list[str]:
    """Steps that are whole and wanted, and not published as they are now."""
    published = shown(history)
    removed = {(r["path"], r["save"]) for r in history if r["kind"] == "remove_began"}
    return [
        path
        for path, save in sorted(wanted(history).items())
        if save not in published[path] and (path, save) not in removed
    ]


# What is published
def never_half(history: list[Record]) -> Broken:
    """Each published directory is whole whenever it is looked at, unless a person is removing it."""
    for seen in of(history, "seen"):
        if seen["fault"] and not in_removal(history, seen):
            yield f"{seen['at']}: {seen['fault']}", seen["t"]


def of_one_save(history: list[Record]) -> Broken:
    """Its bytes are the export of the very save that its manifest names: one that was whole by then."""
    saves = {(r["path"], r["save"]): r for r in history if r["kind"] == "saved"}
    for seen in whole(history):
        saved = saves.get((seen["path"], seen["save"]))
        if saved is None or saved["t"] > seen["t"]:
            yield (
                f"{seen['at']} is of save {seen['save']}, which is none of this step's that was whole by then",
                seen["t"],
            )
        elif saved["damage"]:
            yield f"{seen['at']} is of a save that is no whole one ({saved['damage']})", seen["t"]
        elif seen["files"].get(WEIGHTS) != saved["weights"]:
            yield f"{seen['at']} names save {seen['save']}, but its weights are not that save's", seen["t"]
        elif not seen["path"].endswith(f"/step-{seen['step']}"):
            yield f"{seen['at']} names step {seen['step']}", seen["t"]


def one_run_one_form(history: list[Record]) -> Broken:
    """Config and tokenizer of all published directories of a run are the same bytes."""
    forms: dict[str, dict[str, str]] = {}
    for seen in whole(history):
        others = {name: digest for name, digest in seen["files"].items() if name != WEIGHTS}
        if forms.setdefault(run_of(seen["path"]), others) != others:
            yield f"{seen['at']} has another config or tokenizer than the run's first", seen["t"]


def never_twice(history: list[Record]) -> Broken:
    """No save of a step is published, or said to be converted, once more unless a person removed it."""
    removals: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in of(history, "remove_began"):
        removals[record["path"], record["save"]].append(record["t"])
    seen_first: dict[tuple[str, str], dict[tuple[int, int], float]] = defaultdict(dict)
    for seen in whole(history):
        seen_first[seen["path"], seen["save"]].setdefault((seen["inode"], seen["made"]), seen["t"])
    said: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in lines(history, "conversion_succeeded"):
        said[record["line"]["path"], record["line"]["save_id"]].append(record["t"])
    for what, times in (
        ("published", {key: [*found.values()] for key, found in seen_first.items()}),
        ("converted", said),
    ):
        for key, when in times.items():
            for count, t in enumerate(sorted(when)):
                if count > sum(removed <= t for removed in removals[key]):
                    yield f"{key[0]}, save {key[1]}, was {what} {count + 1} times", t


def removed_stays_removed(history: list[Record]) -> Broken:
    """Who knows by its ledger that a save was published begins to convert it again only if a person asks for that."""
    began: dict[tuple[str, str], float] = {}
    done: dict[tuple[str, str, str], float] = {}
    asked: dict[tuple[str, str], float] = {}
    for record in history:
        if record["kind"] == "retry_began":
            asked[record["ledger"], record["path"]] = record["t"]
        elif record["kind"] == "said" and (save := record["line"].get("save_id")):
            path, event = record["line"]["path"], record["line"]["event"]
            key = (record["ledger"], path, save)
            if event == "conversion_started":
                began[record["daemon"], path] = record["t"]
            elif event == "conversion_succeeded":
                known = key in done and done[key] + SAID < began.get((record["daemon"], path), record["t"])
                if known and asked.get(key[:2], 0.0) < done[key]:
                    yield (
                        f"{path}, save {save}, was converted again, unasked, by the ledger {record['ledger']!r}",
                        record["t"],
                    )
                done[key] = record["t"]
            elif event == "conversion_skipped" and record["line"].get("reason") == "up_to_date":
                done.setdefault(key, record["t"])


def stays_published(history: list[Record]) -> Broken:
    """What is published goes away only when a person removes it."""
    removals = of(history, "remove_began")
    for gone in of(history, "unseen"):
        if not any(r["at"] == gone["at"] and r["t"] <= gone["t"] for r in removals):
            yield f"{gone['at']} went away and nobody removed it", gone["t"]


def all_in_the_end(history: list[Record]) -> Broken:
    """At the end every step that is whole and wanted is published."""
    for path in missing(history):
        yield f"{path} is whole and not published", history[-1]["t"]


# What daemons do
def fails_for_a_reason(history: list[Record]) -> Broken:
    """A conversion fails only where the step is damaged, a process of it was killed, the disk full, or a config missing."""
    began: dict[tuple[str, str], float] = {}
    for record in history:
        if record["kind"] != "said":
            continue
        line, who = record["line"], (record["daemon"], record["line"].get("path", ""))
        if line["event"] == "conversion_started":
            began[who] = record["t"]
        elif line["event"] == "conversion_failed":
            since = began[who] if line["attempt"] and who in began else record["t"]
            if not has_reason(history, line, since - SLACK, record["t"] + SLACK):
                yield f"{line['path']}: {line['error']}: {line['message']} ({record['daemon']})", record["t"]


def never_dies(history: list[Record]) -> Broken:
    """A daemon ends when it is told to, within 10 s, with 0 and with nothing left; it prints no traceback."""
    for record in history:
        match record["kind"]:
            case "died":
                yield f"{record['daemon']} ended by itself with {record['code']}", record["t"]
            case "stopped" if record["code"] != 0 or record["seconds"] > STOPS_WITHIN or record["left"]:
                yield f"{record['daemon']} stopped with {record['code']} after {record['seconds']} s", record["t"]
            case "stderr":
                yield f"{record['daemon']} wrote on stderr: {record['text']}", record["t"]
            case "said" if "Traceback" in str(record["line"].get("text", "")):
                yield f"a converter of {record['daemon']} printed a traceback", record["t"]


def harms_nothing(history: list[Record]) -> Broken:
    """Training's files are as training left them, nothing that was read was run, nothing of ours is left over."""
    said = {
        "touched": "a file of training's was changed",
        "executed": "something in a checkpoint was run",
        "leftover": "left over",
    }
    for record in history:
        if record["kind"] in said:
            yield f"{record['path']}: {said[record['kind']]}", record["t"]


def does_not_grow(history: list[Record]) -> Broken:
    """Memory and descriptors of the daemon that lived longest are at the end what they were before."""
    measured = growth_of(history)
    if measured is None:
        yield "memory and descriptors were not measured", history[-1]["t"] if history else 0.0
        return
    if measured.kilobytes > MEMORY_GROWTH:
        yield f"its memory grew by {measured.kilobytes:,.0f} kB in {measured.seconds:,.0f} s", history[-1]["t"]
    if measured.descriptors > 0:
        yield f"it has {measured.descriptors} more descriptors open than before", history[-1]["t"]


def was_played(history: list[Record]) -> Broken:
    """A history that is cut off, or in which nothing was published, proves nothing."""
    kinds = {record["kind"] for record in history}
    for kind in ("begun", "saved", "seen", "ended"):
        if kind not in kinds:
            yield f"nothing of the kind {kind!r} happened", history[-1]["t"] if history else 0.0


RULES: tuple[Callable[[list[Record]], Broken], ...] = (
    never_half, of_one_save, one_run_one_form, never_twice, removed_stays_removed, stays_published, all_in_the_end,
    fails_for_a_reason, never_dies, harms_nothing, does_not_grow, was_played,
)  # fmt: skip
