"""Owns the types of `dcp2hfd status --json`. docs/schemas/status.json is made from them."""

from typing import Annotated, TypedDict

from msgspec import Meta

_Time = Annotated[str, Meta(description="ISO 8601, UTC.")]


class JobReport(TypedDict):
    """A Slurm job."""

    id: Annotated[str | None, Meta(description="Slurm's; null while it is not known.")]
    name: str
    state: Annotated[str | None, Meta(description="As Slurm showed it last.")]
    reason: Annotated[str | None, Meta(description="Slurm's, for that.")]
    ended: Annotated[str | None, Meta(description="How it ended; null while it waits or runs, daemon or not.")]
    output: Annotated[str, Meta(description="The file with all that it printed.")]


class ProgressReport(TypedDict):
    """How far a running conversion is, by its daemon."""

    phase: str
    done: Annotated[int, Meta(description="Bytes; layers of the phase `forward`.")]
    total: Annotated[int, Meta(description="0 where there is nothing to count.")]


class StepReport(TypedDict):
    """The newest save of a step."""

    step: int
    path: Annotated[str | None, Meta(description="null where the checkpoint is gone.")]
    state: Annotated[str, Meta(description="One of the states in docs/events.md.")]
    reason: Annotated[str, Meta(description="Why it is not done; empty if there is nothing to say.")]
    save_id: Annotated[str | None, Meta(description="null until the step is complete.")]
    attempts: Annotated[int, Meta(description="All of them.")]
    failed_attempts: Annotated[int, Meta(description="Those that count against max_attempts.")]
    duration_seconds: Annotated[float | None, Meta(description="Of the last attempt.")]
    bytes_read: int | None
    bytes_written: int | None
    model_bytes: Annotated[int | None, Meta(description="Of the model's tensors in the checkpoint.")]
    output: Annotated[
        str | None, Meta(description="Where it is published, or is going to be; null where that is gone.")
    ]
    error: Annotated[str | None, Meta(description="A class of docs/errors.md.")]
    hint: str | None
    retry_at: Annotated[
        _Time | None,
        Meta(
            description="When a failed step is tried again, or a quarantined one is looked at again; null where no daemon watches it."
        ),
    ]
    last_attempt_at: _Time | None
    job: Annotated[JobReport | None, Meta(description="The last one of this save, where it had one.")]
    progress: Annotated[
        ProgressReport | None, Meta(description="While it runs, where the daemon answers on metrics_address.")
    ]


class RetentionReport(TypedDict):
    """What exports beside the steps of a run do to its `keep_latest_k` (docs/retention.md)."""

    keep_latest_k: int
    complete: Annotated[int, Meta(description="Complete checkpoints left during a save.")]
    exports: Annotated[int, Meta(description="Exports left.")]
    deletes_from_save: Annotated[int, Meta(description="The first save at which an export is deleted.")]
    message: str
    hint: str


class RunReport(TypedDict):
    """A run, its steps in order."""

    root: str
    run: Annotated[str, Meta(description="Its name, as in the log.")]
    path: Annotated[str | None, Meta(description="Its checkpoint folder; null where nothing is left of it.")]
    retention: Annotated[
        RetentionReport | None,
        Meta(description="Where TorchTitan up to 0.3.0 deletes exports and checkpoints; else null."),
    ]
    steps: list[StepReport]


class RootReport(TypedDict):
    """A root as its daemon saw it last."""

    root: str
    state: Annotated[
        str,
        Meta(description="starting, watched, empty, away, left (the configuration no longer names it), or unwatched."),
    ]
    since: _Time
    message: Annotated[str, Meta(description="Why it is away; else empty.")]


class DaemonReport(TypedDict):
    """A process that has the ledger in use now."""

    pid: int
    since: _Time
    what: Annotated[str, Meta(description="watch or once.")]
    config_error: Annotated[
        str | None, Meta(description="Why it refused the last configuration; it goes on with the one before.")
    ]


class Report(TypedDict):
    """Where every known step stands."""

    state_dir: str
    config_error: Annotated[str | None, Meta(description="Why the configuration cannot be used now; null if it can.")]
    roots: list[RootReport]
    daemons: list[DaemonReport]
    runs: list[RunReport]
