"""Owns the shape of what `dcp2hfd status --json` prints; docs/schemas/status.json is made from it."""

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
    path: str
    state: Annotated[str, Meta(description="One of the states in docs/events.md.")]
    reason: Annotated[str, Meta(description="Why it is not done; empty if there is nothing to say.")]
    save_id: Annotated[str | None, Meta(description="null until the step is complete.")]
    attempts: Annotated[int, Meta(description="All of them.")]
    failed_attempts: Annotated[int, Meta(description="Those that count against max_attempts.")]
    duration_seconds: Annotated[float | None, Meta(description="Of the last attempt.")]
    bytes_read: int | None
    bytes_written: int | None
    model_bytes: Annotated[int | None, Meta(description="Of the model's tensors in the checkpoint.")]
    output: Annotated[str | None, Meta(description="Where it is published, or was going to be.")]
    error: Annotated[str | None, Meta(description="A class of docs/errors.md.")]
    hint: str | None
    retry_at: Annotated[
        _Time | None, Meta(description="When a failed step is tried again, or a quarantined one is looked at again.")
    ]
    last_attempt_at: _Time | None
    job: Annotated[JobReport | None, Meta(description="The last one of this save, where it had one.")]
    progress: Annotated[
        ProgressReport | None, Meta(description="While it runs, where the daemon answers on metrics_address.")
    ]


class RunReport(TypedDict):
    """A run, its steps in order."""

    root: str
    run: Annotated[str, Meta(description="Its name, as in the log.")]
    path: Annotated[str, Meta(description="Its checkpoint folder.")]
    steps: list[StepReport]


class DaemonReport(TypedDict):
    """A process that has the ledger in use now."""

    pid: int
    since: _Time
    what: Annotated[str, Meta(description="watch or once.")]


class Report(TypedDict):
    """Where every known step stands."""

    state_dir: str
    daemons: list[DaemonReport]
    runs: list[RunReport]
