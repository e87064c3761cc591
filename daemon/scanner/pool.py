"""Owns the watchers, one for each root: it starts and ends them by the configuration, and passes requests to all."""

import asyncio
from collections.abc import Callable, Iterator, Mapping

from daemon.config.settings import Settings
from daemon.scanner.client import RootWatcher


class Watchers(Mapping[str, RootWatcher]):
    """By root. `make` makes one; `ended` is told of a root that is watched no longer."""

    def __init__(self, make: Callable[[str, Settings], RootWatcher], ended: Callable[[str], None]) -> None:
        self._make, self._ended = make, ended
        self._watchers: dict[str, RootWatcher] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.began: set[str] = set()
        """Roots whose first scan began, or which are known to be away."""

    def __getitem__(self, root: str) -> RootWatcher:
        return self._watchers[root]

    def __iter__(self) -> Iterator[str]:
        return iter(self._watchers)

    def __len__(self) -> int:
        return len(self._watchers)

    async def use(self, settings: Settings) -> None:
        """Watches the roots of `settings` and no others, each as they say; what is as it was goes on."""
        await self._stop(
            [
                root
                for root, watcher in self._watchers.items()
                if root not in settings.roots or watcher.settings != settings.for_root(root)
            ]
        )
        for root in settings.roots:
            if root not in self._watchers:
                self._watchers[root] = watcher = self._make(root, settings.for_root(root))
                self._tasks[root] = asyncio.create_task(watcher.run())

    async def stop(self) -> None:
        """Watches nothing any more."""
        await self._stop(list(self._watchers))

    async def _stop(self, roots: list[str]) -> None:
        tasks = [self._tasks.pop(root) for root in roots]
        for root, task in zip(roots, tasks, strict=True):
            task.cancel()
            del self._watchers[root]
            self._ended(root)
        await asyncio.gather(*tasks, return_exceptions=True)

    def settings_of(self, root: str) -> Settings | None:
        """What a root is watched with; None if it is not."""
        watcher = self._watchers.get(root)
        return watcher.settings if watcher is not None else None

    def look_again(self, path: str, *, is_known: bool = False) -> None:
        """Looks at a path below a root, or at a root below it, as if for the first time; `is_known`: see `messages.Look`."""
        for root, watcher in self._watchers.items():
            if f"{path}/".startswith(f"{root.rstrip('/')}/") or f"{root}/".startswith(f"{path.rstrip('/')}/"):
                watcher.look(path, is_known=is_known)

    @property
    def away(self) -> int:
        """Roots that cannot be listed now."""
        return sum(watcher.is_reachable is False for watcher in self._watchers.values())

    @property
    def have_looked(self) -> bool:
        """Whether every root was looked at, or could not be."""
        return all(watcher.is_reachable is not None for watcher in self._watchers.values())

    @property
    def settle(self) -> bool:
        """Whether something below a root will be known within seconds."""
        return any(watcher.is_reachable and watcher.settling for watcher in self._watchers.values())
