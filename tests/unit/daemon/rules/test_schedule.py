"""Which job next, when again, and when never again."""

import pytest

from converter.common.errors import Retry
from daemon.config.settings import Settings
from daemon.ledger.records import Outcome, State
from daemon.rules import schedule
from daemon.rules.schedule import Job, Next

S = Settings()


def job(step: int, run: str = "/r/a", *, root: str = "/r", not_before: float = 0.0, size: int = 100) -> Job:
    return Job(f"{run}/step-{step}", root, run, step, not_before, size)


def steps(jobs: list[Job]) -> list[tuple[str, int]]:
    return [(found.run, found.step) for found in jobs]


def test_the_oldest_step_of_a_run_comes_first() -> None:
    jobs = [job(100), job(9), job(20)]

    assert steps(schedule.next_jobs(jobs, slots=2, now=0.0, last_started={})) == [("/r/a", 9), ("/r/a", 20)]


def test_the_newest_comes_first_where_a_root_asks_for_it() -> None:
    jobs = [job(9), job(100), job(9, "/n/b", root="/n"), job(100, "/n/b", root="/n")]

    chosen = schedule.next_jobs(jobs, slots=4, now=0.0, newest_first=["/n"], last_started={})

    assert [step for run, step in steps(chosen) if run == "/r/a"] == [9, 100]
    assert [step for run, step in steps(chosen) if run == "/n/b"] == [100, 9]


def test_one_runs_backlog_does_not_hold_up_another_run() -> None:
    jobs = [job(n, "/r/backlog") for n in range(50)] + [job(5000, "/r/live")]

    assert ("/r/live", 5000) in steps(schedule.next_jobs(jobs, slots=2, now=0.0, last_started={}))
    assert steps(schedule.next_jobs(jobs, slots=1, now=9.0, last_started={"/r/backlog": 5.0})) == [("/r/live", 5000)]


def test_what_backs_off_is_not_started_and_holds_nobody_up() -> None:
    jobs = [job(1, not_before=100.0), job(2)]

    assert steps(schedule.next_jobs(jobs, slots=2, now=50.0, last_started={})) == [("/r/a", 2)]


def test_backoff_doubles_to_its_cap_and_is_spread() -> None:
    settings = Settings(backoff_initial=10.0, backoff_max=60.0)

    assert [schedule.backoff(n, settings, 0.0) for n in (1, 2, 3, 4, 50)] == [10.0, 20.0, 40.0, 60.0, 60.0]
    assert 8.0 <= schedule.backoff(1, settings, 0.999) < 10.0


def test_a_job_needs_room_beside_what_is_being_written_and_what_must_stay_free() -> None:
    settings = Settings(min_free_space=50)

    assert schedule.has_room(job(1, size=100), free_bytes=150, reserved=0, settings=settings)
    assert not schedule.has_room(job(1, size=100), free_bytes=150, reserved=1, settings=settings)


def follows(retry: Retry, attempts: int = 0, **fields: float) -> Next:
    given = {"now": 1000.0, "grace_ends": 0.0, "jitter": 0.0} | fields
    return schedule.after_failure(Outcome(result="failed", retry=retry), attempts, settings=S, **given)  # type: ignore[arg-type]


def test_a_refusal_that_would_repeat_is_quarantined_at_once() -> None:
    assert follows(Retry.NEVER) == Next(State.QUARANTINED, 1)


def test_a_machines_failure_is_tried_max_attempts_times() -> None:
    assert follows(Retry.BACKOFF, 0) == Next(State.FAILED, 1, 1030.0)
    assert follows(Retry.BACKOFF, 3) == Next(State.FAILED, 4, 1240.0)
    assert follows(Retry.BACKOFF, 4) == Next(State.QUARANTINED, 5, 4600.0)


def test_what_is_quarantined_for_a_reason_outside_of_the_step_is_looked_at_again_ever_more_rarely() -> None:
    waits = [(follows(Retry.BACKOFF, failures).next_attempt or 0) - 1000.0 for failures in (4, 5, 6, 9, 400)]
    assert waits == [3600.0, 7200.0, 14400.0, 86400.0, 86400.0]
    assert follows(Retry.CONFIG, 0, grace_ends=999.0).next_attempt == 1030.0
    refused = schedule.after_failure(
        Outcome(result="failed", error="AssetsInvalid", retry=Retry.NEVER), 0, settings=S, now=0, grace_ends=0, jitter=0
    )
    assert refused == Next(State.QUARANTINED, 1, 3600.0)
    assert schedule.recheck(1, 0.0, 0.0) == 1.0, "not in a tight circle, whatever backoff_max is"


def test_a_full_disk_pauses_the_queue_and_burns_no_attempt() -> None:
    assert follows(Retry.SPACE, 4) == Next(State.PENDING, 4, 1030.0, pauses_root=True)
    assert follows(Retry.SPACE, 0, pauses=3).next_attempt == 1120.0


def test_a_missing_run_config_is_waited_for_within_its_grace() -> None:
    assert follows(Retry.CONFIG, grace_ends=1010.0) == Next(State.FAILED, 0, 1010.0)
    assert follows(Retry.CONFIG, grace_ends=999.0).state == State.QUARANTINED


@pytest.mark.parametrize(
    ("retry", "state"),
    [
        (Retry.VANISHED, State.VANISHED),
        (Retry.INCOMPLETE, State.INCOMPLETE),
        (Retry.SUSPECT, State.SUSPECT),
        (Retry.UNSUPPORTED, State.UNSUPPORTED),
        (Retry.FOREIGN, State.FOREIGN),
    ],
)
def test_what_is_nobodys_failure_burns_no_attempt(retry: Retry, state: State) -> None:
    assert (follows(retry, 4).state, follows(retry, 4).attempts) == (state, 4)
