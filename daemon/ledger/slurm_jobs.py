"""Owns the ledger's Slurm jobs: the save and the name of each submitted job, and how it ended."""

from collections import Counter

import msgspec

from daemon.host.process import is_alive
from daemon.ledger.database import Connection

KEPT = 30 * 86_400.0
"""Seconds for which jobs that ended are remembered."""


class SlurmJob(msgspec.Struct, frozen=True, kw_only=True):
    """One job. Noted before it is submitted: whoever comes after a daemon that died then finds it by its name."""

    name: str
    path: str
    save_id: str
    root: str
    folder: str
    """Where its events, result and output lie."""
    asked: float
    """When it was noted, epoch seconds."""
    owner: str
    """The process that follows it."""
    memory: int
    """Bytes asked for."""
    seconds: float
    """Time asked for."""
    id: str = ""
    """Slurm's; empty: not known (yet)."""
    state: str = ""
    """As Slurm said it last; empty: nothing yet."""
    reason: str = ""
    place: int = 0
    """Bytes of its events that need not be read again."""
    ended: float | None = None
    ending: str = ""
    """How it ended (`daemon.runners.slurm.job_states.Ending`)."""

    @property
    def output(self) -> str:
        """Where all lies that it and Slurm print besides events; kept for two weeks where it failed."""
        return f"{self.folder}/{self.name}.output"


_COLUMNS = ", ".join(field.name for field in msgspec.structs.fields(SlurmJob))


class JobBook:
    """The part of a ledger that jobs use."""

    _db: Connection
    owner: str

    def add_job(self, job: SlurmJob) -> None:
        """Notes a job that is going to be submitted; forgets those that ended long ago."""
        self._db.execute("DELETE FROM jobs WHERE ended < ?", (job.asked - KEPT,))
        marks = ", ".join("?" for _ in msgspec.structs.fields(SlurmJob))
        self._db.execute(f"INSERT INTO jobs ({_COLUMNS}) VALUES ({marks})", msgspec.structs.astuple(job))

    def note_job(self, job: SlurmJob) -> None:
        """Notes what is known of it now."""
        self._db.execute(
            "UPDATE jobs SET owner = ?, id = ?, state = ?, reason = ?, place = ?, ended = ?, ending = ? WHERE name = ?",
            (job.owner, job.id, job.state, job.reason, job.place, job.ended, job.ending, job.name),
        )

    def jobs_left(self) -> list[SlurmJob]:
        """Jobs that have not ended and that no living process but this one follows."""
        found = self._db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE ended IS NULL ORDER BY asked").fetchall()
        jobs = [SlurmJob(**dict(row)) for row in found]
        return [job for job in jobs if job.owner == self.owner or not is_alive(job.owner)]

    def job_endings(self, path: str, save_id: str) -> Counter[str]:
        """How the jobs of this save ended so far."""
        found = self._db.execute("SELECT ending FROM jobs WHERE path = ? AND save_id = ?", (path, save_id))
        return Counter(str(row[0]) for row in found)

    def last_jobs(self) -> dict[str, SlurmJob]:
        """By path of the step, the last job of its newest save; none in a ledger of a time before there were jobs."""
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone():
            return {}
        columns = ", ".join(f"j.{field.name}" for field in msgspec.structs.fields(SlurmJob))
        found = self._db.execute(
            f"SELECT {columns} FROM jobs j JOIN steps s ON s.path = j.path AND s.save_id = j.save_id AND s.current ORDER BY j.asked"
        )
        return {row["path"]: SlurmJob(**dict(row)) for row in found.fetchall()}

    def job_states(self) -> Counter[str]:
        """How many jobs that have not ended are in each state of Slurm's."""
        return Counter(str(row[0]) for row in self._db.execute("SELECT state FROM jobs WHERE ended IS NULL"))
