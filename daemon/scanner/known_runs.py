"""Owns the set of existing runs, from the reports of scanners. The ledger also remembers deleted runs."""

from daemon.scanner.messages import FromScanner, Run, RunGone, Scanned, Started, Step


class Presence:
    """The runs below each root."""

    def __init__(self) -> None:
        self._there: dict[str, set[str]] = {}
        """By root, as of its last whole scan and what was reported since."""
        self._found: dict[str, set[str]] = {}
        """By root, what its present scanner reported."""

    def on_message(self, root: str, message: FromScanner) -> bool:
        """Takes note of what a scanner of `root` reports (a new one reports every run again); whether runs may be gone."""
        match message:
            case Started():
                self._found[root] = set()
            case Run(run=run) | Step(run=run):
                for runs in self._of(root):
                    runs.add(run)
            case RunGone(run=run):
                for runs in self._of(root):
                    runs.discard(run)
            case Scanned():
                self._there[root] = self._found.setdefault(root, set())
            case _:
                return False
        return isinstance(message, RunGone | Scanned)

    def _of(self, root: str) -> list[set[str]]:
        return [runs[root] for runs in (self._there, self._found) if root in runs]

    def runs(self, root: str) -> set[str] | None:
        """Paths of the runs below `root`; None until it was scanned once."""
        return self._there.get(root)

    def forget_root(self, root: str) -> None:
        """A root is watched no longer."""
        self._there.pop(root, None)
        self._found.pop(root, None)
