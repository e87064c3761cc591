"""Owns the check for free space. An export that does not fit waits, blocks no smaller one, and uses up no attempt."""

from collections.abc import Collection
from typing import Any

from converter.common.text_columns import about
from daemon.config import units
from daemon.config.settings import Settings
from daemon.host.logs import Logger
from daemon.rules import schedule
from daemon.rules.schedule import Job


class Room:
    """Which steps wait for room, and which roots were found full; says so once a root."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._short: dict[str, str] = {}
        """Steps that do not fit, and their root."""
        self._paused: dict[str, tuple[float, float]] = {}
        """Roots on which a conversion met a full file system, since and until when (epoch seconds) nothing is started there."""
        self._full: dict[str, int] = {}
        """How often in a row a conversion met a full file system, by root."""

    def is_paused(self, root: str, now: float) -> bool:
        """Whether nothing is to be started there yet."""
        since, until = self._paused.get(root, (0.0, 0.0))
        return since <= now < until  # before `since`: the clock was set back

    def is_short(self, root: str, now: float) -> bool:
        """Whether something waits for room there."""
        return self.is_paused(root, now) or root in self._short.values()

    def pause(self, root: str, now: float, until: float, fields: dict[str, Any]) -> None:
        """A conversion met a full file system: nothing is started on `root` before `until`."""
        if root not in self._paused and root not in self._short.values():
            self._log.warning("queue_paused", root=root, **fields)
        self._paused[root] = (now, until)

    def lack(self, job: Job, *, free_bytes: int, reserved: int, settings: Settings) -> dict[str, Any] | None:
        """What speaks against starting `job` beside exports of `reserved` bytes, as fields of a log line."""
        if schedule.has_room(job, free_bytes=free_bytes, reserved=reserved, settings=settings):
            waited = self._short.pop(job.path, None) or (self._paused.pop(job.root, None) is not None)
            if waited and job.root not in self._short.values():
                self._log.info("queue_resumed", root=job.root, free_bytes=free_bytes)
            return None
        message = (
            f"{about(free_bytes)} free, the export takes about {about(job.export_bytes)}, "
            f"min_free_space is {units.show_size(settings.min_free_space)}"
        )
        return {"error": "NoSpace", "message": message, "hint": "free space, or lower min_free_space"}

    def waits(self, job: Job, fields: dict[str, Any]) -> None:
        """`job` does not fit, with nothing else running on its root."""
        if job.root not in self._paused and job.root not in self._short.values():
            self._log.warning("queue_paused", root=job.root, **fields)
        self._short[job.path] = job.root

    def keep_only(self, paths: Collection[str]) -> None:
        """Forgets steps that want nothing any more: purged, or failed otherwise."""
        self._short = {path: root for path, root in self._short.items() if path in paths}

    def was_full(self, root: str) -> int:
        """A conversion met a full file system; how often in a row."""
        self._full[root] = self._full.get(root, 0) + 1
        return self._full[root]

    def was_enough(self, root: str) -> None:
        """A conversion ended well."""
        self._full.pop(root, None)
