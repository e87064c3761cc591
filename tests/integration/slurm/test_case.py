"""One job over time: nothing is believed at first sight, the result it wrote wins, and no job is taken for lost too soon."""

import pytest

from converter.common.errors import Retry
from daemon.ledger.records import Outcome
from daemon.runners.slurm.job_state_machine import GRACE, PATIENCE, SURE, Case, Finding, JobReport, Move
from daemon.runners.slurm.job_states import Ending, Sight

DONE = Outcome(result="succeeded")
REFUSAL = Outcome(result="failed", error="NonFiniteTensor", retry=Retry.NEVER)
BROKEN = Outcome(result="failed", error="MachineFailure", retry=Retry.BACKOFF)
WAIT, SUBMIT = Finding(Move.WAIT), Finding(Move.SUBMIT)


def end(ending: Ending) -> Finding:
    return Finding(Move.END, ending)


def seen(*sights: Sight, readable: bool = True) -> JobReport:
    return JobReport(sights, readable)


def job(state: str, reason: str = "None", status: int = 0) -> Sight:
    return Sight("7", state, reason, status)


AWAY = JobReport(None, True)


@pytest.mark.parametrize("said", [DONE, REFUSAL, Outcome(result="skipped")])
@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "CANCELLED", "OUT_OF_MEMORY", "NODE_FAIL", None, "away"])
def test_a_result_that_time_does_not_change_holds_whatever_slurm_says(said: Outcome, state: str | None) -> None:
    report = AWAY if state == "away" else seen(*([job(state)] if state else []))

    assert Case(is_submitted=True).look(report, said, 0.0) == end(Ending.SAID)


def test_a_failure_of_the_machines_waits_for_slurms_word_and_no_longer_than_that() -> None:
    case = Case(is_submitted=True)

    assert case.look(seen(job("RUNNING")), BROKEN, 0.0) == WAIT
    assert case.look(seen(job("COMPLETING")), BROKEN, 1.0) == WAIT
    assert case.look(seen(job("OUT_OF_MEMORY", status=125)), BROKEN, 2.0) == end(Ending.MEMORY)

    case = Case(is_submitted=True)
    assert case.look(seen(job("FAILED", status=1 << 8)), BROKEN, 0.0) == end(Ending.SAID)
    case = Case(is_submitted=True)
    assert case.look(AWAY, BROKEN, 0.0) == WAIT
    assert case.look(AWAY, BROKEN, GRACE) == end(Ending.SAID)


def test_a_job_that_runs_or_waits_is_waited_for_without_end() -> None:
    case = Case(is_submitted=True)

    for hours, state in enumerate(("PENDING", "RUNNING", "SUSPENDED", "RUNNING", "COMPLETING")):
        assert case.look(seen(job(state)), None, hours * 3600.0) == WAIT


def test_an_end_without_a_result_is_believed_at_a_second_look() -> None:
    case = Case(is_submitted=True)

    assert case.look(seen(job("CANCELLED", status=15)), None, 0.0) == WAIT
    assert case.look(seen(job("CANCELLED", status=15)), None, 0.5) == end(Ending.CANCELLED)


def test_a_preempted_job_that_is_requeued_between_two_looks_goes_on() -> None:
    case = Case(is_submitted=True)

    assert case.look(seen(job("PREEMPTED", status=9)), None, 0.0) == WAIT
    assert case.look(seen(job("PENDING", "BeginTime")), None, 1.0) == WAIT
    assert case.look(seen(job("PREEMPTED", status=9)), None, 2.0) == WAIT
    assert case.look(seen(job("PREEMPTED", status=9)), None, 3.0) == end(Ending.LOST)


def test_a_result_that_must_be_there_is_waited_for_through_a_file_systems_caches() -> None:
    case = Case(is_submitted=True)

    assert case.look(seen(job("COMPLETED")), None, 0.0) == WAIT
    assert case.look(seen(job("COMPLETED")), None, GRACE - 1) == WAIT
    assert case.look(seen(job("COMPLETED")), DONE, GRACE - 0.5) == end(Ending.SAID)
    case = Case(is_submitted=True)
    case.look(seen(job("FAILED", status=75 << 8)), None, 0.0)
    assert case.look(seen(job("FAILED", status=75 << 8)), None, GRACE) == end(Ending.DIED)


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETED", "FAILED", "TIMEOUT"])
def test_nothing_is_judged_while_the_shared_folder_cannot_be_read(state: str) -> None:
    case = Case(is_submitted=True)

    for now in (0.0, 1.0, 10 * GRACE):
        assert case.look(seen(job(state), readable=False), None, now) == WAIT
    assert case.look(seen(readable=False), None, 11 * GRACE) == WAIT
    assert case.look(seen(readable=False), None, 20 * GRACE) == WAIT


def test_nothing_is_judged_while_the_controller_is_away() -> None:
    case = Case(is_submitted=False)

    for now in (0.0, SURE, 100 * GRACE):
        assert case.look(AWAY, None, now) == WAIT


def test_a_submission_that_failed_is_looked_for_again_seconds_later_before_the_next() -> None:
    case = Case(is_submitted=False)

    assert case.look(seen(), None, 0.0) == WAIT
    assert case.look(seen(), None, SURE - 0.1) == WAIT
    assert case.look(seen(), None, SURE) == SUBMIT

    case.not_found()
    assert case.look(seen(), None, SURE + 1) == WAIT, "the next one has its time, too"


def test_a_submission_that_failed_and_is_found_all_the_same_is_the_job() -> None:
    case = Case(is_submitted=False)

    case.look(seen(), None, 0.0)
    assert case.look(seen(job("PENDING")), None, SURE) == WAIT
    assert (case.is_submitted, case.sight) == (True, job("PENDING"))


def test_a_job_that_slurm_forgot_is_gone_once_no_result_has_come() -> None:
    case = Case(is_submitted=True)

    assert case.look(seen(), None, 0.0) == WAIT
    assert case.look(seen(), None, GRACE - 1) == WAIT
    assert case.look(seen(), None, GRACE) == end(Ending.GONE)


def test_a_job_that_was_missing_for_one_look_is_not_gone() -> None:
    case = Case(is_submitted=True)

    case.look(seen(), None, 0.0)
    case.look(seen(job("RUNNING")), None, 1.0)
    assert case.look(seen(), None, GRACE) == WAIT


def test_a_job_held_after_its_launch_is_lost_unless_it_left_a_result_and_is_left_waiting() -> None:
    held = job("PENDING", "launch failed requeued held")
    case = Case(is_submitted=True)

    case.look(seen(held), None, 0.0)
    assert case.look(seen(held), None, 1.0) == end(Ending.LOST)
    assert case.is_left_waiting
    assert Case(is_submitted=True).look(seen(held), DONE, 0.0) == end(Ending.SAID)


def test_a_second_submission_by_mistake_is_left_waiting_and_its_first_one_counts() -> None:
    case = Case(is_submitted=True)
    runs, waits = Sight("7", "RUNNING"), Sight("8", "PENDING", "Dependency")

    assert case.look(seen(runs, waits), None, 0.0) == WAIT
    assert (case.sight, case.is_left_waiting) == (runs, True)


def test_a_wait_of_more_than_a_day_is_said_whatever_the_reason() -> None:
    case = Case(is_submitted=True)

    for now in (0.0, PATIENCE):
        case.look(seen(job("PENDING", "Resources")), None, now)
        assert case.why_stuck(now) == ""
    assert "more than a day" in case.why_stuck(PATIENCE + 1)
    case.look(seen(job("RUNNING")), None, PATIENCE + 2)
    assert case.why_stuck(PATIENCE + 2) == ""
