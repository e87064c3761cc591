"""The end of a job is an attempt's outcome in an operator's words, with where its output lies; what Slurm took is none."""

import pytest

from converter.common.errors import Retry
from daemon.ledger.records import Outcome
from daemon.runners.slurm import job_outcomes
from daemon.runners.slurm.job_states import Ending, Sight
from daemon.runners.slurm.resources import Needs

NEEDS = Needs(4, 2_000_000_000, 3600.0)
SIGHT = Sight("7", "FAILED", "NonZeroExitCode", 3 << 8)
OUTPUT = "/shared/dcp2hf-1-0123456789abcdef.output"


def test_a_job_that_slurm_took_is_no_attempt() -> None:
    assert job_outcomes.outcome(Ending.LOST, SIGHT, NEEDS, None) is None


@pytest.mark.parametrize(
    ("ending", "words", "retry"),
    [
        (Ending.MEMORY, "needed more memory than the 2 GB it had", Retry.BACKOFF),
        (Ending.KILLED, "killed, maybe for its memory (2 GB)", Retry.BACKOFF),
        (Ending.TIME, "needed more time than the 1h it had", Retry.BACKOFF),
        (Ending.CANCELLED, "somebody cancelled the job", Retry.BACKOFF),
        (Ending.LAUNCH, "could not begin: FAILED (NonZeroExitCode)", Retry.SPACE),
        (Ending.REFUSED, "sbatch refused the job: no such partition", Retry.SPACE),
        (Ending.DIED, "ended as FAILED (NonZeroExitCode) and left no result", Retry.BACKOFF),
        (Ending.GONE, "Slurm does not know the job any more", Retry.BACKOFF),
        (Ending.SILENT, "no progress for no such partition: cancelled", Retry.BACKOFF),
    ],
)
def test_each_end_says_what_happened_where_it_printed_and_whether_it_counts(
    ending: Ending, words: str, retry: Retry
) -> None:
    made = job_outcomes.outcome(ending, SIGHT, NEEDS, None, why="no such partition", output=OUTPUT)

    assert made is not None
    assert (made.result, made.error, made.retry) == ("failed", "MachineFailure", retry)
    assert words in made.message
    assert made.hint.endswith(f"output of the job: {OUTPUT}")


def test_what_the_converter_says_of_itself_is_its_outcome() -> None:
    for said in (
        Outcome(result="succeeded", event={"bytes_written": 7}),
        Outcome(result="failed", retry=Retry.NEVER, hint="look"),
    ):
        assert job_outcomes.outcome(Ending.SAID, SIGHT, NEEDS, said, output=OUTPUT) == said


def test_an_exit_code_without_an_event_is_a_failure_with_the_end_of_what_was_printed() -> None:
    said = job_outcomes.of_code(127, "n1 | python: not found")
    made = job_outcomes.outcome(Ending.SAID, SIGHT, NEEDS, said, output=OUTPUT)

    assert made is not None
    assert made.message == "the converter ended with exit code 127 and no result: n1 | python: not found"
    assert (made.retry, made.hint) == (Retry.BACKOFF, f"see the job's output; output of the job: {OUTPUT}")
    assert "out-of-memory" in job_outcomes.of_code(137, "").hint
