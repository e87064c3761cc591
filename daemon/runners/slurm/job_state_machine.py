"""Owns the judgement of one job over time: whether and how it ended, from Slurm's answers and the shared folder. Pure.

It believes neither of them at once. `sbatch` may fail and still have submitted the job. The controller forgets jobs
some minutes after their end. Files that are written on a node appear here later. The result file shows that the job is
done, whatever Slurm says.
"""

from enum import Enum, auto
from typing import NamedTuple

from converter.common.errors import Retry
from daemon.ledger.records import Outcome
from daemon.runners.slurm.job_states import NEED_MORE, Ending, Sight, best, ending_of, leaves_result, why_stuck

SURE = 5.0
"""Seconds without a trace after which a submission that failed is believed to have failed."""
GRACE = 15.0
"""Seconds that a result is waited for once the job has ended, and Slurm's word once the result is there."""
PATIENCE = 86_400.0
"""Seconds in the queue after which that is said, whatever the reason."""
_FOR_GOOD = frozenset(Retry) - {Retry.BACKOFF}


class JobReport(NamedTuple):
    """One look at a job."""

    sights: tuple[Sight, ...] | None
    """None: Slurm does not answer."""
    is_readable: bool
    """Whether the shared folder could be read."""


class Move(Enum):
    """What to do next."""

    WAIT = auto()
    SUBMIT = auto()
    END = auto()


class Finding(NamedTuple):
    """What a look amounts to."""

    move: Move
    ending: Ending | None = None


class Case:
    """One job. Times are seconds of a monotonic clock."""

    def __init__(self, *, is_submitted: bool) -> None:
        self.is_submitted = is_submitted
        """Slurm took it, as far as we know."""
        self.sight: Sight | None = None
        """As Slurm showed it last."""
        self.is_left_waiting = False
        """A job of this name waits in Slurm's queue, as it was shown last."""
        self._absent_since: float | None = None
        self._ended_since: float | None = None
        self._said_since: float | None = None
        self._waits_since: float | None = None

    def look(self, report: JobReport, said: Outcome | None, now: float) -> Finding:
        """Takes in one look. `said` is the outcome that the job's own result gives, once it is there."""
        shown = best(report.sights) if report.sights is not None else None
        if report.sights is not None:
            self.is_left_waiting = any(sight.state == "PENDING" for sight in report.sights)
        if shown is not None:
            if self.sight is None or (shown.id, shown.state) != (self.sight.id, self.sight.state):
                self._ended_since = self._waits_since = None
            self.sight, self.is_submitted, self._absent_since = shown, True, None
            if shown.state == "PENDING" and self._waits_since is None:
                self._waits_since = now
        ending = ending_of(shown) if shown is not None else None
        if said is not None:
            return self._with_result(said, ending, now)
        if report.sights is None:
            self._absent_since = None
            return Finding(Move.WAIT)
        if shown is None:
            return self._absent(report, now)
        if ending is None or not report.is_readable:
            self._ended_since = None
            return Finding(Move.WAIT)
        if self._ended_since is None:  # a second look at least: what it wrote last may be seen then
            self._ended_since = now
            return Finding(Move.WAIT)
        if leaves_result(shown) and now - self._ended_since < GRACE:
            return Finding(Move.WAIT)
        return Finding(Move.END, ending)

    def why_stuck(self, now: float) -> str:
        """What to do about it, if it waits in vain, or has waited long."""
        if self.sight is not None and (hint := why_stuck(self.sight)):
            return hint
        if self._waits_since is not None and now - self._waits_since > PATIENCE:
            return "it waits for more than a day: look at the partition's queue, slurm.qos and slurm.nice"
        return ""

    def _with_result(self, said: Outcome, ending: Ending | None, now: float) -> Finding:
        if said.result != "failed" or said.retry in _FOR_GOOD:
            return Finding(Move.END, Ending.SAID)
        # The machine failed it: Slurm may know why, a little later.
        self._said_since = now if self._said_since is None else self._said_since
        if ending in NEED_MORE:
            return Finding(Move.END, ending)
        is_over = ending is not None or now - self._said_since >= GRACE
        return Finding(Move.END, Ending.SAID) if is_over else Finding(Move.WAIT)

    def _absent(self, report: JobReport, now: float) -> Finding:
        self._absent_since = now if self._absent_since is None else self._absent_since
        since = now - self._absent_since
        if not report.is_readable:  # its result may be there
            self._absent_since = None
            return Finding(Move.WAIT)
        if not self.is_submitted:
            return Finding(Move.SUBMIT) if since >= SURE else Finding(Move.WAIT)
        return Finding(Move.END, Ending.GONE) if since >= GRACE else Finding(Move.WAIT)

    def not_found(self) -> None:
        """It was not submitted after all."""
        self._absent_since = None
