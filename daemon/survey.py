"""Owns the looking at one root: which folders are listed, which steps are entered, what is reported of them.

The cost follows what changes: a folder with the same names as before is not looked at again, a settled step only at
rescans (the newest of each run at every scan). "Gone" is said at a second look, since a rename on another NFS client
shows as a moment with neither name.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from converter import errors, layout, lock, run_config
from converter.storage import Limits
from daemon import messages, published, roots
from daemon.messages import Answer, Config, Run, RunConfigFacts, Step
from daemon.probe import probe
from daemon.steptrack import SECOND_LOOK, Probe, StepTrack


class _RunTrack:
    """What is remembered of one run."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.steps: dict[int, StepTrack] = {}
        self.facts: Run | None = None
        self.folder: roots.Folder | None = None
        self.below: roots.Folder | None = None
        """Its `hf` folder."""
        self.again = False
        """Something in it is to be believed at a second look only."""
        self.wanted: list[int] = []
        """Its steps that the configuration asks for, in order."""
        self.open: set[int] = set()
        """Steps of which a later listing may say something else."""


class Survey:
    """Looks at one root and emits what it sees; `watch(folder)` is told of every folder that is listed."""

    def __init__(
        self,
        config: Config,
        emit: Callable[[messages.FromScanner], None],
        *,
        known: dict[str, Answer] | None = None,
        watch: Callable[[str], None] = lambda folder: None,
        look_into: Probe | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._emit = emit
        self._known = known if known is not None else {}
        self._watch = watch
        self._look_into = look_into or self._probe
        self._clock = clock
        self._listed: dict[str, tuple[list[str], roots.Folder]] = {}
        self._failed: set[str] = set()
        """Folders that could not be listed in this scan: what is below them is not gone."""
        self._runs: dict[str, _RunTrack] = {}
        self._said: set[tuple[str, str]] = set()
        self._last_beat = float("-inf")
        self._last_full = float("-inf")
        self._root_failed_since: float | None = None
        self.wake_at: float | None = None
        """When something should be looked at before the next scan."""

    def folders(self) -> set[str]:
        """What should be watched: every folder that is listed, and open steps."""
        return set(self._listed) | {
            step.path for run in self._runs.values() for step in run.steps.values() if step.is_open
        }

    def scan(self) -> None:
        """Looks at the whole root, once."""
        began = self._clock()
        self.wake_at = None
        try:
            os.listdir(self._config.root)
            space = os.statvfs(self._config.root)
        except OSError as error:
            self._root_failed(error, began)
            return
        self._root_failed_since = None
        self._emit(messages.Scanning(free_bytes=space.f_bavail * space.f_frsize))
        full = began - self._last_full >= self._config.rescan_interval
        if full:
            self._last_full = began
            self._listed.clear()
        self._failed.clear()
        found = set()
        for path, folder in self._walk(self._config.root, self._config.max_depth, into_runs=full):
            if folder.is_run:
                found.add(path)
                self._look_at_run(path, folder, full)
        for run in [
            run for path, run in self._runs.items() if path not in found and not self._is_unseen(path, found, full)
        ]:
            self._missing_run(run)
        tracks = [step for run in self._runs.values() for step in run.steps.values()]
        self._emit(
            messages.Scanned(
                seconds=round(self._clock() - began, 4),
                runs=len(self._runs),
                steps=len(tracks),
                settling=sum(track.wake_at is not None for track in tracks),
            )
        )

    def changed(self, folder: str) -> None:
        """Something in `folder` changed: looks there, now."""
        parent, name = os.path.split(folder)
        run = self._runs.get(parent)
        if run is not None and (step := layout.step_number(name)) in run.steps:
            assert step is not None
            self._look_at_step(run, step)
            self._report(run, step, full=False)
            return
        if run is not None and name == layout.SUBDIRECTORY:
            folder = parent
        root = self._config.root
        depth = self._config.max_depth - (0 if folder == root else os.path.relpath(folder, root).count("/") + 1)
        for path, found in self._walk(folder, depth, into_runs=False):
            if found.is_run:
                self._look_at_run(path, found, full=False)

    def look(self, path: str) -> None:
        """Looks at a run or a step as if for the first time, and reports it whatever it is."""
        for run in self._runs.values():
            for number, step in list(run.steps.items()):
                if step.path == path or step.path.startswith(path.rstrip("/") + "/"):
                    step.forget()
                    self._look_at_step(run, number)
                    self._report(run, number, full=True)

    def sweep(self, folder: str) -> None:
        """Removes what dead owners of ours left in `folder`."""
        names: list[str] = []
        try:
            names = lock.sweep(Path(folder))
        except (OSError, errors.ConversionError) as error:
            self._say("sweep_failed", folder, str(error))
        self._emit(messages.Swept(folder=folder, names=tuple(names)))

    # Folders
    def _walk(self, path: str, depth: int, *, into_runs: bool) -> Iterator[tuple[str, roots.Folder]]:
        """Every folder from `path` down, `depth` levels; runs within runs (`ft-replicat-*`) only with `into_runs`."""
        folder = self._list(path)
        if folder is None:
            return
        yield path, folder
        if depth > 0 and (into_runs or not folder.is_run):
            for name in folder.subfolders:
                if not (folder.is_run and name == layout.SUBDIRECTORY):
                    yield from self._walk(os.path.join(path, name), depth - 1, into_runs=into_runs)

    def _list(self, path: str) -> roots.Folder | None:
        """What `path` holds; None where it cannot be listed just now."""
        self._beat()
        try:
            self._watch(path)
            names = os.listdir(path)
            before = self._listed.get(path)
            if before is not None and before[0] == names:
                return before[1]
            with os.scandir(path) as entries:
                folder = roots.interpret(
                    roots.Entry(e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries
                )
        except OSError as error:
            self._listed.pop(path, None)
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                self._failed.add(path)
                self._say("folder_unreadable", path, str(error))
            return None
        for name in folder.links:
            self._say("link_not_followed", os.path.join(path, name), "symbolic links inside a root are not followed")
        for name in folder.unreadable:
            self._say("name_not_utf8", os.path.join(path, ascii(name)[1:-1]), "names that are not UTF-8 are left alone")
        self._listed[path] = (names, folder)
        if folder.has_ours and not self._config.read_only and (before is None or not before[1].has_ours):
            self.sweep(path)
        return folder

    def _root_failed(self, error: OSError, now: float) -> None:
        if self._root_failed_since is None:
            self._root_failed_since = now
        if now - self._root_failed_since < SECOND_LOOK:
            self._wake(now + SECOND_LOOK)
            return
        self._listed.clear()
        self._emit(messages.Unreachable(message=error.strerror or str(error)))

    def _is_unseen(self, path: str, found: set[str], full: bool) -> bool:
        """Whether a run that was not found was not looked for: below a folder that failed, or within another run."""
        above = {path[: i or 1] for i, c in enumerate(path) if c == "/"} | {path}
        return bool(above & self._failed) or (not full and bool(above & found))

    # Runs
    def _look_at_run(self, path: str, folder: roots.Folder, full: bool) -> None:
        run = self._runs.setdefault(path, _RunTrack(path))
        now = self._clock()
        below = (
            self._list(os.path.join(path, layout.SUBDIRECTORY)) if layout.SUBDIRECTORY in folder.subfolders else None
        )
        changed = full or run.again or folder is not run.folder or below is not run.below
        run.folder, run.below, run.again = folder, below, False
        if changed:
            self._take_stock(run, folder)
        if not run.wanted:
            return
        newest = run.wanted[-1]
        if full or run.facts is None or run.facts.config is None:
            changed |= self._read_run_config(run, newest)
        for number in run.wanted if changed else sorted(run.open | {newest}):
            track = run.steps[number]
            if full or number == newest or (track.is_open and not track.is_stalled(now)):
                self._look_at_step(run, number)
            self._report(run, number, full=full)

    def _take_stock(self, run: _RunTrack, folder: roots.Folder) -> None:
        """Which steps are there, and which are not any more."""
        run.wanted = sorted(
            n for n in folder.steps if roots.wanted(n, min_step=self._config.min_step, every=self._config.every)
        )
        for number in [number for number in run.steps if number not in folder.steps]:
            self._missing_step(run, number)
        for number in run.wanted:
            if number not in run.steps:
                path = f"{run.path}/step-{number}"
                run.steps[number] = StepTrack(path, self._known.pop(path, None))
                run.open.add(number)
            run.steps[number].missing_since = None

    def _missing_run(self, run: _RunTrack) -> None:
        for number in list(run.steps):
            self._missing_step(run, number)
        if not run.steps:
            del self._runs[run.path]

    def _read_run_config(self, run: _RunTrack, newest: int) -> bool:
        """Reads the run config; whether it says something new."""
        name = layout.run_name(Path(self._config.root), Path(run.path))
        try:
            found = run_config.find(
                Path(run.steps[newest].path),
                names=self._config.run_config_names,
                logs_roots=[Path(folder) for folder in self._config.logs_roots],
            )
            conflict = found.conflict
            facts = Run(
                run=run.path,
                name=name,
                config=RunConfigFacts(
                    path=str(found.path),
                    sha256=found.sha256,
                    dtype=found.dtype,
                    keep_latest_k=found.keep_latest_k,
                    conflict=str(conflict.other) if conflict else None,
                    differs=conflict.differs if conflict else (),
                ),
            )
        except errors.ConversionError as error:
            facts = Run(
                run=run.path,
                name=name,
                error=type(error).__name__,
                message=error.what,
                error_path=error.path,
                hint=error.hint,
            )
        except OSError as error:
            self._say("run_config_unreadable", run.path, str(error))
            return False
        if facts == run.facts:
            return False
        run.facts = facts
        self._emit(facts)
        return True

    # Steps
    def _probe(self, path: str, metadata_size: int) -> Answer:
        return probe(
            path,
            metadata_size=metadata_size,
            limits=Limits(self._config.metadata_memory_limit, self._config.metadata_deadline),
            beat=self._beat,
        )

    def _look_at_step(self, run: _RunTrack, number: int) -> None:
        step = run.steps[number]
        self._beat()
        try:
            if step.is_open:
                self._watch(step.path)
            problem = step.look(self._look_into, self._clock())
        except FileNotFoundError:
            self._missing_step(run, number)
            return
        except OSError as error:
            problem = str(error)
        if problem:
            self._say("step_unreadable", step.path, problem)
        (run.open.add if step.is_open else run.open.discard)(number)
        if step.wake_at is not None:
            self._wake(step.wake_at)

    def _missing_step(self, run: _RunTrack, number: int) -> None:
        step = run.steps[number]
        now = self._clock()
        if step.missing_since is None:
            step.missing_since = now
        if now - step.missing_since < SECOND_LOOK:
            run.again = True
            self._wake(now + SECOND_LOOK)
            return
        del run.steps[number]
        run.open.discard(number)
        run.again = True
        self._emit(messages.Gone(path=step.path))

    def _report(self, run: _RunTrack, number: int, *, full: bool) -> None:
        """Emits a step if anything about it, or what is published of it, changed."""
        step = run.steps.get(number)
        if step is None or step.answer is None or step.missing_since is not None or run.folder is None:
            return
        dtype = run.facts.config.dtype if run.facts and run.facts.config else ""
        places = published.paths(run.path, number)
        here = {"alongside": run.folder.published, "subdirectory": run.below.published if run.below else frozenset()}
        try:
            step.published = published.look(
                step.published,
                here={place: path for place, path in places.items() if number in here[place]},
                wish=published.Wish(
                    step.answer.save_id or "",
                    dtype if self._config.dtype == "auto" else self._config.dtype,
                    self._config.max_shard_size,
                ),
                now=self._clock(),
                second_look=SECOND_LOOK,
                full=full,
            )
        except OSError as error:
            self._say("published_unreadable", step.path, str(error))
            run.again = True
            return
        if any(track.missing_since is not None for track in step.published):
            run.again = True
            self._wake(self._clock() + SECOND_LOOK)
        facts = Step(
            run=run.path,
            step=number,
            path=step.path,
            answer=step.answer,
            published=tuple(t.facts for t in step.published),
        )
        if facts != step.reported:
            step.reported = facts
            self._emit(facts)

    # Saying
    def _wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)

    def _beat(self) -> None:
        """A sign of life in the middle of a scan, so that a long one is not taken for a hung one."""
        now = self._clock()
        if now - self._last_beat >= 1.0:
            self._last_beat = now
            self._emit(messages.Alive())

    def _say(self, event: str, path: str, message: str) -> None:
        """Something for the log, once for each path and text."""
        if (path, message) not in self._said:
            self._said.add((path, message))
            self._emit(messages.Said(event=event, path=path, message=message))
