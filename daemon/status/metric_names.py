"""Owns the names of the metrics: each stands once, here, with its kind, labels and meaning (see `metrics`).

Names and units as Prometheus wants them: base units, `_total` for what only grows. docs/metrics.md has the `table`.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    """One metric."""

    kind: str
    """gauge, counter or histogram."""
    labels: tuple[str, ...]
    meaning: str


METRICS: dict[str, Metric] = {
    # Runs: from the ledger, true before the first scan
    "dcp2hf_steps": Metric(
        "gauge", ("root", "run", "state"), "Steps of a run in each state, as `dcp2hfd status` has it."
    ),
    "dcp2hf_steps_in_error": Metric(
        "gauge",
        ("root", "run", "error"),
        "Steps that are not converted for this error, waiting for another attempt or not.",
    ),
    "dcp2hf_lag_seconds": Metric(
        "gauge",
        ("root", "run"),
        "How long the oldest complete step is known to be complete and not converted yet; 0 where none waits. "
        "Quarantined steps wait for nothing.",
    ),
    "dcp2hf_last_success_timestamp_seconds": Metric(
        "gauge", ("root", "run"), "When a step of the run was last converted; absent if none was."
    ),
    # Roots
    "dcp2hf_root_up": Metric(
        "gauge",
        ("root",),
        "1 while the root can be listed, 0 while it is away; absent until the first scan ended or failed.",
    ),
    "dcp2hf_root_free_bytes": Metric(
        "gauge", ("root",), "What may still be written on the root's file system, at the last scan."
    ),
    "dcp2hf_root_waits_for_room": Metric(
        "gauge",
        ("root",),
        "1 while steps of the root wait for room on it, or for Slurm to take their jobs (`queue_paused`).",
    ),
    "dcp2hf_runs": Metric("gauge", ("root",), "Runs below the root, at the last scan."),
    "dcp2hf_scan_duration_seconds": Metric("gauge", ("root",), "How long the last scan took."),
    "dcp2hf_last_scan_timestamp_seconds": Metric("gauge", ("root",), "When the last scan ended."),
    "dcp2hf_scanner_ends_total": Metric(
        "counter", ("root",), "Scanners that died, or were killed for their silence (`scan_deadline`)."
    ),
    # The queue
    "dcp2hf_queue_length": Metric(
        "gauge", (), "Steps to be converted now or later: they wait for a worker, room, or `retry_at`."
    ),
    "dcp2hf_workers": Metric("gauge", (), "Conversions that may run at the same time on this host (`workers`)."),
    "dcp2hf_workers_busy": Metric("gauge", (), "Conversions that run, here or as jobs."),
    # Attempts
    "dcp2hf_attempts_total": Metric(
        "counter",
        ("outcome",),
        "Attempts that ended: `succeeded`, `failed`, `skipped` (somebody else had converted it), `set_aside` (the step was "
        "purged, is being written, is foreign or cannot be expressed), `interrupted` (by a stop).",
    ),
    "dcp2hf_attempt_errors_total": Metric(
        "counter", ("error",), "Attempts that ended with an error, set aside or failed, by its class."
    ),
    "dcp2hf_attempt_duration_seconds": Metric(
        "histogram", ("outcome",), "From start to end of a converter's process; of a job, from its submission."
    ),
    "dcp2hf_conversion_duration_seconds": Metric(
        "histogram",
        ("phase",),
        "Phases of conversions that succeeded. Some run side by side: they do not add up to the attempt.",
    ),
    "dcp2hf_bytes_read_total": Metric("counter", (), "Read of checkpoints by conversions that succeeded."),
    "dcp2hf_bytes_written_total": Metric("counter", (), "Written by conversions that succeeded."),
    "dcp2hf_worker_peak_memory_bytes": Metric(
        "gauge",
        (),
        "The most that a conversion had resident since the daemon started: the sum of its processes' own peaks, looked at "
        "twice a second, so pages that they share count twice.",
    ),
    # Jobs, where a root has `runner = "slurm"`
    "dcp2hf_jobs": Metric(
        "gauge",
        ("state",),
        "Slurm jobs that have not ended, by Slurm's state as it was seen last; `submitting` where it was not seen yet.",
    ),
    "dcp2hf_slurm_up": Metric(
        "gauge", (), "1 while Slurm's controller answers, 0 while it does not; absent while it is not asked."
    ),
    "dcp2hf_slurm_calls_total": Metric(
        "counter", ("command", "outcome"), "Commands of Slurm that were run (`sbatch`, `squeue` …): `ok` or `failed`."
    ),
    # The daemon
    "dcp2hf_state_dir_up": Metric(
        "gauge", (), "0 while the ledger's disk fails and what is remembered is in memory only."
    ),
    "dcp2hf_config_reload_success": Metric("gauge", (), "0 after a SIGHUP with a configuration that cannot be used."),
    "dcp2hf_build_info": Metric("gauge", ("version", "python"), "1, with the versions of dcp2hf and Python."),
}


def table() -> str:
    """The metrics as a Markdown table, for docs/metrics.md."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{name}` | {metric.kind} | {labels} | {metric.meaning} |")
    return "\n".join(lines) + "\n"
