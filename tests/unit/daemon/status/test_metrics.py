"""What `/metrics` says is what ledger, roots and queue have, whatever names are in them and however many."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from converter.common.errors import Retry
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outcome, State
from daemon.ledger.slurm_jobs import SlurmJob
from daemon.runners.counters import MOST_PHASES, Tally
from daemon.scanner.known_runs import Presence
from daemon.scanner.messages import Run, RunGone, Scanned, Started, Step
from daemon.status import health, metric_names, metrics
from daemon.status.health import Pulse
from daemon.status.metrics import Metrics
from daemon.status.state_view import Sources
from tests.unit.daemon.asking import samples
from tests.unit.daemon.conftest import facts, row, run_facts

NOW = 1_000_000.0
SCANNED = Scanned(seconds=0.5, runs=1, steps=3, settling=0)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """A real ledger and what the service holds; a root /r that was not scanned yet, and nothing to do."""
    watcher = SimpleNamespace(
        root="/r", is_reachable=None, free_bytes=None, last_scan=None, scanned_at=None, scanner_ends=0
    )
    conversions = SimpleNamespace(due=list, waits_for_room=lambda root: False, __len__=lambda: 0)
    return Sources(
        settings=Settings, ledger=Ledger.open(tmp_path), watchers=cast(Any, {"/r": watcher}),
        tracker=cast(Any, SimpleNamespace(waiting={})), conversions=cast(Any, _Idle(conversions)), tally=Tally(),
        presence=Presence(), pulse=Pulse(),
    )  # fmt: skip


class _Idle:
    """A queue without anything in it."""

    def __init__(self, said: Any) -> None:
        self.due, self.waits_for_room = said.due, said.waits_for_room

    def __len__(self) -> int:
        return 0


def job(state: str, name: str = "dcp2hf-10-0123456789abcdef") -> SlurmJob:
    """One that was noted in this state."""
    return SlurmJob(
        name=name, path="/r/a/step-10", save_id="save-1", root="/r", folder="/s", asked=NOW, owner="1 1", memory=1, seconds=60.0,
        state=state,
    )  # fmt: skip


def scrape(sources: Sources) -> dict[str, dict[tuple[str, ...], float]]:
    return samples(Metrics(sources, clock=lambda: NOW).text().decode())


def test_every_metric_of_the_catalogue_is_served_with_its_kind_and_meaning_and_no_other(sources: Sources) -> None:
    sources.ledger.put(row(10, state=State.QUARANTINED, error="NonFiniteTensor"))
    ended = Outcome(result="succeeded", event={"phases": {"export": 1.0}})
    sources.tally.attempt("/r/a", ended, NOW)
    sources.watchers["/r"].__dict__.update(is_reachable=True, free_bytes=1, last_scan=SCANNED, scanned_at=NOW)
    sources.ledger.add_job(job("PENDING"))
    sources.tally.is_slurm_up, sources.tally.slurm_calls["squeue", "ok"] = True, 1
    families = list(text_string_to_metric_families(Metrics(sources).text().decode()))
    found = {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, family.documentation)
        for family in families
        if family.samples and not family.name.startswith("process_")
    }

    assert found == {name: (metric.kind, metric.meaning) for name, metric in metric_names.METRICS.items()}
    for family in families:
        for sample in family.samples if not family.name.startswith("process_") else ():
            name = family.name + ("_total" if family.type == "counter" else "")
            assert set(sample.labels) - {"le"} == set(metric_names.METRICS[name].labels)


def test_before_the_first_scan_runs_are_as_the_ledger_has_them(sources: Sources) -> None:
    sources.ledger.put(row(10, state=State.DONE))
    sources.ledger.put(row(20, state=State.DONE))
    sources.ledger.put(row(30, state=State.FAILED, error="NoSpace", complete_at=NOW - 300))
    sources.ledger.put(row(40, state=State.QUARANTINED, error="NonFiniteTensor", complete_at=NOW - 900))
    found = scrape(sources)

    assert found["dcp2hf_steps"][("/r", "a", "done")] == 2
    assert found["dcp2hf_steps"][("/r", "a", "quarantined")] == 1
    assert found["dcp2hf_steps"][("/r", "a", "vanished")] == 0
    assert found["dcp2hf_steps_in_error"] == {("/r", "a", "NoSpace"): 1, ("/r", "a", "NonFiniteTensor"): 1}
    assert found["dcp2hf_lag_seconds"] == {("/r", "a"): 300}
    assert "dcp2hf_root_up" not in found


def test_the_last_success_is_known_after_a_restart(sources: Sources) -> None:
    sources.ledger.put(row(10))
    key = sources.ledger.begin_attempt(row(10), NOW - 60)
    sources.ledger.end_attempt(key, Outcome(result="succeeded"), NOW - 50)

    assert scrape(sources)["dcp2hf_last_success_timestamp_seconds"] == {("/r", "a"): NOW - 50}

    sources.tally.attempt("/r/a", Outcome(result="succeeded"), NOW - 5)

    assert scrape(sources)["dcp2hf_last_success_timestamp_seconds"] == {("/r", "a"): NOW - 5}


def test_a_change_of_the_ledger_by_anybody_shows(sources: Sources, tmp_path: Path) -> None:
    seen = Metrics(sources)
    sources.ledger.put(row(10, state=State.QUARANTINED))
    assert samples(seen.text().decode())["dcp2hf_steps"][("/r", "a", "quarantined")] == 1
    Ledger.open(tmp_path).request("/r/a", accept_copy=False)
    time.sleep(metrics.FRESH)

    assert samples(seen.text().decode())["dcp2hf_steps"][("/r", "a", "quarantined")] == 0


def test_a_run_that_was_deleted_leaves_whether_the_daemon_saw_it_go_or_not(sources: Sources) -> None:
    for name in ("a", "b", "c"):
        step = f"/r/{name}/step-10"
        sources.ledger.put(row(10, path=step, run=f"/r/{name}", run_name=name, state=State.DONE))
    report = sources.presence.on_message
    report("/r", Started(observer="polling", mount="nfs4"))
    report("/r", run_facts())
    report("/r", Step(run="/r/b", step=10, path="/r/b/step-10", answer=facts().answer))
    assert {labels[1] for labels in scrape(sources)["dcp2hf_steps"]} == {"a", "b", "c"}
    report("/r", SCANNED)
    assert {labels[1] for labels in scrape(sources)["dcp2hf_steps"]} == {"a", "b"}
    report("/r", RunGone(run="/r/b"))
    assert {labels[1] for labels in scrape(sources)["dcp2hf_steps"]} == {"a"}
    report("/r", Started(observer="polling", mount="nfs4"))
    assert {labels[1] for labels in scrape(sources)["dcp2hf_steps"]} == {"a"}, "a new scanner has not looked yet"
    report("/r", Run(run="/r/c", name="c"))
    report("/r", SCANNED)
    assert {labels[1] for labels in scrape(sources)["dcp2hf_steps"]} == {"c"}


def test_a_step_that_the_configuration_asks_for_no_longer_lags_behind_nothing(sources: Sources) -> None:
    sources.ledger.put(row(10, state=State.PENDING, complete_at=NOW - 300))
    sources.ledger.put(row(20, state=State.PENDING, complete_at=NOW - 100))
    sources.tracker.waiting["/r/a/step-20"] = cast(Any, None)
    sources.presence.on_message("/r", run_facts())
    assert scrape(sources)["dcp2hf_lag_seconds"] == {("/r", "a"): 300}
    sources.presence.on_message("/r", Started(observer="polling", mount="nfs4"))
    sources.presence.on_message("/r", run_facts())
    sources.presence.on_message("/r", SCANNED)

    assert scrape(sources)["dcp2hf_lag_seconds"] == {("/r", "a"): 100}


def test_past_the_limit_the_least_active_runs_are_told_together_and_nothing_is_lost(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_RUNS", 3)
    for number in range(10):
        name = f"run-{number}"
        new = row(10, path=f"/r/{name}/step-10", run=f"/r/{name}", run_name=name, complete_at=NOW - 10 * number)
        sources.ledger.put(new)
    found = scrape(sources)
    own = {labels[:2] for labels in found["dcp2hf_steps"]}

    assert own == {("/r", "run-9"), ("/r", "run-8"), ("/r", "run-7"), ("", "other")}
    assert found["dcp2hf_steps"][("", "other", "pending")] == 7
    assert found["dcp2hf_lag_seconds"][("", "other")] == 60


@pytest.mark.parametrize("name", ['quote"back\\slash', "new\nline", "{label}", "ünïcode", "other", "esc\x1b[31m"])
def test_a_run_of_any_name_leaves_the_page_readable(sources: Sources, name: str) -> None:
    sources.ledger.put(row(10, path=f"/r/{name}/step-10", run=f"/r/{name}", run_name=name))
    found = scrape(sources)["dcp2hf_steps"]

    assert sum(found.values()) == 1
    assert {labels[:2] for labels in found} == {("/r", name if name.isprintable() else ascii(name)[1:-1])}


def test_runs_of_one_name_below_two_roots_or_two_folders_of_one_are_no_duplicates(sources: Sources) -> None:
    cast(dict[str, Any], sources.watchers)["/s"] = sources.watchers["/r"]
    for path in ("/r/a", "/r/a/checkpoint", "/s/a"):
        sources.ledger.put(row(10, path=f"{path}/step-10", run=path, root=path[:2], run_name="a"))
    text = Metrics(sources).text().decode()
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]

    assert len(lines) == len(set(lines))
    assert samples(text)["dcp2hf_steps"][("/r", "a", "pending")] == 2
    assert samples(text)["dcp2hf_steps"][("/s", "a", "pending")] == 1


def test_errors_and_phases_that_nobody_knows_are_told_together(sources: Sources) -> None:
    for number in range(100):
        failed = Outcome(result="failed", error=f"Invented{number}", seconds=1.0)
        sources.tally.attempt("/r/a", failed, NOW)
        invented = Outcome(result="succeeded", event={"phases": {f"phase-{number}": 1.0}})
        sources.tally.attempt("/r/a", invented, NOW)
    found = scrape(sources)

    assert found["dcp2hf_attempt_errors_total"][("other",)] == 100
    assert {labels for labels, count in found["dcp2hf_attempt_errors_total"].items() if count} == {("other",)}
    assert len(found["dcp2hf_conversion_duration_seconds_count"]) == MOST_PHASES + 1
    assert sum(found["dcp2hf_conversion_duration_seconds_count"].values()) == 100


def test_attempts_are_counted_by_how_they_ended(sources: Sources) -> None:
    event = {"bytes_read": 300, "bytes_written": 100, "phases": {"export": 3.0, "look": 0.2}}
    for outcome in (
        Outcome(result="succeeded", seconds=4.0, event=event, peak_memory=5000),
        Outcome(result="succeeded", seconds=40.0, event=event, peak_memory=4000),
        Outcome(result="skipped", seconds=0.1),
        Outcome(result="failed", seconds=2.0, error="NonFiniteTensor", retry=Retry.NEVER),
        Outcome(result="failed", seconds=2.0, error="StepVanished", retry=Retry.VANISHED),
        Outcome(result="interrupted", seconds=1.0),
    ):
        sources.tally.attempt("/r/a", outcome, NOW)
    found = scrape(sources)

    assert found["dcp2hf_attempts_total"] == {
        ("succeeded",): 2, ("failed",): 1, ("skipped",): 1, ("set_aside",): 1, ("interrupted",): 1,
    }  # fmt: skip
    assert found["dcp2hf_attempt_errors_total"][("NonFiniteTensor",)] == 1
    assert found["dcp2hf_attempt_errors_total"][("StepVanished",)] == 1
    assert found["dcp2hf_bytes_read_total"] == {(): 600}
    assert found["dcp2hf_bytes_written_total"] == {(): 200}
    assert found["dcp2hf_worker_peak_memory_bytes"] == {(): 5000}
    buckets = found["dcp2hf_attempt_duration_seconds_bucket"]
    assert [buckets[("succeeded", bound)] for bound in ("2.5", "5.0", "30.0", "60.0", "+Inf")] == [0, 1, 1, 2, 2]
    assert found["dcp2hf_attempt_duration_seconds_sum"][("succeeded",)] == 44


READY = {"roots": ["/r", "/s"], "began": ["/r"], "away": [], "is_ledger_away": False}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"began": []}, "no scan began yet"),
        ({"away": ["/r", "/s"]}, "every root is unreachable: /r, /s"),
        ({"is_ledger_away": True}, "state_dir fails: what is remembered is in memory only"),
    ],
)
def test_it_is_ready_while_some_root_is_watched_and_the_ledger_on_its_disk(
    changes: dict[str, Any], reason: str
) -> None:
    assert health.why_not_ready(Pulse(), **READY) == []
    assert health.why_not_ready(Pulse(), **READY | {"away": ["/r"]}) == []
    assert health.why_not_ready(Pulse(), **READY | changes) == [reason]
    assert health.why_not_ready(Pulse(is_stopping=True), **READY) == ["stopping"]


def test_a_loop_that_does_not_turn_is_dead() -> None:
    assert health.why_not_alive(Pulse(ticked_at=100.0), 109.0) == ""
    assert health.why_not_alive(Pulse(ticked_at=100.0), 130.0) == "the loop did not turn for 30 s"


def test_jobs_are_counted_by_slurms_state_and_states_of_later_versions_together(sources: Sources) -> None:
    for number, state in enumerate(("RUNNING", "RUNNING", "", "A_NEW_ONE", "PENDING")):
        sources.ledger.add_job(job(state, f"dcp2hf-10-{number:016x}"))
    found = scrape(sources)

    assert found["dcp2hf_jobs"] == {("RUNNING",): 2.0, ("submitting",): 1.0, ("other",): 1.0, ("PENDING",): 1.0}
    assert found.get("dcp2hf_slurm_up", {}) == {}, "it is not asked"
