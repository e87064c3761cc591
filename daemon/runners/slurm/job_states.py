"""Owns the meaning of Slurm's job states: how a job ended, or why it waits in vain. Pure.

The states are those of a real Slurm 22.05.8. A job in an unknown state is taken to go on.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Sight(NamedTuple):
    """A job as Slurm shows it."""

    id: str
    state: str
    reason: str = ""
    status: int = 0
    """As wait(2) has it: the exit code times 256, or the signal."""
    restarts: int = 0
    from_history: bool = False
    """Accounting remembers it; the controller does not any more."""


class Ending(StrEnum):
    """How a job ended, as the ledger remembers it."""

    SAID = "said"
    """It left its result: the converter's own words hold."""
    LOST = "lost"
    """Slurm took its node away: no attempt."""
    MEMORY = "memory"
    KILLED = "killed"
    """By SIGKILL, which is how Slurm ends what it finds over its memory by polling."""
    TIME = "time"
    CANCELLED = "cancelled"
    """By somebody else."""
    LAUNCH = "launch"
    """It could not begin: its output's folder is not on the node, or the cluster cannot run such a job."""
    REFUSED = "refused"
    """`sbatch` does not take it."""
    DIED = "died"
    """Otherwise, without a result."""
    GONE = "gone"
    """Slurm does not know it any more, and it left no result."""
    SILENT = "silent"
    """It made no progress: cancelled by us."""
    OUTDATED = "outdated"
    """The step was purged or saved again: cancelled by us."""
    UNNEEDED = "unneeded"
    """An earlier life left it, and its step is published, purged or saved again: cancelled by us, if it was not over."""
    STOPPED = "stopped"
    """Cancelled by us at a stop (`cancel_on_stop`)."""


ENDED = {
    "BOOT_FAIL": Ending.LOST,
    "NODE_FAIL": Ending.LOST,
    "PREEMPTED": Ending.LOST,
    "REVOKED": Ending.LOST,
    "OUT_OF_MEMORY": Ending.MEMORY,
    "TIMEOUT": Ending.TIME,
    "DEADLINE": Ending.TIME,
    "CANCELLED": Ending.CANCELLED,
    "COMPLETED": Ending.DIED,
    "FAILED": Ending.DIED,
}
"""States that a job does not leave by itself, and what they are without a result."""
NEED_MORE = (Ending.MEMORY, Ending.KILLED)
"""Endings after which the next job gets more memory."""
_NO_FOLDER, _SIGKILL = 53, 9
_REQUEUED_HELD = "launch failed requeued held"
_NEVER = {
    "PartitionConfig": "no node of the partition is like that: lower slurm.cpus or slurm.memory, or name another slurm.partition",
    "PartitionNodeLimit": "the partition does not allow it: name another slurm.partition",
    "PartitionTimeLimit": "the partition's time limit is shorter: set slurm.time, or name another slurm.partition",
    "PartitionDown": "the partition is down: ask the cluster's administrator, or name another slurm.partition",
    "PartitionInactive": "the partition is inactive: ask the cluster's administrator, or name another slurm.partition",
    "BadConstraints": "no node is like that: look at slurm.extra_args",
    "DependencyNeverSatisfied": "look at slurm.extra_args",
    "InvalidAccount": "set slurm.account",
    "AccountNotAllowed": "set slurm.account, or another slurm.partition",
    "InvalidQOS": "set slurm.qos",
    "QOSNotAllowed": "set slurm.qos, or another slurm.partition",
    "JobHeldUser": "somebody held it: scontrol release {id}",
    "JobHeldAdmin": "an administrator held it: ask why",
}
"""Reasons that time alone does not change, and what to do."""
_PER_JOB = re.compile(r"(Assoc|QOS)\w*Per(Job|Node)\w*")


def ending_of(sight: Sight) -> Ending | None:
    """How this job ended, as far as Slurm knows; None: it goes on."""
    if is_held_after_launch(sight):
        return Ending.LOST
    ending = ENDED.get(sight.state)
    if sight.state == "FAILED":
        signal = sight.status & 0x7F
        if sight.status == _NO_FOLDER or sight.reason == "BadConstraints":
            return Ending.LAUNCH
        return Ending.KILLED if signal == _SIGKILL else ending
    return ending


def leaves_result(sight: Sight) -> bool:
    """Whether a job that ended like this has written its result, if maybe not where we see it yet."""
    return sight.state in ("COMPLETED", "FAILED") and not sight.status & 0x7F


def is_held_after_launch(sight: Sight) -> bool:
    """Whether it is held for ever after a launch of which the controller does not know: it may have run to its end."""
    return sight.state == "PENDING" and re.sub(r"[\s_()]+", " ", sight.reason).strip().lower() == _REQUEUED_HELD


def why_stuck(sight: Sight) -> str:
    """What to do about a job that waits for what never comes; empty where it only waits its turn."""
    if sight.state != "PENDING":
        return ""
    if _PER_JOB.fullmatch(sight.reason):
        return "it asks for more than one job may have: lower slurm.cpus, slurm.memory or slurm.time"
    return _NEVER.get(sight.reason, "").format(id=sight.id)


def best(sights: Iterable[Sight]) -> Sight | None:
    """Of jobs of one name (a submission that was thought lost may be there as well) the one that counts."""

    def rank(sight: Sight) -> tuple[bool, bool, int]:
        number = int(sight.id) if sight.id.isdigit() else 0
        return ending_of(sight) is None, sight.state not in ("PENDING", *ENDED), number

    return max(sights, key=rank, default=None)
