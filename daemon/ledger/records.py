"""Owns the types of the ledger: the states of a step, a row of the ledger, the outcome of an attempt."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from converter.common.errors import Retry
from daemon.scanner.messages import Answer

OF_ASSETS = frozenset({"AssetsInvalid", "ArchitectureMismatch", "TokenizerMismatch", "VocabularyMismatch"})
"""Refusals that a repetition repeats, unless somebody mends the assets folder meanwhile."""
CONFIG_ERRORS = frozenset({"RunConfigMissing", "RunConfigUnreadable"})
OF_THE_RUN = CONFIG_ERRORS | OF_ASSETS | {
    "AssetsMissing", "AssetsNotConfigured", "MachineFailure", "PlanMismatch", "TiedWeightsDiffer", "UnknownTensor", "ForwardMismatch", "CastOverflow",
}  # fmt: skip
"""Failures that another run config may mend."""


class State(StrEnum):
    """Where a step stands; the words of `status`."""

    PENDING = "pending"
    INCOMPLETE = "incomplete"
    SUSPECT = "suspect"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    FOREIGN = "foreign"
    UNSUPPORTED = "unsupported"
    VANISHED = "vanished"
    REMOVED = "removed"


class Held(NamedTuple):
    """What was so of a save before it was away, incomplete or suspect: it is so again when the save is back."""

    state: State
    reason: str
    error: str | None
    hint: str
    next_attempt: float | None


class Row(msgspec.Struct, kw_only=True, frozen=True):
    """What the ledger remembers of one save of a step. Times are seconds since the epoch."""

    path: str
    root: str
    run: str
    run_name: str
    step: int
    save_id: str = ""
    """Empty until the step is complete."""
    state: State = State.PENDING
    reason: str = ""
    error: str | None = None
    hint: str = ""
    attempts: int = 0
    """Failed attempts since the last success or `retry`."""
    next_attempt: float | None = None
    wish: str = ""
    """Dtype and shard size of the last success: what was asked for then."""
    output: str | None = None
    accept_copy: bool = False
    complete_at: float | None = None
    answer: Answer | None = None
    converted: str = ""
    """Fingerprint of the listing that was converted; empty: not known, the next one that is seen is taken for it."""
    listed: str = ""
    """Fingerprint of the scanner's own listing when that attempt began, where the converter's was another and the scanner has
    not seen that one yet: two hosts, or a FUSE mount, may show other mtimes for good. Empty: they agree."""
    refused: str = ""
    """Fingerprint of the listing that was quarantined; empty: not known, the next one that is seen is taken for it."""
    held: Held | None = None

    def is_of_other_files(self, fingerprint: str) -> bool:
        """Whether what was converted is known, and is not what a listing with this fingerprint shows."""
        return self.converted != "" and fingerprint not in (self.converted, self.listed)


COLUMNS = tuple(field.name for field in msgspec.structs.fields(Row))
"""Of the ledger's table of steps."""


def row_of(found: Mapping[str, Any]) -> Row:
    """A row from its columns."""
    values = dict(found)
    values["answer"] = msgspec.json.decode(values["answer"], type=Answer) if values["answer"] else None
    values["held"] = msgspec.json.decode(values["held"], type=Held) if values["held"] else None
    return Row(**values | {"state": State(values["state"]), "accept_copy": bool(values["accept_copy"])})


_HELD = frozenset({State.DONE, State.REMOVED, State.QUARANTINED, State.FOREIGN})
"""What a conversion or a person settled of a save."""
_AWAY = frozenset({State.VANISHED, State.INCOMPLETE, State.SUSPECT})
"""States that say nothing of it."""


def held_by(row: Row, state: State) -> Held | None:
    """What a row that comes into `state` holds on to."""
    if state not in _AWAY:
        return None
    return Held(row.state, row.reason, row.error, row.hint, row.next_attempt) if row.state in _HELD else row.held


def back(row: Row) -> Row:
    """The row as it was before the save was away."""
    return row if row.held is None else msgspec.structs.replace(row, **row.held._asdict(), held=None)


class Outcome(msgspec.Struct, kw_only=True, frozen=True):
    """How an attempt ended."""

    result: str
    """succeeded, skipped, failed or interrupted."""
    seconds: float = 0.0
    event: dict[str, Any] = {}
    """The converter's last event, as it said it."""
    error: str | None = None
    message: str = ""
    path: str = ""
    hint: str = ""
    retry: Retry = Retry.BACKOFF
    killed: bool = False
    """It did not end by itself: something of it may be left in the output folder."""
    peak_memory: int = 0
    """Bytes that it had resident at most (`process.peak_memory`)."""


class Ended(NamedTuple):
    """An attempt as others see it: when it began (epoch seconds), and its result."""

    started: float
    result: str
    """Of an Outcome, or `running`; `interrupted` also where nobody lived to note one."""


class AttemptKey(NamedTuple):
    """Which attempt of this process: no number of a table's, since the table may be another by its end (`disk_fallback`)."""

    path: str
    save_id: str
    started: float


class Block(NamedTuple):
    """Why nothing of a run can be converted: said once per run."""

    error: str
    reason: str
    hint: str
    asked: str = ""
    """The exceptions that were allowed when it was refused (`exceptions`); empty: not known."""
    config: str = ""
    """`config_of` the attempt that was refused; empty: there was none."""
    step: int = -1
    """The step that was tried."""
