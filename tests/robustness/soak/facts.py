"""Owns what a history says of one moment: which saves steps hold, what is shown of them, what explains a failure. Pure.

The kinds of records are described in `model`.
"""

from __future__ import annotations

from collections import defaultdict

from tests.robustness.soak.history import Record

SLACK = 1.5
"""Seconds by which a record may come after what it records."""
OF_DAMAGE = (
    "PayloadCorrupt",
    "StepDamaged",
    "HostileCheckpoint",
    "UnknownObject",
    "MetadataLimit",
    "NonFiniteTensor",
    "TiedWeightsDiffer",
    "ForwardMismatch",
)
OF_CONFIG = ("RunConfigMissing", "RunConfigUnreadable")
OF_KILLS = {"worker", "prover", "tree", "daemon"}
"""Errors of a step that is no whole save, of a config that is not there, and whose death fails a conversion."""


def of(history: list[Record], kind: str) -> list[Record]:
    """Records of one kind."""
    return [record for record in history if record["kind"] == kind]


def lines(history: list[Record], event: str) -> list[Record]:
    """Log lines of one event."""
    return [record for record in history if record["kind"] == "said" and record["line"]["event"] == event]


def whole(history: list[Record]) -> list[Record]:
    """Published directories that were seen whole."""
    return [seen for seen in of(history, "seen") if not seen["fault"]]


def run_of(path: str) -> str:
    """The checkpoint folder of a step."""
    return path.rpartition("/")[0]


def in_removal(history: list[Record], seen: Record) -> bool:
    """Whether a person was removing this published directory when it was seen."""
    began = [r["t"] for r in history if r["kind"] == "remove_began" and r["at"] == seen["at"]]
    ended = [r["t"] for r in history if r["kind"] == "removed" and r["at"] == seen["at"]]
    return any(start <= seen["t"] and not any(start <= end < seen["t"] - SLACK for end in ended) for start in began)


def wanted(history: list[Record]) -> dict[str, str]:
    """By path, the save that a step holds now, of those that are whole."""
    holds: dict[str, str] = {}
    for record in history:
        match record["kind"]:
            case "saved" if not record["damage"]:
                holds[record["path"]] = record["save"]
            case "saved" | "save_began" | "save_died" | "rotted" | "purge_began":
                holds.pop(record["path"], None)
    return holds


def shown(history: list[Record]) -> dict[str, set[str]]:
    """By path of the step, the saves that are published of it now."""
    now: dict[str, Record] = {}
    for record in history:
        if record["kind"] == "seen":
            now[record["at"]] = record
        elif record["kind"] == "unseen":
            now.pop(record["at"], None)
    saves: dict[str, set[str]] = defaultdict(set)
    for seen in now.values():
        if not seen["fault"]:
            saves[seen["path"]].add(seen["save"])
    return saves


def has_reason(history: list[Record], line: Record, since: float, until: float) -> bool:
    """Whether something happened to this step, its processes, its disk or its config that explains a failed attempt."""
    path, error = line["path"], line["error"]
    if error in OF_DAMAGE:
        return any(
            record.get("path") == path
            and record["t"] <= until
            and (record["kind"] in ("rotted", "save_died") or (record["kind"] == "saved" and record["damage"]))
            for record in history
        )
    if error in OF_CONFIG:
        return not any(
            record["kind"] == "configured" and record["path"] == run_of(path) and record["t"] < since
            for record in history
        )
    if _was_full(history, line["root"], since, until):
        return True
    return error == "MachineFailure" and any(
        record["kind"] == "killed" and record["role"] in OF_KILLS and since <= record["t"] <= until
        for record in history
    )


def _was_full(history: list[Record], root: str, since: float, until: float) -> bool:
    began = [r["t"] for r in history if r["kind"] == "full" and r["root"] == root]
    ended = [r["t"] for r in history if r["kind"] == "roomy" and r["root"] == root]
    return any(start <= until and not any(start <= end < since for end in ended) for start in began)
