"""Owns the choice of a root's runner by its settings. Modules for cluster jobs are imported when they are needed."""

from collections import Counter
from collections.abc import Callable, Iterable

from daemon.config.settings import Settings
from daemon.host.logs import Logger
from daemon.ledger.ledger import Ledger
from daemon.runners.base import IsWanted, Local, Runner
from daemon.runners.counters import Tally


class Runners:
    """The runners in use."""

    def __init__(self, ledger: Ledger, log: Logger, tally: Tally, *, clock: Callable[[], float]) -> None:
        self._ledger, self._log, self._tally, self._clock = ledger, log, tally, clock
        self._local: Runner = Local()
        self._slurm: Runner | None = None
        self._poll = Settings().slurm.poll
        self._has_looked_for_jobs = False

    def __len__(self) -> int:
        return 1 + (self._slurm is not None)

    @property
    def are_left(self) -> bool:
        """Whether conversions of earlier lives are to be gone on with, or to be ended."""
        return self._slurm is not None and self._slurm.are_left

    def of(self, settings: Settings) -> Runner:
        """The one that a root's settings ask for."""
        if settings.runner == "local":
            return self._local
        self._poll = settings.slurm.poll
        return self._of_jobs()

    def let_go(self, is_wanted: IsWanted) -> None:
        """Ends jobs that earlier lives left and nobody wants, be it that nothing of their root is to be a job any more."""
        if not self._has_looked_for_jobs:
            self._has_looked_for_jobs = True
            if self._ledger.jobs_left():
                self._of_jobs()
        if self._slurm is not None:
            self._slurm.let_go(is_wanted)

    async def stop(self) -> None:
        """Ends what runners do by themselves, once no attempt runs any more."""
        if self._slurm is not None:
            await self._slurm.stop()

    def _of_jobs(self) -> Runner:
        if self._slurm is None:
            from daemon.runners.slurm.runner import SlurmRunner  # what no root asks for takes no memory

            self._slurm = SlurmRunner(self._ledger, self._log, self._tally, poll=lambda: self._poll, clock=self._clock)
        return self._slurm


class Slots:
    """What is free for one round of starting conversions, beside those whose runners are `busy`."""

    def __init__(self, runners: Runners, settings: Settings, busy: Iterable[Runner]) -> None:
        self._runners, self._settings = runners, settings
        self._busy = Counter(busy)
        self._full: set[Runner] = set()

    def has_one(self, runner: Runner) -> bool:
        """Whether one more may be started there."""
        is_free = runner.has_slot(self._busy[runner], self._settings)
        if not is_free:
            self._full.add(runner)
        return is_free

    def take(self, runner: Runner, count: int) -> None:
        """So many were started there."""
        self._busy[runner] += count

    @property
    def are_gone(self) -> bool:
        """Whether nothing more can be started anywhere."""
        return len(self._full) == len(self._runners) and not self._runners.are_left
