"""Owns the jobs of this daemon: how many may be queued, which an earlier daemon left, which are no longer needed."""

import asyncio
from collections.abc import Callable

import msgspec

from daemon.config.settings import Settings
from daemon.host.logs import Logger
from daemon.ledger.ledger import Ledger
from daemon.ledger.slurm_jobs import SlurmJob
from daemon.runners.base import IsWanted, Order
from daemon.runners.counters import Tally
from daemon.runners.slurm.attempt import JobAttempt
from daemon.runners.slurm.commands import Commands
from daemon.runners.slurm.job_states import Ending
from daemon.runners.slurm.poller import Cluster


class SlurmRunner:
    """Conversions as jobs (`daemon.runners.base.Runner`)."""

    def __init__(
        self, ledger: Ledger, log: Logger, tally: Tally, *, poll: Callable[[], float], clock: Callable[[], float]
    ) -> None:
        self._ledger, self._log, self._clock = ledger, log, clock
        self._cluster = Cluster(Commands(tally), log, tally, poll=poll)
        self._left = {(job.path, job.save_id): job for job in ledger.jobs_left()}
        self._cancelling: set[asyncio.Task[None]] = set()

    def has_slot(self, running: int, settings: Settings) -> bool:
        """Up to `max_queued`; none while Slurm does not answer."""
        return running < settings.slurm.max_queued and not self._cluster.is_away

    @property
    def are_left(self) -> bool:
        """Whether earlier lives left jobs that are neither gone on with nor cancelled yet."""
        return bool(self._left)

    def holds(self, path: str, save_id: str) -> bool:
        """Whether one of this save is left: it is gone on with, whatever room or slots there are."""
        return (path, save_id) in self._left

    def attempt(self, order: Order) -> JobAttempt:
        """Goes on with the job that was left, or makes one."""
        left = self._left.pop((order.row.path, order.row.save_id), None)
        return JobAttempt(order, self._ledger, self._cluster, left, clock=self._clock)

    def let_go(self, is_wanted: IsWanted) -> None:
        """Cancels jobs that were left and that nobody wants any more, be it that they published the step."""
        for key, job in list(self._left.items()):
            if is_wanted(job.root, job.path, job.save_id) is False:
                del self._left[key]
                task = asyncio.create_task(self._cancel(job))
                self._cancelling.add(task)
                task.add_done_callback(self._cancelling.discard)

    async def stop(self) -> None:
        """Ends the looks. What is being cancelled now is left to the next daemon."""
        for task in list(self._cancelling):
            task.cancel()
        await asyncio.gather(*self._cancelling, return_exceptions=True)
        await self._cluster.stop()

    async def _cancel(self, job: SlurmJob) -> None:
        problem = await self._cluster.commands.cancel(job.name)
        log = self._log.bind(root=job.root, path=job.path, job=job.id or None, job_name=job.name)
        if problem:
            self._left.setdefault((job.path, job.save_id), job)  # asked again
            return
        self._ledger.note_job(msgspec.structs.replace(job, ended=self._clock(), ending=str(Ending.UNNEEDED)))
        self._cluster.discard(job.name, job.folder)
        log.info("job_let_go", message="it is needed no longer: its step is published, purged or saved again")
