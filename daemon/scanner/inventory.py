"""Owns the inventory of a run: the steps and the exports in its last listing.

A new name is believed at once. A missing name is believed at the second listing, because a rename on another NFS client
shows as a moment with neither name.
"""

from collections.abc import Iterator

from daemon.scanner.messages import Inventory
from daemon.scanner.step_scan import SECOND_LOOK

MOST = 3000
"""Numbers in one message: a line is cut at 64 KiB."""

_NONE: frozenset[int] = frozenset()


class InventoryTrack:
    """The inventory of one run, from listing to listing."""

    __slots__ = ("_exports", "_missing_since", "_steps", "run")

    def __init__(self, run: str) -> None:
        self.run = run
        self._steps: frozenset[int] | None = None
        """As they were said; None: nothing was said yet."""
        self._exports = _NONE
        self._missing_since: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is there, and that was said."""
        return not self._steps and not self._exports

    def look(self, steps: frozenset[int], exports: frozenset[int], now: float) -> tuple[list[Inventory], float | None]:
        """The messages that a listing with these steps and exports makes, and when to look again (None: no need)."""
        said = (self._steps or _NONE, self._exports)
        wake = None
        if said[0] <= steps and said[1] <= exports:
            self._missing_since = None
        else:
            since = self._missing_since = now if self._missing_since is None else self._missing_since
            if now - since < SECOND_LOOK:
                steps, exports, wake = steps | said[0], exports | said[1], since + SECOND_LOOK
            else:
                self._missing_since = None
        if self._steps is not None and (steps, exports) == said:
            return [], wake
        self._steps, self._exports = steps, exports
        return list(_messages(self.run, sorted(steps), sorted(exports))), wake


def _messages(run: str, steps: list[int], exports: list[int]) -> Iterator[Inventory]:
    numbers = [*((step, False) for step in steps), *((step, True) for step in exports)]
    parts = [numbers[at : at + MOST] for at in range(0, len(numbers), MOST)] or [[]]
    for part in parts:
        yield Inventory(
            run=run,
            steps=tuple(number for number, is_export in part if not is_export),
            exports=tuple(number for number, is_export in part if is_export),
            is_last=part is parts[-1],
        )
