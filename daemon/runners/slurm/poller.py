"""Owns the polling of jobs: one `squeue` and one listing of the shared folder for all of them, at a limited rate.

It polls only while a job is watched. If the controller does not answer, or the folder cannot be read, it reports this
once and continues to poll. The watchers of jobs learn that the state is unknown, and decide nothing from it.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from daemon.host import process
from daemon.host.logs import Logger
from daemon.runners.counters import Tally
from daemon.runners.slurm.calls import call
from daemon.runners.slurm.commands import Commands
from daemon.runners.slurm.job_state_machine import JobReport
from daemon.runners.slurm.job_states import Sight

NO_HISTORY = 600.0
"""Seconds for which accounting that does not answer is not asked again."""
DAY = 86_400.0
_MOST_ANSWER = 64 << 20
_LAST = 1.0
"""Seconds for removing files at a stop."""


class Paper(msgspec.Struct, frozen=True):
    """What a job has written since the last look."""

    lines: list[tuple[int, str]]
    """Where each begins, and its text."""
    offset: int
    code: int | None
    """The converter's exit code, once it has ended and all its lines were read."""
    tail: str


class _Shelf(msgspec.Struct, frozen=True):
    """The answer of `shared_folder`."""

    jobs: dict[str, Paper] = {}
    problem: str = ""


class JobLook(NamedTuple):
    """One look at a job, from both sides."""

    report: JobReport
    paper: Paper | None


class Watch:
    """A job that is watched."""

    def __init__(self, name: str, folder: str, offset: int) -> None:
        self.name, self.folder = name, folder
        self.offset = offset
        """Where its events are read from next."""
        self._looks: asyncio.Queue[JobLook] = asyncio.Queue()

    async def look(self) -> JobLook:
        """The next look. Whoever takes it moves `offset` before it waits for anything else."""
        return await self._looks.get()

    @property
    def is_taken(self) -> bool:
        """Whether the last look was taken: only then is another one made."""
        return self._looks.empty()

    def put(self, look: JobLook) -> None:
        """A look was made."""
        self._looks.put_nowait(look)


class Cluster:
    """One cluster; `poll` gives the seconds between two looks."""

    def __init__(self, commands: Commands, log: Logger, tally: Tally, *, poll: Callable[[], float]) -> None:
        self.commands = commands
        self._log, self._tally, self._poll = log, tally, poll
        self._watches: dict[str, Watch] = {}
        self._rubbish: dict[str, set[str]] = {}
        """By folder, names of jobs whose files are to go."""
        self._cleaned: dict[str, float] = {}
        self._unreadable: set[str] = set()
        self._missing: set[str] = set()
        """Names that the controller did not know at the last look."""
        self._no_history_until = float("-inf")
        self._task: asyncio.Task[None] | None = None

    @property
    def is_away(self) -> bool:
        """Whether the controller is known not to answer."""
        return self._tally.is_slurm_up is False

    @contextlib.contextmanager
    def watching(self, name: str, folder: str, offset: int) -> Iterator[Watch]:
        """Looks at a job from now on, until it is left."""
        watch = self._watches[name] = Watch(name, folder, offset)
        self._wake()
        try:
            yield watch
        finally:
            del self._watches[name]

    def discard(self, name: str, folder: str) -> None:
        """The files of a job are of no use any more."""
        self._rubbish.setdefault(folder, set()).add(name)
        self._wake()

    async def stop(self) -> None:
        """Looks no more; removes what is to go, if the folder answers soon."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST):
                await self._ask_shelves([])

    def _wake(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_on())

    async def _look_on(self) -> None:
        while self._watches or self._rubbish:
            watches = [watch for watch in self._watches.values() if watch.is_taken]
            sights, papers = await asyncio.gather(self._ask_slurm(watches), self._ask_shelves(watches))
            for watch in watches:
                paper = papers.get(watch.name)
                shown = None if sights is None else tuple(sights.get(watch.name, ()))
                watch.put(JobLook(JobReport(shown, paper is not None), paper))
            await asyncio.sleep(self._poll())
        self._tally.is_slurm_up = None

    # Slurm
    async def _ask_slurm(self, watches: list[Watch]) -> dict[str, list[Sight]] | None:
        names = [watch.name for watch in watches]
        if not names:
            return {}
        sights = await self.commands.queue(names)
        if isinstance(sights, str):
            if not self.is_away:
                hint = "jobs go on; nothing is submitted until it answers"
                self._log.error("slurm_unreachable", error="MachineFailure", message=sights, hint=hint)
            self._tally.is_slurm_up = False
            return None
        if self.is_away:
            self._log.info("slurm_recovered", jobs=len(self._watches))
        self._tally.is_slurm_up = True
        now = asyncio.get_running_loop().time()
        missing = {name for name in names if name not in sights}
        forgotten, self._missing = (
            sorted(missing & self._missing),
            missing,
        )  # at a second look: it may be being submitted
        if forgotten and now >= self._no_history_until:
            history = await self.commands.history(forgotten)
            if isinstance(history, str):
                self._no_history_until = now + NO_HISTORY
            else:
                sights |= history
        return sights

    # The shared folder
    async def _ask_shelves(self, watches: list[Watch]) -> dict[str, Paper]:
        """By job, what it has written; those of a folder that cannot be read are missing."""
        folders = {watch.folder for watch in watches} | self._rubbish.keys()
        found: dict[str, Paper] = {}
        for folder in sorted(folders):
            found |= await self._ask_shelf(folder, {w.name: w.offset for w in watches if w.folder == folder})
        return found

    async def _ask_shelf(self, folder: str, offsets: dict[str, int]) -> dict[str, Paper]:
        now = asyncio.get_running_loop().time()
        is_due = now - self._cleaned.get(folder, float("-inf")) > DAY
        asked: dict[str, Any] = {"folder": folder, "offsets": offsets, "remove": sorted(self._rubbish.get(folder, ()))}
        asked |= {"keep": sorted(self._watches) if is_due else None}
        argv = process.python("daemon.runners.slurm.shared_folder")
        answer = await call(argv, process.environment(), stdin=json.dumps(asked).encode())
        problem = answer.message if answer.code != 0 or len(answer.output) > _MOST_ANSWER else ""
        said = _Shelf()
        if not problem:
            try:
                said = msgspec.json.decode(answer.output, type=_Shelf)
                problem = said.problem
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                problem = f"the look into it failed: {error}"
        if problem:
            self._say_unreadable(folder, problem)
            if not offsets:  # rubbish alone is not worth asking again; it goes by its age
                self._rubbish.pop(folder, None)
            return {}
        if folder in self._unreadable:
            self._unreadable.discard(folder)
            self._log.info("shared_recovered", path=folder)
        gone = self._rubbish.pop(folder, set()) - set(asked["remove"])
        if gone:
            self._rubbish[folder] = gone
        if is_due:
            self._cleaned[folder] = now
        return said.jobs

    def _say_unreadable(self, folder: str, problem: str) -> None:
        if folder not in self._unreadable:
            hint = "see that slurm.shared is there, for this user; jobs go on, their results are seen later"
            self._log.error("shared_unreachable", path=folder, error="MachineFailure", message=problem, hint=hint)
        self._unreadable.add(folder)
