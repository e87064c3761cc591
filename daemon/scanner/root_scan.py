"""Owns the scan of one root: which folders are listed, which steps are entered, what is reported of them.

The cost depends on the changes. A folder with the same names as before is not scanned again, and a finished step only
at rescans (the newest step of each run at every scan). A step is reported as gone at the second scan, because a rename
on another NFS client shows as a moment with neither name.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from converter.common import errors, names_on_disk
from converter.common.metadata_limits import Limits
from converter.publish import stale_files
from daemon.scanner import folder_rules, messages
from daemon.scanner.inventory import InventoryTrack
from daemon.scanner.lock_ages import Sightings
from daemon.scanner.messages import Answer, Config
from daemon.scanner.probe_client import probe_step
from daemon.scanner.reporter import Voice
from daemon.scanner.run_scan import RunTrack
from daemon.scanner.step_scan import SECOND_LOOK, Probe


class _Listed(NamedTuple):
    """A folder as it was listed; hashes of names, since there may be hundreds of thousands."""

    names: int
    changed_at: int
    """Its mtime (ns), which changes with what a name stands for; on NFS half a minute late, so asked at rescans only."""
    folder: folder_rules.Folder


class Survey:
    """Looks at one root and emits what it sees.

    `watch(folder)` is told of every folder that is listed, and says whether all its changes since came to `changed`.
    """

    def __init__(
        self,
        config: Config,
        emit: Callable[[messages.FromScanner], None],
        *,
        known: dict[str, Answer] | None = None,
        watch: Callable[[str], bool] = lambda folder: False,
        look_into: Probe | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._voice = Voice(emit, clock)
        self._sightings = Sightings(clock)
        self._known = known if known is not None else {}
        self._watch = watch
        self._look_into = look_into or self._probe
        self._listed: dict[str, _Listed] = {}
        self._earlier: dict[str, _Listed] = {}
        """During a rescan: what was listed before it."""
        self._changed: set[str] = set()
        """Watched folders in which something happened since they were listed."""
        self._failed: set[str] = set()
        """Folders that could not be listed in this scan: what is below them is not gone."""
        self._runs: dict[str, RunTrack] = {}
        self._inventories: dict[str, InventoryTrack] = {}
        """Of runs, and of folders in which only exports are left of one."""
        self._last_full = float("-inf")
        self._root_failed_since: float | None = None

    @property
    def wake_at(self) -> float | None:
        """When something should be looked at before the next scan."""
        return self._voice.wake_at

    def folders(self) -> set[str]:
        """What should be watched: every folder that is listed, and open steps."""
        return set(self._listed) | {
            step.path for run in self._runs.values() for step in run.steps.values() if step.is_open
        }

    def scan(self) -> None:
        """Looks at the whole root, once."""
        began = self._voice.now()
        self._voice.wake_at = None
        try:
            os.listdir(self._config.root)
            space = os.statvfs(self._config.root)
        except OSError as error:
            self._root_failed(error, began)
            return
        self._root_failed_since = None
        self._voice.emit(messages.Scanning(free_bytes=space.f_bavail * space.f_frsize))
        full = began - self._last_full >= self._config.rescan_interval
        if full:
            self._last_full = began
            self._earlier, self._listed = self._listed, {}
            self._changed.clear()
        self._failed.clear()
        found, walked = set(), set()
        for path, folder in self._walk(self._config.root, self._config.max_depth, into_runs=full):
            walked.add(path)
            if folder.is_run:
                found.add(path)
                self._look_at_run(path, folder, full)
            elif folder.published or names_on_disk.SUBDIRECTORY in folder.subfolders or path in self._inventories:
                self._take_inventory(path, folder, self._below(path, folder))
        for path in [path for path in self._inventories if path not in walked]:
            if not self._is_unseen(path, found, full):
                self._take_inventory(path, None, None)
        for path in [path for path in self._runs if path not in found and not self._is_unseen(path, found, full)]:
            if self._runs[path].missing():
                del self._runs[path]
                self._voice.emit(messages.RunGone(run=path))
        self._earlier = {}
        if not self._known:
            self._known.clear()  # emptied one by one, it still holds the room that all of them took
        self._voice.emit(
            messages.Scanned(
                seconds=round(self._voice.now() - began, 4),
                runs=len(self._runs),
                steps=sum(len(run.steps) for run in self._runs.values()),
                settling=sum(run.settling() for run in self._runs.values()),
                is_whole=full and not self._failed,
            )
        )

    def changed(self, folder: str) -> None:
        """Something in `folder` changed: looks there, now."""
        self._changed.add(folder)
        parent, name = os.path.split(folder)
        run = self._runs.get(parent)
        if run is not None and (step := names_on_disk.step_number(name)) in run.steps:
            assert step is not None
            run.look_at(step)
            return
        if run is not None and name == names_on_disk.SUBDIRECTORY:
            folder = parent
        root = self._config.root
        depth = self._config.max_depth - (0 if folder == root else os.path.relpath(folder, root).count("/") + 1)
        for path, found in self._walk(folder, depth, into_runs=False):
            if found.is_run:
                self._look_at_run(path, found, full=False)

    def events_were_lost(self) -> None:
        """Something changed, nobody knows where: the next scan lists every folder."""
        self._changed.update(self._listed)

    def look(self, path: str, *, is_known: bool = False) -> None:
        """Looks at a run or a step as if for the first time, unless `is_known`, and reports it whatever it is."""
        for run in self._runs.values():
            for number, step in list(run.steps.items()):
                if step.path == path or step.path.startswith(path.rstrip("/") + "/"):
                    if is_known:
                        run.report_again(number)
                    else:
                        step.forget()
                        run.look_at(number, full=True)

    def sweep(self, folder: str) -> None:
        """Removes what dead owners of ours left in `folder`."""
        names: list[str] = []
        try:
            names = stale_files.sweep(Path(folder), is_stale=self._sightings.is_stale, kept=self._tell_kept)
        except (OSError, errors.ConversionError) as error:
            self._voice.say("sweep_failed", folder, str(error))
        self._voice.emit(messages.Swept(folder=folder, names=tuple(names)))

    def _tell_kept(self, kept: Path, why: str) -> None:
        self._voice.say("files_kept", str(kept), f"{why}; they are kept here: move or remove them yourself")

    # Folders
    def _walk(self, path: str, depth: int, *, into_runs: bool) -> Iterator[tuple[str, folder_rules.Folder]]:
        """Every folder from `path` down, `depth` levels; runs within runs (`ft-replicat-*`) only with `into_runs`."""
        folder = self._list(path)
        if folder is None:
            return
        yield path, folder
        if depth > 0 and (into_runs or not folder.is_run):
            for name in folder.subfolders:
                if not (folder.is_run and name == names_on_disk.SUBDIRECTORY):
                    yield from self._walk(f"{path.rstrip('/')}/{name}", depth - 1, into_runs=into_runs)

    def _list(self, path: str) -> folder_rules.Folder | None:
        """What `path` holds; None where it cannot be listed just now."""
        self._voice.beat()
        try:
            is_watched = self._watch(path)
            before, earlier = self._listed.get(path), self._earlier.get(path)
            if is_watched and before is not None and path not in self._changed:
                return before.folder
            self._changed.discard(path)
            names = hash("/".join(os.listdir(path)))
            if before is not None and before.names == names:
                return before.folder
            changed_at = os.stat(path).st_mtime_ns
            if earlier is not None and (earlier.names, earlier.changed_at) == (names, changed_at):
                self._listed[path] = earlier
                self._sweep_leftovers(path, earlier.folder)
                return earlier.folder
            with os.scandir(path) as entries:
                folder = folder_rules.interpret(map(folder_rules.Entry.of, entries))
        except OSError as error:
            self._listed.pop(path, None)
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                self._failed.add(path)
                self._voice.say("folder_unreadable", path, str(error))
            return None
        for name in folder.links:
            self._voice.say(
                "link_not_followed", os.path.join(path, name), "symbolic links inside a root are not followed"
            )
        for name in folder.lookalikes:
            self._voice.say(
                "step_passed_over", os.path.join(path, name), "its name is not step-<number>: it is left alone"
            )
        for name in folder.unreadable:
            self._voice.say(
                "name_not_utf8", os.path.join(path, ascii(name)[1:-1]), "names that are not UTF-8 are left alone"
            )
        self._listed[path] = _Listed(names, changed_at, folder)
        if before is None or not before.folder.has_ours:
            self._sweep_leftovers(path, folder)
        return folder

    def _sweep_leftovers(self, path: str, folder: folder_rules.Folder) -> None:
        if folder.has_ours and not self._config.read_only:
            self.sweep(path)

    def _root_failed(self, error: OSError, now: float) -> None:
        if self._root_failed_since is None:
            self._root_failed_since = now
        if now - self._root_failed_since < SECOND_LOOK:
            self._voice.wake(now + SECOND_LOOK)
            return
        self._listed.clear()
        self._voice.emit(messages.Unreachable(message=error.strerror or str(error)))

    def _is_unseen(self, path: str, found: set[str], full: bool) -> bool:
        """Whether a run that was not found was not looked for: below a folder that failed, or within another run."""
        above = {path[: i or 1] for i, c in enumerate(path) if c == "/"} | {path}
        return bool(above & self._failed) or (not full and bool(above & found))

    # Runs
    def _look_at_run(self, path: str, folder: folder_rules.Folder, full: bool) -> None:
        below = self._below(path, folder)
        run = self._runs.get(path)
        if run is None:
            run = self._runs[path] = RunTrack(
                path, self._config, self._voice, known=self._known, watch=self._watch, look_into=self._look_into
            )
        try:
            run.look(folder, below, full=full)
        except OSError:
            raise
        except Exception as error:  # whatever is in a run that we did not foresee, the others go on
            self._voice.say("run_failed", path, f"{type(error).__name__}: {error}")
        self._take_inventory(path, folder, below)

    def _below(self, path: str, folder: folder_rules.Folder) -> folder_rules.Folder | None:
        """Its `hf` folder, if it has one that can be listed."""
        return (
            self._list(f"{path}/{names_on_disk.SUBDIRECTORY}")
            if names_on_disk.SUBDIRECTORY in folder.subfolders
            else None
        )

    def _take_inventory(self, path: str, folder: folder_rules.Folder | None, below: folder_rules.Folder | None) -> None:
        """Says which steps and exports are there, where that is news; no `folder`: it was not found."""
        if folder is not None and below is None and names_on_disk.SUBDIRECTORY in folder.subfolders:
            return  # it could not be listed just now
        exports = [one.published for one in (folder, below) if one is not None and one.published]
        steps = folder.steps if folder is not None else frozenset()
        if path not in self._inventories and not steps and not exports:
            return
        track = self._inventories.setdefault(path, InventoryTrack(path))
        said, again = track.look(
            steps, exports[0] if len(exports) == 1 else frozenset().union(*exports), self._voice.now()
        )
        for message in said:
            self._voice.emit(message)
        if again is not None:
            self._voice.wake(again)
        if track.is_empty:
            del self._inventories[path]

    def _probe(self, path: str, metadata_size: int) -> Answer:
        return probe_step(
            path,
            metadata_size=metadata_size,
            limits=Limits(self._config.metadata_memory_limit, self._config.metadata_deadline),
            beat=self._voice.beat,
        )
