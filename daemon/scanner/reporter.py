"""Owns the output of a scanner: facts at once, remarks for the log once, signs of life, the time of the next scan."""

from collections.abc import Callable

from daemon.scanner import messages

BEAT = 1.0
"""Seconds between two signs of life in the middle of a scan."""
MOST_SAID = 10_000
"""Remarks that are remembered: whoever makes names without end gets the oldest said again, and none of our memory."""


class Voice:
    """The scanner's side of the line to the daemon; `clock` is monotonic."""

    def __init__(self, emit: Callable[[messages.FromScanner], None], clock: Callable[[], float]) -> None:
        self.emit = emit
        self.now = clock
        self.wake_at: float | None = None
        """When something should be looked at before the next scan."""
        self._said: dict[tuple[str, str], None] = {}
        self._last_beat = float("-inf")

    def wake(self, at: float) -> None:
        """Asks to look again at `at`, or sooner."""
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)

    def beat(self) -> None:
        """A sign of life, so that a long scan is not taken for a hung one."""
        now = self.now()
        if now - self._last_beat >= BEAT:
            self._last_beat = now
            self.emit(messages.Alive())

    def say(self, event: str, path: str, message: str) -> None:
        """Something for the log, once for each path and text."""
        if (path, message) not in self._said:
            self._said[path, message] = None
            if len(self._said) > MOST_SAID:
                del self._said[next(iter(self._said))]
            self.emit(messages.Said(event=event, path=path, message=message))
