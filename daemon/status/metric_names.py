"""Owns the table of metrics, with the kind, labels and meaning of each (see `metrics`).

Names and units follow Prometheus: base units, and `_total` for counters. docs/metrics.md contains the `table`.
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
        "gauge",
        ("root", "run", "state"),
        "Steps of a run in each state, as in `dcp2hfd status`.",
    ),
    "dcp2hf_steps_in_error": Metric(
        "gauge",
        ("root", "run", "error"),
        "Steps that are not converted because of this error, whether they wait for a retry or not.",
    ),
    "dcp2hf_lag_seconds": Metric(
        "gauge",
        ("root", "run"),
        "Time since the oldest unconverted step of the run was found to be complete. 0 if no step waits. "
        "Quarantined steps do not count.",
    ),
    "dcp2hf_last_success_timestamp_seconds": Metric(
        "gauge",
        ("root", "run"),
        "Time of the run's last successful conversion. Absent if there was none.",
    ),
    # Roots
    "dcp2hf_root_up": Metric(
        "gauge",
        ("root",),
        "1 if the root can be listed, 0 if not. Absent until the first scan has ended or failed.",
    ),
    "dcp2hf_root_free_bytes": Metric(
        "gauge",
        ("root",),
        "Space available for writing on the root's file system at the last scan.",
    ),
    "dcp2hf_root_waits_for_room": Metric(
        "gauge",
        ("root",),
        "1 if steps of the root wait for free space, or for Slurm to accept their jobs (`queue_paused`).",
    ),
    "dcp2hf_runs": Metric(
        "gauge",
        ("root",),
        "Runs below the root at the last scan.",
    ),
    "dcp2hf_scan_duration_seconds": Metric(
        "gauge",
        ("root",),
        "Duration of the last scan.",
    ),
    "dcp2hf_last_scan_timestamp_seconds": Metric(
        "gauge",
        ("root",),
        "Time when the last scan ended.",
    ),
    "dcp2hf_scanner_ends_total": Metric(
        "counter",
        ("root",),
        "Scanners that died, or were killed because they did not answer (`scan_deadline`).",
    ),
    # The queue
    "dcp2hf_queue_length": Metric(
        "gauge",
        (),
        "Steps that wait for a worker, for room, or for `retry_at`.",
    ),
    "dcp2hf_workers": Metric(
        "gauge",
        (),
        "How many conversions may run at the same time on this host (`workers`).",
    ),
    "dcp2hf_workers_busy": Metric(
        "gauge",
        (),
        "Conversions that are running, on this host or as jobs.",
    ),
    # Attempts
    "dcp2hf_attempts_total": Metric(
        "counter",
        ("outcome",),
        "Attempts that ended: `succeeded`, `failed`, `skipped` (converted by another owner), `set_aside` (the "
        "step was purged, is being written, is foreign, or HF cannot express it), `interrupted` (by a stop).",
    ),
    "dcp2hf_attempt_errors_total": Metric(
        "counter",
        ("error",),
        "Attempts that ended with an error, by its class. Outcomes `failed` and `set_aside`.",
    ),
    "dcp2hf_attempt_duration_seconds": Metric(
        "histogram",
        ("outcome",),
        "Time from start to end of a converter's process. For a job, from its submission.",
    ),
    "dcp2hf_conversion_duration_seconds": Metric(
        "histogram",
        ("phase",),
        "Duration of each phase of successful conversions. Some phases run in parallel, so they do not add up to the "
        "attempt.",
    ),
    "dcp2hf_bytes_read_total": Metric(
        "counter",
        (),
        "Bytes that successful conversions read from checkpoints.",
    ),
    "dcp2hf_bytes_written_total": Metric(
        "counter",
        (),
        "Bytes that successful conversions wrote.",
    ),
    "dcp2hf_worker_peak_memory_bytes": Metric(
        "gauge",
        (),
        "Largest resident memory of a conversion since the daemon started. It is the sum of the peaks of its "
        "processes, measured twice a second. Shared pages count more than once.",
    ),
    # Jobs, where a root has `runner = "slurm"`
    "dcp2hf_jobs": Metric(
        "gauge",
        ("state",),
        "Slurm jobs that have not ended, by the state that Slurm last reported. `submitting` if it has reported none.",
    ),
    "dcp2hf_slurm_up": Metric(
        "gauge",
        (),
        "1 if Slurm's controller answers, 0 if not. Absent while the daemon does not ask it.",
    ),
    "dcp2hf_slurm_calls_total": Metric(
        "counter",
        ("command", "outcome"),
        "Slurm commands that were run (`sbatch`, `squeue` …): `ok` or `failed`.",
    ),
    # The daemon
    "dcp2hf_state_dir_up": Metric(
        "gauge",
        (),
        "0 while the ledger's disk fails and history is kept in memory only.",
    ),
    "dcp2hf_config_reload_success": Metric(
        "gauge",
        (),
        "0 after a SIGHUP with a configuration that cannot be used.",
    ),
    "dcp2hf_build_info": Metric(
        "gauge",
        ("version", "python"),
        "Always 1. The labels are the versions of dcp2hf and Python.",
    ),
}


def table() -> str:
    """The metrics as a Markdown table, for docs/metrics.md."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{name}` | {metric.kind} | {labels} | {metric.meaning} |")
    return "\n".join(lines) + "\n"
