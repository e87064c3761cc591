"""Owns `/metrics`: it collects the current values from ledger, roots and queue for each request.

State stays where it is, and nothing here touches a path. Runs come from the ledger, so that they are right before the
first scan. A deleted run is left out after its root was scanned. The most recently active runs have labels of their
own. The others share `run="other"` with an empty root, so that a scrape stays small for any number of runs.
"""

import importlib.metadata
import inspect
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from converter.common import errors, names_on_disk
from daemon.ledger.overview import Overview
from daemon.ledger.records import State
from daemon.runners.counters import OTHER, OUTCOMES, Histogram
from daemon.scanner.client import RootWatcher
from daemon.status.metric_names import METRICS
from daemon.status.state_view import Sources

MOST_RUNS = 200
"""Runs with labels of their own."""
ERRORS = frozenset(
    name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.ConversionError)
)
"""Classes that are told apart; what a converter says otherwise is `other`."""
JOB_STATES = frozenset({"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "COMPLETED", "FAILED"})
"""Slurm's states that are told apart."""
FRESH = 1.0
"""Seconds for which what was made is good enough for the next who asks."""
TYPE = CONTENT_TYPE_LATEST


Labels = tuple[str, ...]
"""Values, in the order of the catalogue."""


class _Runs(NamedTuple):
    """What is said of runs, by root and name."""

    steps: Counter[Labels]
    in_error: Counter[Labels]
    lags: dict[Labels, float]
    succeeded_at: dict[Labels, float]


class Metrics(Collector):
    """The metrics of one daemon, in a registry of their own."""

    def __init__(self, sources: Sources, *, clock: Callable[[], float] = time.time) -> None:
        self._s = sources
        self._clock = clock
        self._earlier = sources.ledger.last_successes()
        """Of earlier lives."""
        self._revision: tuple[int, int, bool] | None = None
        self._overview = Overview([], [])
        self._text, self._made_at = b"", float("-inf")
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """The page, at most a second old, as `TYPE` says."""
        if time.monotonic() - self._made_at > FRESH:
            self._text, self._made_at = generate_latest(self._registry), time.monotonic()
        return self._text

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not make a page to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric of the catalogue."""
        yield from self._of_runs()
        yield from self._of_roots()
        yield from self._of_the_queue()
        yield from self._of_attempts()
        yield from self._of_jobs()
        yield from self._of_the_daemon()

    # Runs
    def _of_runs(self) -> Iterator[Metric]:
        runs = self._runs(self._clock())
        yield _gauge("dcp2hf_steps", runs.steps)
        yield _gauge("dcp2hf_steps_in_error", runs.in_error)
        yield _gauge("dcp2hf_lag_seconds", runs.lags)
        yield _gauge("dcp2hf_last_success_timestamp_seconds", runs.succeeded_at)

    def _runs(self, now: float) -> _Runs:
        if (revision := self._s.ledger.revision()) != self._revision:
            self._revision, self._overview = revision, self._s.ledger.overview()
        labels = self._labels()
        runs = _Runs(Counter(), Counter(), dict.fromkeys(labels.values(), 0.0), {})
        for own in labels.values():
            runs.steps.update({(*own, str(state)): 0 for state in State})
        for group in self._overview.groups:
            if (named := labels.get(group.run)) is not None:
                runs.steps[(*named, group.state)] += group.steps
                if group.error is not None:
                    runs.in_error[(*named, _known(group.error))] += group.steps
        for step in self._overview.waiting:
            if (named := labels.get(step.run)) is not None and self._still_waits(step.path, step.run):
                runs.lags[named] = max(runs.lags[named], now - step.complete_at)
        for run, ended in (self._earlier | self._s.tally.last_success).items():
            if (named := labels.get(run)) is not None:
                runs.succeeded_at[named] = max(ended, runs.succeeded_at.get(named, 0.0))
        return runs

    def _labels(self) -> dict[str, Labels]:
        """By path of each run that is there: its root, and its name."""
        there: dict[str, str] = {}
        active: dict[str, float] = {}
        for group in self._overview.groups:
            if (root := self._root_of(group.run)) is not None:
                there[group.run] = root
                active[group.run] = max(group.updated, active.get(group.run, 0.0))
        chosen = set(sorted(there, key=lambda run: (-active[run], run))[:MOST_RUNS])
        return {
            run: (errors.printable(root), errors.printable(names_on_disk.run_name(Path(root), Path(run))))
            if run in chosen
            else ("", OTHER)
            for run, root in there.items()
        }

    def _root_of(self, run: str) -> str | None:
        """The watched root that a run lies below; None where there is none, or the run was deleted."""
        root = next((r for r in self._s.watchers if f"{run}/".startswith(f"{r.rstrip('/')}/")), None)
        there = self._s.presence.runs(root) if root is not None else None
        return root if there is None or run in there else None

    def _still_waits(self, path: str, run: str) -> bool:
        """Whether the configuration still asks for a step that the ledger has as waiting: before the first scan, yes."""
        root = self._root_of(run)
        return path in self._s.tracker.waiting or root is None or self._s.presence.runs(root) is None

    # Roots
    def _of_roots(self) -> Iterator[Metric]:
        watchers: dict[Labels, RootWatcher] = {
            (errors.printable(root),): watcher for root, watcher in self._s.watchers.items()
        }
        yield _gauge(
            "dcp2hf_root_up", {k: float(w.is_reachable) for k, w in watchers.items() if w.is_reachable is not None}
        )
        free = {k: w.free_bytes for k, w in watchers.items() if w.free_bytes is not None}
        yield _gauge("dcp2hf_root_free_bytes", free)
        yield _gauge(
            "dcp2hf_root_waits_for_room",
            {k: float(self._s.conversions.waits_for_room(w.root)) for k, w in watchers.items()},
        )
        scans = {k: w.last_scan for k, w in watchers.items() if w.last_scan is not None}
        yield _gauge("dcp2hf_runs", {k: scan.runs for k, scan in scans.items()})
        yield _gauge("dcp2hf_scan_duration_seconds", {k: scan.seconds for k, scan in scans.items()})
        ended = {k: w.scanned_at for k, w in watchers.items() if w.scanned_at is not None}
        yield _gauge("dcp2hf_last_scan_timestamp_seconds", ended)
        yield _counter("dcp2hf_scanner_ends_total", {k: w.scanner_ends for k, w in watchers.items()})

    # Queue and attempts
    def _of_the_queue(self) -> Iterator[Metric]:
        yield _gauge("dcp2hf_queue_length", {(): len(self._s.conversions.due())})
        yield _gauge("dcp2hf_workers", {(): self._s.settings().workers})
        yield _gauge("dcp2hf_workers_busy", {(): len(self._s.conversions)})

    def _of_attempts(self) -> Iterator[Metric]:
        tally = self._s.tally
        yield _counter("dcp2hf_attempts_total", {(outcome,): tally.outcomes[outcome] for outcome in OUTCOMES})
        by_class: Counter[Labels] = Counter({(name,): 0 for name in (*ERRORS, OTHER)})
        for error, count in tally.errors.items():
            by_class[(_known(error),)] += count
        yield _counter("dcp2hf_attempt_errors_total", by_class)
        yield _histogram("dcp2hf_attempt_duration_seconds", tally.durations)
        yield _histogram("dcp2hf_conversion_duration_seconds", tally.phases)
        yield _counter("dcp2hf_bytes_read_total", {(): tally.bytes_read})
        yield _counter("dcp2hf_bytes_written_total", {(): tally.bytes_written})
        yield _gauge("dcp2hf_worker_peak_memory_bytes", {(): tally.peak_memory})

    def _of_jobs(self) -> Iterator[Metric]:
        states: Counter[Labels] = Counter()
        for state, jobs in self._s.ledger.job_states().items():
            states[(state if state in JOB_STATES else OTHER if state else "submitting",)] += jobs
        yield _gauge("dcp2hf_jobs", states)
        up = self._s.tally.is_slurm_up
        yield _gauge("dcp2hf_slurm_up", {} if up is None else {(): up})
        yield _counter("dcp2hf_slurm_calls_total", self._s.tally.slurm_calls)

    def _of_the_daemon(self) -> Iterator[Metric]:
        yield _gauge("dcp2hf_state_dir_up", {(): not self._s.ledger.is_away})
        yield _gauge("dcp2hf_config_reload_success", {(): self._s.pulse.is_config_good})
        yield _gauge("dcp2hf_build_info", {(_version(), platform.python_version()): 1})


def _known(error: str) -> str:
    return error if error in ERRORS else OTHER


def _version() -> str:
    try:
        return importlib.metadata.version("dcp2hf")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"


def _gauge(name: str, values: Mapping[Labels, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, METRICS[name].meaning, labels=METRICS[name].labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _counter(name: str, values: Mapping[Labels, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, METRICS[name].meaning, labels=METRICS[name].labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _histogram(name: str, values: Mapping[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, METRICS[name].meaning, labels=METRICS[name].labels)
    for label, histogram in values.items():
        family.add_metric([label], _cumulative(histogram.bounds, histogram.counts), histogram.sum)
    return family


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Buckets as Prometheus wants them: how many values are at most each bound."""
    names = [*map(str, bounds), "+Inf"]
    return [(name, float(sum(counts[: i + 1]))) for i, name in enumerate(names)]
