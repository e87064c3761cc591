"""Owns a scanner's knowledge of one run: its steps, its run config, what was reported of them."""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

from converter.common import errors, names_on_disk
from converter.run import run_config
from daemon.scanner import folder_rules, messages, published_scan
from daemon.scanner.messages import Answer, Config, Run, RunConfigFacts, Step
from daemon.scanner.reporter import Voice
from daemon.scanner.step_scan import SECOND_LOOK, Probe, StepTrack

LISTED = 30
"""Rescans in which every settled step is listed once, a thirtieth of them each time; an hour with the default
`rescan_interval`. What two stats do not show (files rewritten in place, mtimes of any kind) is noticed then."""
TURNS = 5
"""Rescans in which every published directory is entered once: a fifth of them each time, two thirds of a rescan's calls."""


class RunTrack:
    """One run, from listing to listing."""

    def __init__(
        self,
        path: str,
        config: Config,
        voice: Voice,
        *,
        known: dict[str, Answer],
        watch: Callable[[str], bool],
        look_into: Probe,
    ) -> None:
        self.path = path
        self._config, self._voice = config, voice
        self._known = known
        """Answers of an earlier life, by path of the step; used up."""
        self._watch, self._look_into = watch, look_into
        self.steps: dict[int, StepTrack] = {}
        self._facts: Run | None = None
        self._folder: folder_rules.Folder | None = None
        self._below: folder_rules.Folder | None = None
        """Its `hf` folder."""
        self._again = False
        """Something in it is to be believed at a second look only."""
        self._wanted: list[int] = []
        """Its steps that the configuration asks for, in order."""
        self._rescans = 0
        self._open: set[int] = set()
        """Steps of which a later listing may say something else."""

    def look(self, folder: folder_rules.Folder, below: folder_rules.Folder | None, *, full: bool) -> None:
        """Looks at what a listing shows may have changed, or at everything; reports what is news."""
        now = self._voice.now()
        self._rescans += full
        is_new = self._again or folder is not self._folder or below is not self._below
        self._folder, self._below, self._again = folder, below, False
        if full or is_new:
            self._take_stock(folder)
        if not self._wanted:
            return
        newest = self._wanted[-1]
        if full or self._facts is None or self._facts.config is None:
            is_new |= self._read_run_config(newest)
        always = self._open | {newest}
        for number in self._wanted if full or is_new else sorted(always):
            track = self.steps[number]
            before = track.answer
            self._voice.beat()
            whole = full and (number in always or self._is_listed(number))
            if number not in always:
                is_due = whole or (full and not track.is_as_it_was())
            else:
                is_due = full or number == newest or not track.is_stalled(now)
            if is_due:
                self._look_at_step(number, whole=whole)
            has_turn = full and self._has_turn(number, track)
            if is_new or has_turn or track.answer is not before:  # else there is no news of it
                self._report(number, full=has_turn)

    def _has_turn(self, number: int, track: StepTrack) -> bool:
        """Whether this rescan enters a step's published directories: of ours that seem outdated, each does."""
        if (number + self._rescans) % TURNS == 0:
            return True
        return any(p.facts.ours and not p.facts.up_to_date for p in track.published)

    def _is_listed(self, number: int) -> bool:
        """Whether this rescan lists a settled step; step numbers are often multiples of one another."""
        return (zlib.crc32(b"%d" % number) + self._rescans) % LISTED == 0

    def look_at(self, number: int, *, full: bool = False) -> None:
        """Looks at one step and reports it if it is news."""
        self._look_at_step(number)
        self._report(number, full=full)

    def report_again(self, number: int) -> None:
        """Reports one step though nothing is news of it."""
        self.steps[number].reported = None
        self._report(number, full=False)

    def missing(self) -> bool:
        """The run was not found: its steps are gone at a second look; whether all of them are."""
        for number in list(self.steps):
            self._missing_step(number)
        return not self.steps

    def _take_stock(self, folder: folder_rules.Folder) -> None:
        """Which steps are there, and which are not any more."""
        self._wanted = sorted(
            n for n in folder.steps if folder_rules.wanted(n, min_step=self._config.min_step, every=self._config.every)
        )
        for number in [number for number in self.steps if number not in folder.steps]:
            self._missing_step(number)
        for number in self._wanted:
            if number not in self.steps:
                path = f"{self.path}/step-{number}"
                self.steps[number] = StepTrack(path, self._known.pop(path, None))
                self._open.add(number)
            self.steps[number].missing_since = None

    def _read_run_config(self, newest: int) -> bool:
        """Reads the run config; whether it says something new."""
        name = names_on_disk.run_name(Path(self._config.root), Path(self.path))
        newest_step, logs_roots = Path(self.steps[newest].path), [Path(folder) for folder in self._config.logs_roots]
        try:
            found = run_config.find(newest_step, names=self._config.run_config_names, logs_roots=logs_roots)
            conflict = found.conflict
            facts = Run(
                run=self.path,
                name=name,
                config=RunConfigFacts(
                    path=str(found.path),
                    digest=_digest(found),
                    dtype=found.dtype,
                    keep_latest_k=found.keep_latest_k,
                    conflict=str(conflict.other) if conflict else None,
                    differs=conflict.differs if conflict else (),
                ),
            )
        except errors.ConversionError as error:
            if isinstance(error, errors.MachineFailure) and self._facts is not None and self._facts.config is not None:
                self._voice.say("run_config_unreadable", self.path, str(error))
                return False  # what it said before holds until it can be read again
            what = error.what
            if isinstance(error, errors.RunConfigMissing):  # of the run, not of its newest step
                places = run_config.candidates(newest_step, self._config.run_config_names, logs_roots)
                what = run_config.missing(place for place in places if place.parent != newest_step)
            facts = Run(
                run=self.path,
                name=name,
                error=type(error).__name__,
                message=what,
                error_path=error.path,
                hint=error.hint,
            )
        except OSError as error:
            self._voice.say("run_config_unreadable", self.path, str(error))
            return False
        if facts == self._facts:
            return False
        self._facts = facts
        self._voice.emit(facts)
        return True

    def _look_at_step(self, number: int, *, whole: bool = False) -> None:
        step = self.steps[number]
        self._voice.beat()
        try:
            if step.is_open:
                self._watch(step.path)
            problem = step.look(self._look_into, self._voice.now(), whole=whole)
        except FileNotFoundError:
            if step.is_open:
                self._open.add(number)  # it may be back at the next scan
            self._missing_step(number)
            return
        except OSError as error:
            problem = str(error)
        if problem:
            self._voice.say("step_unreadable", step.path, problem)
        (self._open.add if step.is_open else self._open.discard)(number)
        if step.wake_at is not None:
            self._voice.wake(step.wake_at)

    def _missing_step(self, number: int) -> None:
        step = self.steps[number]
        now = self._voice.now()
        if step.missing_since is None:
            step.missing_since = now
        if now - step.missing_since < SECOND_LOOK:
            self._again = True
            self._voice.wake(now + SECOND_LOOK)
            return
        del self.steps[number]
        self._open.discard(number)
        self._again = True
        self._voice.emit(messages.Gone(path=step.path))

    def _report(self, number: int, *, full: bool) -> None:
        """Emits a step if anything about it, or what is published of it, changed."""
        step = self.steps.get(number)
        if step is None or step.answer is None or step.missing_since is not None or self._folder is None:
            return
        listed = (number in self._folder.published, self._below is not None and number in self._below.published)
        try:
            step.published = published_scan.look(
                step.published,
                self.path,
                number,
                listed=listed,
                wish=published_scan.Wish(step.answer.save_id or "", self._dtype(), self._config.max_shard_size),
                now=self._voice.now(),
                second_look=SECOND_LOOK,
                full=full,
            )
        except OSError as error:
            self._voice.say("published_unreadable", step.path, str(error))
            self._again = True
            return
        if len(step.published) < sum(listed):  # gone for the moment in which it was to be read
            self._again = True
        if any(track.missing_since is not None for track in step.published):
            self._again = True
            self._voice.wake(self._voice.now() + SECOND_LOOK)
        there = tuple(track.facts for track in step.published)
        if step.reported != (said := hash((step.answer, there))):
            step.reported = said
            self._voice.emit(Step(run=self.path, step=number, path=step.path, answer=step.answer, published=there))

    def _dtype(self) -> str:
        """The dtype that is asked for; empty: not known yet."""
        if self._config.dtype != "auto":
            return self._config.dtype
        return self._facts.config.dtype if self._facts and self._facts.config else ""

    def settling(self) -> int:
        """Its steps that will be known within seconds; only open ones may be."""
        return sum(self.steps[number].wake_at is not None for number in self._open)


def _digest(found: run_config.RunConfig) -> str:
    """Hash of what was read from a run config, wherever it lies and whatever else is in it."""
    said = {name: value for name, value in found.to_json().items() if name not in ("path", "sha256", "conflict")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
