"""Owns the update of the ledger from scanners' inventories. A step that no inventory names is gone."""

from collections.abc import Callable

from daemon.ledger.ledger import Ledger
from daemon.scanner.messages import FromScanner, Inventory, Scanned, Started


class Inventories:
    """The runs that each root's present scanner named, and what came of an inventory in parts."""

    def __init__(self, ledger: Ledger, max_depth: Callable[[str], int]) -> None:
        """`max_depth` of a root: what lies deeper is not listed, which says nothing of it."""
        self._ledger, self._max_depth = ledger, max_depth
        self._named: dict[str, set[str] | None] = {}
        """By root; None once what was not named is known to be gone."""
        self._parts: dict[tuple[str, str], tuple[set[int], set[int]]] = {}
        """By root and run."""

    def on_message(self, root: str, message: FromScanner) -> None:
        """Takes note of what a scanner of `root` reports."""
        named = self._named.setdefault(root, set())
        match message:
            case Started():
                self._named[root] = set()
                self._parts = {key: part for key, part in self._parts.items() if key[0] != root}
            case Inventory(run=run):
                steps, exports = self._parts.setdefault((root, run), (set(), set()))
                steps.update(message.steps)
                exports.update(message.exports)
                if message.is_last:
                    del self._parts[root, run]
                    self._ledger.take_inventory(run, steps, exports)
                    if named is not None:
                        named.add(run)
            case Scanned(is_whole=True) if named is not None:
                self._ledger.nothing_left(root, but=named, max_depth=self._max_depth(root))
                self._named[root] = None
            case _:
                pass
