"""Owns inotify: it watches folders with one descriptor and one thread of watchdog.

It does not use watchdog's Observer, which starts a thread for each folder, or watches every finished step below a root.
An event only causes a rescan. The periodic scan alone is enough.
"""

import os
from collections.abc import Callable

from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchDescriptor

_MASK = Mask(
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_ONLYDIR
    | InotifyConstants.IN_DONT_FOLLOW
)


class Watches:
    """Calls `changed(folder)`, from another thread, when something in a watched folder changes.

    `changed(None)` means that events were lost: look everywhere.
    """

    def __init__(self, changed: Callable[[str | None], None]) -> None:
        self._changed = changed
        self._paths: dict[WatchDescriptor, str] = {}
        self._descriptors: dict[str, WatchDescriptor] = {}
        self._inotify = InotifyFD()
        self._inotify.start()

    def add(self, folder: str) -> bool:
        """Watches `folder` too; whether it was watched already. Raises OSError (ENOSPC: `fs.inotify.max_user_watches`)."""
        was_watched = folder in self._descriptors
        if not was_watched:
            wd = self._inotify.add_callback(os.fsencode(folder), _MASK, self, CallbackId(id(self)))
            # A folder that was renamed keeps its descriptor: the old path must not remove it later.
            self._descriptors.pop(self._paths.get(wd, ""), None)
            self._paths[wd] = folder
            self._descriptors[folder] = wd
        return was_watched

    def remove(self, folder: str) -> None:
        """Watches `folder` no longer."""
        wd = self._descriptors.pop(folder, None)
        if wd is not None and self._paths.pop(wd, None) is not None:
            self._inotify.remove_callbacks([(wd, CallbackId(id(self)))])

    def keep_only(self, folders: set[str]) -> None:
        """Drops what is watched and not in `folders`."""
        for folder in [folder for folder in self._descriptors if folder not in folders]:
            self.remove(folder)

    def close(self) -> None:
        """Ends the thread and all watches."""
        self._inotify.stop()

    # What watchdog's InotifyFD calls, in its thread.
    def on_event(self, event: InotifyEvent) -> None:
        """Something in a watched folder changed."""
        if folder := self._paths.get(event.wd):
            self._changed(folder)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """A watched folder is gone."""
        if folder := self._paths.pop(wd, None):
            self._descriptors.pop(folder, None)
            self._changed(os.path.dirname(folder))

    def on_queue_overflow(self) -> None:
        """The kernel dropped events."""
        self._changed(None)
