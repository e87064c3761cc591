"""How each job ends that a real Slurm 22.05.8 was seen to end, and which waits are in vain."""

import pytest

from daemon.runners.slurm import job_states
from daemon.runners.slurm.job_states import Ending, Sight


@pytest.mark.parametrize(
    ("state", "reason", "status", "ending"),
    [
        ("PENDING", "Priority", 0, None),
        ("PENDING", "BeginTime", 0, None),
        ("CONFIGURING", "None", 0, None),
        ("RUNNING", "None", 0, None),
        ("COMPLETING", "None", 0, None),
        ("SUSPENDED", "None", 0, None),
        ("A_STATE_OF_LATER_VERSIONS", "None", 0, None),
        ("COMPLETED", "None", 0, Ending.DIED),
        ("FAILED", "NonZeroExitCode", 3 << 8, Ending.DIED),
        ("FAILED", "JobLaunchFailure", 9, Ending.KILLED),
        ("FAILED", "JobLaunchFailure", 15, Ending.DIED),
        ("FAILED", "JobLaunchFailure", 53, Ending.LAUNCH),
        ("FAILED", "BadConstraints", 1, Ending.LAUNCH),
        ("OUT_OF_MEMORY", "OutOfMemory", 125, Ending.MEMORY),
        ("TIMEOUT", "TimeLimit", 15, Ending.TIME),
        ("DEADLINE", "DeadLine", 0, Ending.TIME),
        ("CANCELLED", "None", 15, Ending.CANCELLED),
        ("CANCELLED", "None", 0, Ending.CANCELLED),
        ("NODE_FAIL", "NodeDown", 0, Ending.LOST),
        ("NODE_FAIL", "None", 1, Ending.LOST),
        ("BOOT_FAIL", "None", 0, Ending.LOST),
        ("PREEMPTED", "None", 9, Ending.LOST),
        ("PENDING", "launch failed requeued held", 0, Ending.LOST),
        ("PENDING", "launch_failed_requeued_held", 0, Ending.LOST),
        ("PENDING", "(launch failed requeued held)", 0, Ending.LOST),
        ("PENDING", "JobHeldUser", 0, None),
    ],
)
def test_a_job_ended_as_slurm_says_it_or_goes_on(state: str, reason: str, status: int, ending: Ending | None) -> None:
    assert job_states.ending_of(Sight("7", state, reason, status)) == ending


@pytest.mark.parametrize(
    ("state", "status", "leaves"),
    [("COMPLETED", 0, True), ("FAILED", 3 << 8, True), ("FAILED", 9, False), ("CANCELLED", 15, False), ("TIMEOUT", 15, False)],
)  # fmt: skip
def test_a_result_is_waited_for_where_the_script_ran_to_its_end(state: str, status: int, leaves: bool) -> None:
    assert job_states.leaves_result(Sight("7", state, "None", status)) == leaves


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("PartitionConfig", "slurm.cpus"),
        ("PartitionTimeLimit", "slurm.time"),
        ("BadConstraints", "extra_args"),
        ("DependencyNeverSatisfied", "extra_args"),
        ("InvalidAccount", "slurm.account"),
        ("InvalidQOS", "slurm.qos"),
        ("JobHeldUser", "scontrol release 7"),
        ("JobHeldAdmin", "administrator"),
        ("QOSMaxMemoryPerJob", "slurm.memory"),
        ("AssocMaxCpuPerJobLimit", ""),
        ("Priority", ""),
        ("Resources", ""),
        ("Dependency", ""),
        ("BeginTime", ""),
        ("None", ""),
    ],
)
def test_a_wait_in_vain_says_what_to_do_and_another_nothing(reason: str, word: str) -> None:
    assert (word in job_states.why_stuck(Sight("7", "PENDING", reason))) if word else True
    assert bool(job_states.why_stuck(Sight("7", "PENDING", reason))) == bool(word or "PerJob" in reason)


def test_a_reason_counts_only_while_the_job_waits() -> None:
    assert job_states.why_stuck(Sight("7", "RUNNING", "PartitionConfig")) == ""


def test_of_two_jobs_of_a_name_the_one_that_goes_on_counts() -> None:
    ended, waits, runs = Sight("9", "CANCELLED"), Sight("8", "PENDING", "Dependency"), Sight("7", "RUNNING")

    assert job_states.best([ended, waits, runs]) == runs
    assert job_states.best([ended, waits]) == waits
    assert job_states.best([Sight("10", "FAILED"), ended]) == Sight("10", "FAILED")
    assert job_states.best([]) is None
