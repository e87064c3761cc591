"""Owns the content of calls of `on_success` and `on_failure`. Each is put into the outbox before the step's new state.

So nothing is lost if the daemon dies in between. A step that is judged again is enqueued again, with the same key.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from daemon.config import units
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Row

NON_FINITE = "NonFiniteTensor"
"""The converter's error for NaN or infinity in the weights."""


class HookEvents:
    """Enqueues calls of hooks; `settings_of` gives a root's settings."""

    def __init__(self, ledger: Ledger, *, settings_of: Callable[[str], Settings], clock: Callable[[], float]) -> None:
        self._ledger, self._settings_of, self._clock = ledger, settings_of, clock

    def succeeded(self, row: Row, *, started: float, fields: dict[str, Any]) -> None:
        """The attempt that began at `started` (epoch seconds) published the step; `fields` are those of its line.

        Called before the ledger has its result: an attempt that has one was told.
        """
        self._tell("on_success", row, str(started), {"reason": "converted", **fields})

    def found_published(self, row: Row, *, before: float | None = None) -> None:
        """The step is published, though our last attempt at it (before that of `before`) did not live to say so."""
        last = self._ledger.last_attempt(row.path, row.save_id, before=before)
        if last is not None and last.result in ("failed", "interrupted"):  # else it was told, or is going to be
            self._tell("on_success", row, str(last.started), {"reason": "found", "output": row.output})

    def failed(
        self, row: Row, *, attempt: int, started: float | None, quarantined: bool, retry_at: float | None, fields: dict[str, Any]
    ) -> None:  # fmt: skip
        """An attempt failed, or (`attempt` 0) none can be made; `retry_at` is epoch seconds."""
        reason = "non_finite" if fields.get("error") == NON_FINITE else "quarantined" if quarantined else "failed"
        facts = {
            "reason": reason,
            "attempt": attempt,
            "quarantined": quarantined,
            "retry_at": None if retry_at is None else units.utc(retry_at),
            **fields,
        }
        what = str(fields.get("message")) if started is None else str(started)
        self._tell("on_failure", row, what, facts)

    def _tell(self, hook: str, row: Row, what: str, facts: dict[str, Any]) -> None:
        if not getattr(self._settings_of(row.root), hook):
            return
        key = hashlib.sha256("\0".join((hook, row.path, row.save_id, what)).encode()).hexdigest()[:32]
        now = self._clock()
        about = {"root": row.root, "run": row.run_name, "step": row.step, "path": row.path, "save_id": row.save_id}
        self._ledger.enqueue(key, hook, row.root, {"event": hook, "key": key, "timestamp": units.utc(now), **about, **facts}, now)  # fmt: skip
