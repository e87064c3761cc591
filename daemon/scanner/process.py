"""Owns the process that touches one root (`python -P -m daemon.scanner.process`). No other process does.

If it hangs, nothing else hangs. The daemon kills it when it is silent for too long. Configuration and commands come as
JSON lines on stdin, and facts leave as JSON lines on stdout (see `messages`). It ends when its stdin is closed.
"""

import os
import queue
import signal
import sys
import threading
import time
import traceback

import msgspec

from daemon.host import mounts, process
from daemon.scanner import messages
from daemon.scanner.messages import Answer, Begin, Config, Known, Look, Sweep
from daemon.scanner.root_scan import Survey

DEBOUNCE = 0.05
"""Seconds in which events are gathered before looking."""


class Changed(msgspec.Struct, frozen=True):
    """An event of a watched folder; None: events were lost."""

    folder: str | None


class Watcher:
    """inotify where it sees every change, until its limits are met; then, and elsewhere, nothing."""

    def __init__(self, config: Config, events: "queue.SimpleQueue[messages.ToScanner | Changed | None]") -> None:
        self._events = events
        self._watches = None
        self._sees_all = mounts.has_events(os.path.realpath(config.root))
        if config.observer == "inotify" or (config.observer == "auto" and self._sees_all):
            from daemon.scanner.inotify import Watches

            try:
                self._watches = Watches(lambda folder: self._events.put(Changed(folder)))
            except OSError as error:
                self._fall_back(config.root, error)

    @property
    def name(self) -> str:
        """What is used: inotify or polling."""
        return "inotify" if self._watches else "polling"

    def add(self, folder: str) -> bool:
        """Watches `folder`, where it can be; whether every change of it since it was listed came as an event.

        A folder that is gone shows when it is listed.
        """
        if self._watches is not None:
            try:
                return self._watches.add(folder) and self._sees_all
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                pass
            except OSError as error:
                self._fall_back(folder, error)
        return False

    def keep_only(self, folders: set[str]) -> None:
        """Drops the watches of folders that need none any more."""
        if self._watches is not None:
            self._watches.keep_only(folders)

    def _fall_back(self, folder: str, error: OSError) -> None:
        if self._watches is not None:
            self._watches.close()
            self._watches = None
        message = f"inotify cannot be used ({error.strerror}; see fs.inotify.max_user_watches): polling goes on alone"
        emit(messages.Said(event="observer_fallback", path=folder, message=message))


def emit(message: messages.FromScanner) -> None:
    """One line on stdout; the daemon's end of it is the end of this process."""
    sys.stdout.buffer.write(messages.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _read_commands(into: "queue.SimpleQueue[messages.ToScanner | Changed | None]") -> None:
    for line in sys.stdin.buffer:
        into.put(messages.to_scanner(line))
    into.put(None)


def _read_start() -> tuple[Config, dict[str, Answer]]:
    config: Config | None = None
    known: dict[str, Answer] = {}
    for line in sys.stdin.buffer:
        match messages.to_scanner(line):
            case Config() as config:
                pass
            case Known(path=path, answer=answer):
                known[path] = answer
            case Begin():
                break
    assert config is not None
    return config, known


def main() -> int:
    """Scans every `poll_interval`, sooner where something changed, until stdin ends."""
    process.die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config, known = _read_start()
    events: queue.SimpleQueue[messages.ToScanner | Changed | None] = queue.SimpleQueue()
    watcher = Watcher(config, events)
    survey = Survey(config, emit, known=known, watch=watcher.add)
    emit(messages.Started(observer=watcher.name, mount=mounts.of(os.path.realpath(config.root)).type))
    threading.Thread(target=_read_commands, args=(events,), name="commands", daemon=True).start()
    next_scan, is_first = 0.0, True
    while True:
        now = time.monotonic()
        if now >= min(next_scan, survey.wake_at or next_scan):
            survey.scan()
            watcher.keep_only(survey.folders())
            if is_first:
                process.settle_memory()
                is_first = False
            next_scan = max(next_scan, now) + config.poll_interval if now >= next_scan else next_scan
        try:
            first = events.get(timeout=max(0.0, min(next_scan, survey.wake_at or next_scan) - time.monotonic()))
        except queue.Empty:
            continue
        folders: dict[str, None] = {}
        for event in _gather(first, events):
            match event:
                case None:
                    return 0
                case Changed(folder=None):
                    survey.events_were_lost()
                    next_scan = 0.0
                case Changed(folder=str() as folder):
                    folders[folder] = None
                case Look(path=path):
                    survey.look(path, is_known=event.is_known)
                case Sweep(folder=folder):
                    survey.sweep(folder)
                case _:
                    pass
        for folder in folders:
            survey.changed(folder)


def _gather(
    first: messages.ToScanner | Changed | None, events: "queue.SimpleQueue[messages.ToScanner | Changed | None]"
) -> list[messages.ToScanner | Changed | None]:
    """`first` and, if it is an event, what follows it within a moment: a save is many events."""
    gathered = [first]
    ends = time.monotonic() + (DEBOUNCE if isinstance(first, Changed) else 0.0)
    while True:
        try:
            gathered.append(
                events.get(timeout=max(0.0, ends - time.monotonic()))
                if ends > time.monotonic()
                else events.get_nowait()
            )
        except queue.Empty:
            return gathered


if __name__ == "__main__":
    try:
        status = main()
    except BrokenPipeError:
        status = 0
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        status = 1
    # Threads may hang in the file system: leave without waiting for them.
    sys.stdout = None
    os._exit(status)
