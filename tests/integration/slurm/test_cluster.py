"""On a real Slurm of one node: each step is published once and none is lost, whatever dies, hangs, or is taken away."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.slurm.conftest import ONE, PATIENCE, Site
from tests.support.checkpoints.cases import BY_NAME
from tests.support.labs.here import contents, converted_here
from tests.support.labs.slurm import Cluster, wait_for
from tests.unit.daemon.running import Daemon, wait_until

pytestmark = pytest.mark.slow
RUNS = {
    "it's $(touch owned)": BY_NAME["dense_tied-0.3-fsdp-bfloat16"],
    "b; c": BY_NAME["dense_untied-0.2-2x2-float32"],
    "mixture": BY_NAME["moe-0.3-2x2-bfloat16"],
    "old": BY_NAME["dense_tied-0.2-fsdp-float32"],
    "one": ONE,
}
STEPS = range(1, 11)


def test_fifty_steps_of_five_runs_are_published_once_and_equal_to_local_ones_through_kills_of_the_daemon(
    site: Site, checkpoints: Path, tmp_path: Path
) -> None:
    for run, case in RUNS.items():
        site.add(run, *STEPS, case=case)
    site.configure({"forward_check": "off"}, max_queued=12)
    died: list[Daemon] = []
    while not died or any(state["state"] != "done" for state in site.steps().values()):
        daemon = site.start("--once")
        died.append(daemon)
        if len(died) > 4:
            assert daemon.end(4 * PATIENCE) == 0
            continue
        daemon.wait_for("conversion_succeeded", 4 * len(died), seconds=PATIENCE)
        daemon.process.kill()
        daemon.end()

    finished = [(s["run"], s["step"]) for daemon in died for s in daemon.events("conversion_succeeded")]
    assert len(site.published()) == 50
    assert len(site.steps()) == 50
    assert len(set(finished)) == len(finished), "none succeeded twice"
    assert not [said for daemon in died for said in daemon.events("conversion_failed")]
    assert len(site.jobs()) == 50, "each step had one job"
    assert len(site.submitted()) == 50
    assert not list(tmp_path.rglob("owned"))
    for run, case in RUNS.items():
        local = converted_here(case, checkpoints, tmp_path / f"local-{run}")
        for number in STEPS:
            found = contents(site.root / run / "checkpoint" / f"step-{number}-hf")
            found.pop("conversion.json")
            assert found == {name: local[name] for name in local if name != "conversion.json"}, (run, number)


KILLED = 'touch "$0.fired"; kill -9 $PPID; sleep 5'
SBATCH = {
    "before sbatch": f'test -e "$0.fired" || {{ {KILLED}; }}; exec {{sbatch}} "$@"',
    "before its answer": f'said=$({{sbatch}} "$@") || exit; test -e "$0.fired" || {{ {KILLED}; }}; echo "$said"',
}
"""Shell lines in place of `sbatch` that kill the daemon, once."""


@pytest.mark.parametrize("point", [*SBATCH, "after the ledger has its id", "while it runs"])
def test_a_daemon_killed_at_any_point_of_a_submission_leaves_a_job_that_the_next_one_goes_on_with(
    point: str, site: Site
) -> None:
    site.add("a", 10)
    if point in SBATCH:
        wrapper = site.folder / "bin" / "sbatch"
        wrapper.parent.mkdir()
        wrapper.write_text("#!/bin/sh\n" + SBATCH[point].replace("{sbatch}", str(shutil.which("sbatch"))) + "\n")
        wrapper.chmod(0o755)
        site.environ["PATH"] = f"{wrapper.parent}:{os.environ['PATH']}"
    first = site.start()
    if point not in SBATCH:
        event = {"state": "RUNNING"} if point == "while it runs" else {}
        first.wait_for("job_state" if event else "job_submitted", seconds=PATIENCE, **event)
        first.process.kill()
    first.end(PATIENCE)
    (left,) = site.jobs()
    second = site.start("--once")

    assert second.end(PATIENCE) == 0
    assert second.wait_for("job_adopted")["job_name"] == left.name
    assert [job.name for job in site.jobs()] == [left.name]
    assert len(site.submitted()) == 1, "one submission, whatever was known of it"
    assert second.wait_for("conversion_succeeded")["job"] == site.submitted()[0]
    assert len(site.published()) == 1


def test_a_stop_leaves_jobs_to_the_next_daemon_and_cancels_them_where_it_is_told_to(site: Site) -> None:
    long = {"before_publish": ["/bin/sleep", "120"]}  # the job still runs when the next daemon comes
    site.configure(long)
    site.add("a", 10)
    first = site.start()
    first.wait_for("job_state", state="RUNNING", seconds=PATIENCE)
    began = time.monotonic()
    assert first.stop() == 0
    assert time.monotonic() - began < 10
    first.wait_for("job_left")
    assert site.steps()["a/10"]["state"] == "pending"
    assert (site.steps()["a/10"]["job"]["ended"], site.steps()["a/10"]["job"]["state"]) == (None, "RUNNING")

    site.configure(long, cancel_on_stop=True)
    second = site.start()
    second.wait_for("job_adopted", seconds=PATIENCE)
    second.wait_for("job_state", seconds=PATIENCE)
    assert second.stop() == 0
    wait_for(lambda: not site.cluster.busy())
    assert [job.ending for job in site.jobs()] == ["stopped"]
    assert not [path for path in site.root.rglob("*") if path.name.startswith(".dcp2hf-")]


@pytest.mark.parametrize("how", ["hangs", "stops", "crashes"])
def test_a_controller_that_does_not_answer_pauses_the_queue_and_loses_no_job(how: str, site: Site) -> None:
    daemon = site.start()
    site.add("a", 10)
    if how == "hangs":  # in the middle of a submission, which takes effect all the same
        with site.cluster.hanging_controller():
            daemon.wait_for("conversion_started", seconds=PATIENCE)
            daemon.wait_for("slurm_unreachable", seconds=PATIENCE)
    else:
        daemon.wait_for("job_state", state="RUNNING", seconds=PATIENCE)
        site.cluster.stop_controller(signal.SIGTERM if how == "stops" else signal.SIGKILL)
        daemon.wait_for("slurm_unreachable", seconds=PATIENCE)
        site.add("b", 10)
        daemon.wait_for("step_complete", run="b", seconds=PATIENCE)
        time.sleep(2)
        assert not daemon.events("conversion_started", run="b"), "nothing is submitted meanwhile"
        site.cluster.start_controller()
    daemon.wait_for("conversion_succeeded", run="a", seconds=PATIENCE)
    if how != "hangs":

        def is_converted() -> bool:
            site.cluster.mend_node()  # a controller that lost its last seconds drains the node whose jobs it does not know
            return bool(daemon.events("conversion_succeeded", run="b"))

        wait_for(is_converted, PATIENCE)
    daemon.wait_for("slurm_recovered")
    assert daemon.stop() == 0
    assert not daemon.events("conversion_failed")
    assert len(daemon.events("slurm_unreachable")) == 1
    assert len(site.published()) == (1 if how == "hangs" else 2)
    assert how == "crashes" or len(site.submitted()) == len(site.published()), (
        "one job a step, where none was forgotten"
    )


def test_a_job_goes_on_while_slurmd_is_killed_and_a_lost_node_costs_no_attempt(site: Site) -> None:
    site.add("a", 10)
    daemon = site.start()
    daemon.wait_for("job_state", state="RUNNING", seconds=PATIENCE)
    site.cluster.kill_slurmd()
    daemon.wait_for("conversion_succeeded", seconds=PATIENCE)
    assert len(site.submitted()) == 1

    site.add("a", 20)
    daemon.wait_for("job_state", 2, state="RUNNING", seconds=PATIENCE)
    site.cluster.crash_node()
    site.cluster.boot_node()
    succeeded = daemon.wait_for("conversion_succeeded", step=20, seconds=PATIENCE)
    assert succeeded["attempt"] == 1
    assert daemon.events("job_requeued", step=20)
    assert daemon.stop() == 0
    assert not daemon.events("conversion_failed")
    assert len(site.published()) == 2


def test_a_preempted_job_runs_again_in_its_place_and_that_is_no_attempt(site: Site) -> None:
    site.add("a", 10)
    site.configure(partition="low")
    daemon = site.start()
    daemon.wait_for("job_state", state="RUNNING", seconds=PATIENCE)
    site.cluster.run("sbatch", "--parsable", "-p", "main", "--exclusive", "--wrap", "sleep 2")
    assert daemon.wait_for("conversion_succeeded", seconds=PATIENCE)["attempt"] == 1
    assert daemon.stop() == 0
    assert daemon.events("job_requeued")
    assert (len(site.jobs()), len(site.submitted()), len(site.published())) == (1, 1, 1)


def test_a_job_that_somebody_cancels_is_an_attempt_and_another_one_follows(site: Site) -> None:
    site.add("a", 10)
    daemon = site.start()
    begun = daemon.wait_for("job_state", state="RUNNING", seconds=PATIENCE)
    wait_until(Path(begun["output"]).exists, PATIENCE)
    site.cluster.run("scancel", begun["job"])
    failed = daemon.wait_for("conversion_failed", seconds=PATIENCE)
    assert failed["message"] == "somebody cancelled the job"
    output = failed["hint"].partition("output of the job: ")[2]
    assert Path(output).read_text().startswith(f"{site.cluster.node}\n")
    assert daemon.wait_for("conversion_succeeded", seconds=PATIENCE)["attempt"] == 2
    assert daemon.stop() == 0
    assert [job.ending for job in site.jobs()] == ["cancelled", "said"]


def test_a_job_with_too_little_memory_is_tried_again_with_twice_as_much(site: Site) -> None:
    site.add("a", 10)
    site.configure(memory="64MiB")
    daemon = site.start()
    daemon.wait_for("conversion_succeeded", seconds=PATIENCE)
    assert daemon.stop() == 0
    jobs = site.jobs()
    assert [job.memory for job in jobs] == [(64 << 20) << i for i in range(len(jobs))]
    assert len(jobs) > 1
    assert {job.ending for job in jobs[:-1]} <= {"memory", "killed"}
    assert "memory" in daemon.events("conversion_failed")[0]["message"]


def test_a_step_that_is_purged_or_saved_again_takes_its_job_with_it(site: Site) -> None:
    blocker = site.cluster.run("sbatch", "--parsable", "--exclusive", "--wrap", "sleep 300").strip()
    wait_for(lambda: (blocker, "RUNNING", "wrap") in site.cluster.jobs())
    run = site.add("a", 10, 20)
    daemon = site.start()
    daemon.wait_for("job_state", 2, state="PENDING", seconds=PATIENCE)
    shutil.rmtree(run / "step-10")
    daemon.wait_for("step_vanished", step=10, seconds=PATIENCE)
    shutil.rmtree(run / "step-20")
    shutil.copytree(BY_NAME["two_steps"].step(site.checkpoints), run / "step-20")
    daemon.wait_for("job_submitted", 2, step=20, seconds=PATIENCE)
    assert [job.ending for job in site.jobs()] == ["outdated", "outdated", ""]
    names = {job.name: job.ending for job in site.jobs()}
    wait_for(
        lambda: {names[name] for _, state, name in site.cluster.jobs() if state == "PENDING" and name in names} == {""}
    )
    assert daemon.stop() == 0


def test_what_no_node_can_run_is_said_and_what_slurm_refuses_burns_no_attempt(site: Site) -> None:
    site.add("a", 10)
    site.configure(cpus=64)
    daemon = site.start()
    stuck = daemon.wait_for("job_stuck", seconds=PATIENCE)
    assert (stuck["reason"], "slurm.cpus" in stuck["hint"]) == ("PartitionConfig", True)
    assert "PartitionConfig" in site.steps()["a/10"]["job"]["reason"]
    site.cluster.run("scancel", stuck["job"])
    daemon.wait_for("conversion_failed", seconds=PATIENCE)
    assert daemon.stop() == 0

    site.configure(partition="nosuch")
    daemon = site.start()
    assert "invalid partition" in daemon.wait_for("queue_paused", seconds=PATIENCE)["message"]
    site.configure()
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.wait_for("conversion_succeeded", seconds=PATIENCE)["attempt"] == 2, "only the cancelled one counted"
    assert daemon.stop() == 0


def test_hooks_that_run_before_publishing_run_in_the_job_on_the_node(site: Site) -> None:
    site.add("a", 10)
    site.configure({"before_publish": ["sh", "-c", "uname -n > where.txt"]})
    assert site.start("--once").end(PATIENCE) == 0
    (published,) = (site.root / path for path in site.published())
    assert (published / "where.txt").read_text() == f"{site.cluster.node}\n"


def test_what_the_controller_forgot_while_no_daemon_ran_is_known_by_its_result_or_by_accounting(
    accounted: Cluster, make_site: Callable[[Cluster], Site]
) -> None:
    site = make_site(accounted)
    site.add("a", 10)
    site.add("b", 10)
    site.configure(extra_args=["--hold"])
    first = site.start()
    first.wait_for("job_stuck", 2, seconds=PATIENCE)
    first.process.kill()
    first.end()
    done, cancelled = sorted(site.jobs(), key=lambda job: job.path)
    accounted.run("scontrol", "release", cancelled.id)
    wait_until(Path(cancelled.output).exists, PATIENCE)
    accounted.run("scancel", cancelled.id)
    accounted.run("scontrol", "release", done.id)
    wait_until(lambda: (site.shared / f"{done.name}.result").exists(), PATIENCE)
    wait_for(lambda: site.submitted() == [])

    site.configure()
    second = site.start()
    assert second.wait_for("conversion_failed", run="b", seconds=PATIENCE)["message"] == "somebody cancelled the job"
    assert second.wait_for("conversion_succeeded", run="b", seconds=PATIENCE)["attempt"] == 2
    assert second.stop() == 0
    assert not second.events("conversion_started", run="a"), "it is published: nothing is done twice"
    endings = [job.ending for job in sorted(site.jobs(), key=lambda job: (job.path, job.asked))]
    assert endings == ["unneeded", "cancelled", "said"]
    assert len(site.published()) == 2


def test_nothing_is_asked_of_slurm_while_there_are_no_jobs(site: Site) -> None:
    site.add("a", 10)
    calls = site.folder / "calls"
    bin_folder = site.folder / "bin"
    bin_folder.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scancel"):
        (bin_folder / name).write_text(f'#!/bin/sh\necho {name} >> {calls}\nexec {shutil.which(name)} "$@"\n')
        (bin_folder / name).chmod(0o755)
    daemon = site.start(PATH=f"{bin_folder}:{os.environ['PATH']}")
    daemon.wait_for("conversion_succeeded", seconds=PATIENCE)
    time.sleep(1)
    before = calls.read_text().split()
    time.sleep(3)
    assert calls.read_text().split() == before
    assert before.count("sbatch") == 1
    assert daemon.stop() == 0
