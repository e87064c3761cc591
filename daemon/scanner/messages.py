"""Owns the messages between a scanner and the daemon: one JSON object per line, each with its `kind`.

The scanner reports facts, never decisions about the queue. The daemon decides (see `judge_step`).
"""

from typing import Any

import msgspec


class Config(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="config"):
    """First line to a scanner: the root and how to look at it."""

    root: str
    max_depth: int
    poll_interval: float
    rescan_interval: float
    observer: str
    dtype: str
    max_shard_size: int
    logs_roots: tuple[str, ...]
    run_config_names: tuple[str, ...]
    metadata_memory_limit: int
    metadata_deadline: float
    min_step: int
    every: int
    read_only: bool = False
    """Remove nothing stale (a rehearsal writes nothing anywhere)."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What looking into one step gave, as `converter.checkpoint.probe` says it; it holds for one fingerprint."""

    state: str
    """complete, incomplete, settling, suspect, damaged, no_model, unsupported."""
    fingerprint: str = ""
    reason: str = ""
    error: str | None = None
    hint: str = ""
    save_id: str | None = None
    model_bytes: int = 0
    model_elements: int = 0
    largest_item: int = 0
    format: str = "dcp"
    oldest: int = 0
    """mtime (ns) of the oldest file that holds items, when this save was complete last; 0: not known, or never."""
    latest: int = 0
    """mtime (ns) of the newest file of this save."""
    after: int = 0
    """`latest` of the save that lay here before: this save's files are newer, since a save writes each anew. 0: not known."""


class Known(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="known"):
    """To a scanner before it begins: an answer of an earlier life, so that nothing is read twice."""

    path: str
    answer: Answer


class Begin(msgspec.Struct, frozen=True, tag_field="kind", tag="begin"):
    """To a scanner: all known answers were sent."""


class Look(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="look"):
    """To a scanner: look at `path` (a run or a step) and below again, and report it whether or not it changed."""

    path: str
    is_known: bool = False
    """Only report it: nothing is looked into again, which costs the reading of a `.metadata` for each step."""


class Sweep(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="sweep"):
    """To a scanner: a worker was killed; remove what it left in this folder. Answered by Swept."""

    folder: str


class Started(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="started"):
    """The scanner lives, and how it watches."""

    observer: str
    mount: str


class Alive(msgspec.Struct, frozen=True, tag_field="kind", tag="alive"):
    """Progress in the middle of a scan."""


class RunConfigFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Of a run config, what the daemon decides by."""

    path: str
    digest: str
    """Of all that is read from it (`run_config.RunConfig`): the same when it is only written anew."""
    dtype: str
    keep_latest_k: int | None
    conflict: str | None = None
    """Path of another run config that says otherwise, if there is one."""
    differs: tuple[str, ...] = ()


class Run(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="run"):
    """A checkpoint folder and its run config, or why there is none."""

    run: str
    name: str
    config: RunConfigFacts | None = None
    error: str | None = None
    message: str = ""
    error_path: str = ""
    hint: str = ""


class Published(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A published directory of a step: `place` is alongside or subdirectory."""

    place: str
    ours: bool
    """It carries a manifest, and holds nothing that the manifest does not list."""
    empty: bool = False
    """Nobody's work: it may be replaced."""
    dtype: str | None = None
    """As its manifest says."""
    up_to_date: bool = False
    save_id: str | None = None
    foreign: tuple[str, ...] = ()

    @property
    def whose(self) -> str:
        """In the converter's words: ours, foreign (it holds files that no export has) or export (one without our manifest)."""
        return "ours" if self.ours else "foreign" if self.foreign else "export"


class Step(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="step"):
    """A step, what it is, and what is published of it."""

    run: str
    step: int
    path: str
    answer: Answer
    published: tuple[Published, ...] = ()

    @property
    def has_ours(self) -> bool:
        """Whether an export of ours, of whatever save, is there."""
        return any(found.ours for found in self.published)


class Gone(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="gone"):
    """A step is not there any more, at a second look too."""

    path: str


class RunGone(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="run_gone"):
    """A run is not there any more, nor any of its steps, of which `Gone` was said."""

    run: str


class Inventory(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="inventory"):
    """The numbers of a run's steps and exports as a listing showed them, in one message or in several."""

    run: str
    steps: tuple[int, ...] = ()
    exports: tuple[int, ...] = ()
    """Numbers of the published directories, ours or not, in either place."""
    is_last: bool = True


class Scanning(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="scanning"):
    """A scan of the whole root begins: the root is there."""

    free_bytes: int
    """What an unprivileged user may still write."""


class Scanned(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="scanned"):
    """A scan of the whole root ended."""

    seconds: float
    runs: int
    steps: int
    settling: int
    """Steps that will be known within seconds."""
    is_whole: bool = True
    """It looked into every folder, and every folder could be listed."""


class Swept(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="swept"):
    """Stale names of ours that were removed from a folder."""

    folder: str
    names: tuple[str, ...]


class Said(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="said"):
    """Something for the log, said once: a link, a folder without rights, a fallback to polling."""

    event: str
    path: str
    message: str


class Unreachable(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="unreachable"):
    """The root cannot be listed; it is tried again."""

    message: str


ToScanner = Config | Known | Begin | Look | Sweep
FromScanner = (
    Started | Alive | Run | Step | Gone | RunGone | Inventory | Scanning | Scanned | Swept | Said | Unreachable
)

encode = msgspec.json.Encoder().encode
_to_scanner: msgspec.json.Decoder[ToScanner] = msgspec.json.Decoder(ToScanner)
_from_scanner: msgspec.json.Decoder[FromScanner] = msgspec.json.Decoder(FromScanner)


def to_scanner(line: bytes) -> ToScanner:
    """A line on a scanner's stdin. Raises msgspec.MsgspecError."""
    return _to_scanner.decode(line)


def from_scanner(line: bytes) -> FromScanner:
    """A line on a scanner's stdout. Raises msgspec.MsgspecError."""
    return _from_scanner.decode(line)


def answer_of(said: dict[str, Any]) -> Answer:
    """An Answer from the JSON object that `converter.checkpoint.probe` prints. Raises msgspec.MsgspecError."""
    return msgspec.convert({**said, "format": said.get("kind", "dcp")}, Answer)
