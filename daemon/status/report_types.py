"""Owns the types of `dcp2hfd status --json`. docs/schemas/status.json is made from them."""

from typing import Annotated, TypedDict

from msgspec import Meta

_Time = Annotated[str, Meta(description="ISO 8601, UTC.")]


class JobReport(TypedDict):
    """A Slurm job."""

    id: Annotated[str | None, Meta(description="Slurm's id; null while it is not known.")]
    name: str
    state: Annotated[str | None, Meta(description="The state that Slurm last reported.")]
    reason: Annotated[str | None, Meta(description="Slurm's reason for the state.")]
    ended: Annotated[
        str | None, Meta(description="How the job ended; null while it waits or runs, with or without a daemon.")
    ]
    output: Annotated[str, Meta(description="The file with everything that the job printed.")]


class ProgressReport(TypedDict):
    """Progress of a running conversion, from its daemon."""

    phase: str
    done: Annotated[int, Meta(description="Bytes; in the phase `forward`, layers.")]
    total: Annotated[int, Meta(description="0 if there is nothing to count.")]


class StepReport(TypedDict):
    """The newest save of a step."""

    step: int
    path: Annotated[str | None, Meta(description="null if the checkpoint is gone.")]
    state: Annotated[str, Meta(description="One of the states in docs/events.md.")]
    reason: Annotated[str, Meta(description="Why the step is not done; may be empty.")]
    save_id: Annotated[str | None, Meta(description="null until the step is complete.")]
    attempts: Annotated[int, Meta(description="Number of all attempts.")]
    failed_attempts: Annotated[int, Meta(description="Number of attempts that count against max_attempts.")]
    duration_seconds: Annotated[float | None, Meta(description="Duration of the last attempt.")]
    bytes_read: int | None
    bytes_written: int | None
    model_bytes: Annotated[int | None, Meta(description="Size of the model's tensors in the checkpoint.")]
    output: Annotated[
        str | None, Meta(description="The published directory, or the directory to be published; null if it is gone.")
    ]
    error: Annotated[str | None, Meta(description="An error class of docs/errors.md.")]
    hint: str | None
    retry_at: Annotated[
        _Time | None,
        Meta(description="Time of the next attempt at a failed or quarantined step; null if no daemon watches it."),
    ]
    last_attempt_at: _Time | None
    job: Annotated[JobReport | None, Meta(description="The last job of this save, if it had one.")]
    progress: Annotated[
        ProgressReport | None,
        Meta(description="Only while a conversion runs and its daemon answers on metrics_address."),
    ]


class RetentionReport(TypedDict):
    """Effect of exports beside the steps of a run on its `keep_latest_k` (docs/retention.md)."""

    keep_latest_k: int
    complete: Annotated[int, Meta(description="Number of complete checkpoints that remain during a save.")]
    exports: Annotated[int, Meta(description="Number of exports that remain.")]
    deletes_from_save: Annotated[int, Meta(description="The first save at which an export is deleted.")]
    message: str
    hint: str


class RunReport(TypedDict):
    """A run, with its steps in order."""

    root: str
    run: Annotated[str, Meta(description="Name of the run, as in the log.")]
    path: Annotated[str | None, Meta(description="Checkpoint folder of the run; null if nothing is left of it.")]
    retention: Annotated[
        RetentionReport | None,
        Meta(description="Set if TorchTitan up to 0.3.0 deletes exports and checkpoints of this run; else null."),
    ]
    steps: list[StepReport]


class RootReport(TypedDict):
    """A root, in the state that its daemon last saw."""

    root: str
    state: Annotated[
        str,
        Meta(description="starting, watched, empty, away, left (the configuration no longer names it), or unwatched."),
    ]
    since: _Time
    message: Annotated[str, Meta(description="Why the root is away; else empty.")]


class DaemonReport(TypedDict):
    """A process that uses the ledger now."""

    pid: int
    since: _Time
    what: Annotated[str, Meta(description="watch or once.")]
    config_error: Annotated[
        str | None, Meta(description="Why it refused the last configuration; it keeps the earlier one.")
    ]


class Report(TypedDict):
    """The state of every known step."""

    state_dir: str
    config_error: Annotated[str | None, Meta(description="Why the configuration cannot be used now; null if it can.")]
    roots: list[RootReport]
    daemons: list[DaemonReport]
    runs: list[RunReport]
