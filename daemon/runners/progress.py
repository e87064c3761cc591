"""Owns the progress of running conversions, from the last event of each converter. It is in memory only."""

from collections.abc import Callable
from typing import Any

Listener = Callable[[dict[str, Any]], None]


class Progress:
    """How far one attempt is. Times are epoch seconds."""

    def __init__(self, began: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.began = began
        self.phase = ""
        """Empty until its converter reports one."""
        self.phase_began = began
        self.done = self.total = 0
        """Bytes; of the phase `forward` layers, of a hook 0."""

    def then(self, listener: Listener) -> Listener:
        """What takes note of an event and hands it on."""

        def take(event: dict[str, Any]) -> None:
            self._note(event)
            listener(event)

        return take

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] != "conversion_progress":
            return
        if (phase := str(event.get("phase", ""))) != self.phase:
            self.phase, self.phase_began = phase, self._clock()
        done, total = event.get("bytes_done"), event.get("bytes_total")
        self.done, self.total = (count if isinstance(count, int) else 0 for count in (done, total))
