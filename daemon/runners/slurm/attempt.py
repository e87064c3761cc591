"""Owns one attempt as a Slurm job: it is recorded, submitted, and followed to its end or left to the next daemon.

The order allows the daemon to die at any point: the ledger has the job's name, then Slurm gets the job, then the ledger
has the job's id.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from converter.common.errors import Retry
from daemon.config import units
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outcome
from daemon.ledger.slurm_jobs import SlurmJob
from daemon.runners.base import Order
from daemon.runners.slurm import job_outcomes, job_script, resources
from daemon.runners.slurm.job_events import Following
from daemon.runners.slurm.job_state_machine import Case, Finding, Move
from daemon.runners.slurm.job_states import NEED_MORE, Ending
from daemon.runners.slurm.poller import Cluster, JobLook, Watch
from daemon.runners.slurm.resources import Needs

AGAIN_FIRST, AGAIN_MOST = 10.0, 600.0
"""Seconds between the loss of a job and the next one: doubling."""
CANCEL_LIMIT = 5.0
"""Seconds that cancelling may take at a stop, which has ten in all."""
_TRIES = 2
"""Submissions that fail before Slurm's controller, which answers, is believed to refuse the job."""


class JobAttempt:
    """One conversion by Slurm; `left` is the job of an earlier life to go on with."""

    def __init__(
        self, order: Order, ledger: Ledger, cluster: Cluster, left: SlurmJob | None, *, clock: Callable[[], float]
    ) -> None:
        self._order, self._ledger, self._cluster, self._clock = order, ledger, cluster, clock
        self._log = order.log
        self._asked = asyncio.Event()
        self._why = Ending.STOPPED
        self._left = left
        self._job = left or self._new_job()
        self._refused = ""
        """What `sbatch` said last, if it failed."""

    def stop(self) -> None:
        """The daemon ends: the job is left to the next one, or cancelled (`cancel_on_stop`); the outcome is `interrupted`."""
        self._asked.set()

    def outdate(self) -> None:
        """The step was purged or saved again: nobody needs the job."""
        if not self._asked.is_set():
            self._why = Ending.OUTDATED
            self._asked.set()

    async def run(self) -> Outcome:
        """Sees it through. Raises nothing expected."""
        began = self._clock()
        work = asyncio.create_task(self._work())
        asked = asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
            outcome = work.result() if work.done() else None
        finally:
            for task in (work, asked):
                task.cancel()
            await asyncio.gather(work, asked, return_exceptions=True)
        outcome = outcome or await self._cut_short()
        return msgspec.structs.replace(outcome, seconds=round(self._clock() - began, 3))

    async def _work(self) -> Outcome:
        pause = AGAIN_FIRST
        while True:
            outcome = await self._see_through()
            if outcome is not None:
                return outcome
            message = f"no attempt of the step's: the next job is submitted in {pause:.0f} s"
            self._log.warning(
                "job_lost", **self._facts(), state=self._job.state, reason=self._job.reason, message=message
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, AGAIN_MOST)
            self._left, self._job = None, self._new_job()

    async def _cut_short(self) -> Outcome:
        if self._why == Ending.STOPPED and not self._order.settings.slurm.cancel_on_stop:
            self._log.info("job_left", **self._facts(), state=self._job.state)
            return Outcome(result="interrupted")
        await self._cancel(CANCEL_LIMIT)
        self._end(self._why)
        if self._why == Ending.STOPPED:
            return Outcome(result="interrupted")
        message, hint = (
            "the step was purged or saved again before its job was done",
            "a new save is converted by itself",
        )
        return Outcome(result="failed", error="StepVanished", message=message, hint=hint, retry=Retry.VANISHED)

    # One job
    def _new_job(self) -> SlurmJob:
        """A job, noted before Slurm hears of it."""
        order, row = self._order, self._order.row
        before = self._ledger.job_endings(row.path, row.save_id)
        asks = resources.reckon(
            order.facts.answer.model_bytes, order.settings,
            too_small=sum(before[ending] for ending in NEED_MORE), too_short=before[Ending.TIME],
        )  # fmt: skip
        job = SlurmJob(
            name=job_script.new_name(row.step), path=row.path, save_id=row.save_id, root=row.root, folder=order.settings.slurm.shared,
            asked=self._clock(), owner=self._ledger.owner, memory=asks.memory, seconds=asks.seconds,
        )  # fmt: skip
        self._ledger.add_job(job)
        return job

    async def _see_through(self) -> Outcome | None:
        """Submits the job unless it was, and follows it; its outcome, or None where it was no attempt."""
        job = self._job
        if self._left is not None:
            self._note(owner=self._ledger.owner)
            self._log.info("job_adopted", **self._facts(), state=job.state)
        with self._cluster.watching(job.name, job.folder, job.place) as watch:
            followed = Following(self._order)
            case = Case(is_submitted=bool(job.id))
            tries = 0
            if self._left is None:
                tries += await self._submit(case)
            while True:
                finding = self._take(await watch.look(), watch, followed, case)
                if finding.move == Move.SUBMIT and tries < _TRIES:
                    tries += await self._submit(case)
                elif finding.move == Move.SUBMIT:
                    return self._outcome(Ending.REFUSED, followed, case, why=self._refused)
                elif finding.ending is not None:
                    await self._clear_up(case)
                    return self._outcome(finding.ending, followed, case)
                elif followed.silence() > self._order.settings.deadline:
                    await self._cancel()
                    why = units.show_duration(self._order.settings.deadline)
                    return self._outcome(Ending.SILENT, followed, case, why=why)

    async def _submit(self, case: Case) -> int:
        """Asks Slurm for the job. What it answers is not the last word: see `Case`."""
        job, settings = self._job, self._order.settings
        own = settings.slurm.python
        argv = [own, *self._order.argv[1:]] if own else self._order.argv
        text = job_script.text(job.name, job.folder, argv, has_own_python=bool(own))
        asks = Needs(settings.slurm.cpus, job.memory, job.seconds)
        identity, self._refused = await self._cluster.commands.submit(job.name, text, job.folder, asks, settings)
        case.not_found()
        if identity:
            case.is_submitted = True
            self._note(id=identity)
            self._log.info(
                "job_submitted",
                **self._facts(),
                cpus=asks.cpus,
                memory_bytes=asks.memory,
                time_limit_seconds=asks.seconds,
            )
        return 1

    def _take(self, look: JobLook, watch: Watch, followed: Following, case: Case) -> Finding:
        """Takes in what a look shows: its events, then what it amounts to; notes and says what changed."""
        if look.paper is not None:
            followed.read(look.paper.lines)
            if look.paper.code is not None:
                followed.has_ended(look.paper.code, look.paper.tail)
            watch.offset = look.paper.offset
        before, now = case.sight, asyncio.get_running_loop().time()
        finding = case.look(look.report, followed.said, now)
        sight = case.sight
        place = min(watch.offset, followed.place) if followed.place is not None else watch.offset
        if sight is not None:
            self._note(id=sight.id, state=sight.state, reason=sight.reason, place=place)
            followed.runs(sight.state == "RUNNING" and look.paper is not None)
            if before is None or before.state != sight.state:
                self._log.info("job_state", **self._facts(), state=sight.state, reason=sight.reason)
            if sight.restarts > (before.restarts if before is not None else 0):
                self._log.warning(
                    "job_requeued", **self._facts(), restarts=sight.restarts, message="no attempt of the step's"
                )
            hint = case.why_stuck(now)
            if hint and not followed.was_stuck:
                message = f"it waits: {sight.reason or sight.state}"
                hint = f"{hint}; what is changed in [slurm] holds for the next job: scancel {sight.id}"
                self._log.warning("job_stuck", **self._facts(), reason=sight.reason, message=message, hint=hint)
            followed.was_stuck = bool(hint)
        else:
            self._note(place=place)
        return finding

    def _outcome(self, ending: Ending, followed: Following, case: Case, *, why: str = "") -> Outcome | None:
        self._end(ending, followed.said)
        asks = Needs(self._order.settings.slurm.cpus, self._job.memory, self._job.seconds)
        outcome = job_outcomes.outcome(
            ending, case.sight, asks, followed.said, why=why, output=self._job.output if case.sight else ""
        )
        if outcome is None or outcome.result == "failed":
            return outcome
        return msgspec.structs.replace(outcome, event=outcome.event | {"job": self._job.id})

    async def _clear_up(self, case: Case) -> None:
        """What is left of it in Slurm goes: a second submission by mistake, or one that is held for ever."""
        if case.is_left_waiting:
            await self._cancel()

    async def _cancel(self, limit: float | None = None) -> None:
        problem = await self._cluster.commands.cancel(self._job.name, **({"limit": limit} if limit else {}))
        if problem:
            hint = f"scancel --name={self._job.name}"
            self._log.warning("job_not_cancelled", **self._facts(), message=problem, hint=hint)

    def _end(self, ending: Ending, outcome: Outcome | None = None) -> None:
        self._note(ended=self._clock(), ending=str(ending))
        if ending == Ending.OUTDATED or (outcome is not None and outcome.result != "failed"):
            self._cluster.discard(self._job.name, self._job.folder)

    def _note(self, **changes: Any) -> None:
        noted = msgspec.structs.replace(self._job, **changes)
        if noted != self._job:
            self._job = noted
            self._ledger.note_job(noted)

    def _facts(self) -> dict[str, Any]:
        """What every line about a job has."""
        return {"job": self._job.id or None, "job_name": self._job.name, "output": self._job.output}
