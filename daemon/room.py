"""Owns which roots have room: one where an export does not fit is paused, and no attempt is burned."""

from typing import Any

from daemon import schedule, units
from daemon.logs import Logger
from daemon.schedule import Job
from daemon.settings import Settings

LOOK_AGAIN = 5.0
"""Seconds between two looks at whether a full root has room again."""


class Room:
    """Pauses and resumes roots, and says so."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._paused: dict[str, float] = {}
        """Roots without room, and until when (epoch seconds) nothing is started there."""
        self._full: dict[str, int] = {}
        """How often in a row a conversion met a full file system, by root."""

    def is_paused(self, root: str, now: float) -> bool:
        """Whether nothing is to be started there yet."""
        return self._paused.get(root, 0.0) > now

    def pause(self, root: str, until: float, fields: dict[str, Any]) -> None:
        """Nothing is started on `root` before `until`; said once."""
        if root not in self._paused:
            self._log.warning("queue_paused", root=root, **fields)
        self._paused[root] = until

    def lack(self, job: Job, *, free_bytes: int, reserved: int, settings: Settings) -> dict[str, Any] | None:
        """What speaks against starting `job` beside exports of `reserved` bytes, as fields of a log line."""
        if schedule.has_room(job, free_bytes=free_bytes, reserved=reserved, settings=settings):
            if self._paused.pop(job.root, None) is not None:
                self._log.info("queue_resumed", root=job.root, free_bytes=free_bytes)
            return None
        message = (
            f"{units.about(free_bytes)} free, the export takes about {units.about(job.export_bytes)}, "
            f"min_free_space is {units.show_size(settings.min_free_space)}"
        )
        return {"error": "NoSpace", "message": message, "hint": "free space, or lower min_free_space"}

    def was_full(self, root: str) -> int:
        """A conversion met a full file system; how often in a row."""
        self._full[root] = self._full.get(root, 0) + 1
        return self._full[root]

    def was_enough(self, root: str) -> None:
        """A conversion ended well."""
        self._full.pop(root, None)
