"""Owns a scanner's knowledge of one step: when it is listed, when it is probed, when an answer is believed.

A step is *open* while a later listing may differ. A finished step is listed again when two stats (of the directory and
of the file that ends its save) differ, and now and then (`RunTrack`). Sizes come from a fresh listing. Completeness
comes from finding `.metadata` in it, never from probing for a name, because NFS caches for half a minute that a name
does not exist.
"""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from converter.checkpoint.completeness import METADATA, SETTLE_SECONDS, Listing, kind_of, list_step
from converter.common.names_on_disk import INDEX
from daemon.scanner.messages import Answer
from daemon.scanner.probe_client import ProbeError
from daemon.scanner.published_scan import Track

SECOND_LOOK = 1.0
"""Seconds until "gone", or "the same as before", is believed."""
STALLED = 1800.0
"""Seconds without a change after which an open step is listed at rescans only."""

_MIXED = (
    "files are as old as the save that was here before: a mirror of another save over it that goes on, or was cut off"
)

_OLDER = (
    "files are older than those that this save had when it was complete: files of another save were put over it; "
    "if its own come back, it is complete again"
)

Probe = Callable[[str, int], Answer]
"""Looks into the step at a path whose `.metadata` has that many bytes; raises ProbeError."""


class StepTrack:
    """One step, from listing to listing. Times are the scanner's monotonic clock."""

    __slots__ = (
        "_after",
        "_before",
        "_believed",
        "_has_asked",
        "_metadata",
        "_raw",
        "_signature",
        "answer",
        "fingerprint",
        "missing_since",
        "path",
        "published",
        "reported",
        "since",
        "wake_at",
    )

    def __init__(self, path: str, known: Answer | None = None) -> None:
        self.path = path
        self.fingerprint = ""
        self.since = 0.0
        """When this fingerprint was first seen."""
        self.answer: Answer | None = None
        """What the step is, as far as it is believed."""
        self.published: tuple[Track, ...] = ()
        self.missing_since: float | None = None
        self.reported: int | None = None
        """Hash of what was reported of it: there may be ten thousand."""
        self.wake_at: float | None = None
        """When to look again before the next scan."""
        self._raw = known if known is not None and known.state not in ("incomplete", "settling") else None
        """What looking into it gave; holds for its fingerprint."""
        self._believed = self._raw is not None
        """It needs no settling: an earlier life waited for that."""
        self._before: tuple[str | None, int, int] | None = None
        """Save id, `latest` and `oldest` of the save that was complete when the listing changed."""
        if known is not None and known.state == "suspect" and known.oldest:
            self._before = (known.save_id, known.latest, known.oldest)
        self._after = known.after if known is not None else 0
        """See `Answer.after`."""
        self._metadata: tuple[int, int] | None = None
        self._has_asked = False
        self._signature: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether a later listing may say something else of it."""
        return self.answer is None or self.answer.state in ("incomplete", "settling", "suspect")

    def is_stalled(self, now: float) -> bool:
        """Whether nothing changed for so long that a rescan is soon enough."""
        return self.answer is not None and now - self.since > STALLED

    def is_as_it_was(self) -> bool:
        """Whether it is settled and, by two stats, the same as when it was listed."""
        return self._signature is not None and self._look_at_signature() == self._signature

    def forget(self) -> None:
        """The next look is as if it were the first, but for what lay here before."""
        self._leave()
        self.answer = self.reported = self._raw = self._metadata = self._signature = None
        self._has_asked = False
        self.published = ()

    def look(self, probe: Probe, now: float, *, whole: bool = False) -> str | None:
        """Brings `answer` up to date; returns what went wrong on the way, if anything.

        `whole`: lists the step although two stats say that it is as it was.

        Raises FileNotFoundError where the step is not there, OSError where it cannot be listed.
        """
        self.wake_at = None
        if not whole and self.is_as_it_was():
            return None
        listing = list_step(Path(self.path))
        fingerprint = listing.fingerprint
        if fingerprint != self.fingerprint:
            known = self._raw is not None and self._raw.fingerprint == fingerprint
            self.fingerprint, self.since = self._raw.fingerprint if known and self._raw else fingerprint, now
        problem = None
        if self._raw is None or self._raw.fingerprint != fingerprint:
            self._leave()
            self._raw, self._believed = None, False
            self.answer, problem = self._look_into(listing, probe, now)
        if self._raw is not None:
            self.answer = self._raw if self._believed else self._settle(self._raw, now)
        self._signature = None if self.is_open else self._look_at_signature()
        return problem

    def _look_into(self, listing: Listing, probe: Probe, now: float) -> tuple[Answer, str | None]:
        """The answer for this listing: at once where it tells all, else from a probing process."""
        metadata = listing.get(METADATA)
        if metadata is None and not listing.links and kind_of(listing) in ("dcp", "unknown"):
            return Answer(state="incomplete", reason="no .metadata yet", after=self._so_far()), None
        end = metadata or listing.get(INDEX)
        known = (end.size, end.mtime_ns) if end else None
        # Below an old `.metadata` shards are rewritten, or mirrored one by one, maybe for minutes: it is read again only once
        # they stay the same.
        if self._has_asked and known == self._metadata and now - self.since < SETTLE_SECONDS:
            self.wake_at = self.since + SETTLE_SECONDS
            return Answer(state="settling", reason="being written"), None
        try:
            answer = probe(self.path, metadata.size if metadata else 0)
        except ProbeError as error:
            return Answer(state="incomplete", reason="could not be looked into", error="MachineFailure"), str(error)
        self._metadata, self._has_asked = known, True
        if answer.state == "incomplete" and not answer.fingerprint:
            # Gone meanwhile, or so the file system said: asked again, soon unless it goes on like this.
            if now - self.since < SETTLE_SECONDS:
                self.wake_at = now + SECOND_LOOK
            return answer, None
        if answer.fingerprint and answer.fingerprint != listing.fingerprint:
            self.wake_at = now + SECOND_LOOK
            return Answer(state="settling", reason="being written"), None
        self._raw = self._compare(msgspec.structs.replace(answer, fingerprint=listing.fingerprint))
        return self._raw, None

    def _leave(self) -> None:
        """Remembers the save that lay here, before its answer goes."""
        if self._raw is not None and self._raw.state == "complete":
            self._before = (self._raw.save_id, self._raw.latest, self._raw.oldest)

    def _so_far(self) -> int:
        """`Answer.after` for the next save."""
        return self._before[1] if self._before is not None else self._after

    def _compare(self, answer: Answer) -> Answer:
        """The answer, held against the save that lay here before: files of that one under another save id are a mirror's middle.

        A save that is older as a whole, put back from a backup, is none. Under the same save id, files may become newer (the end
        of a mirror), never older.
        """
        if answer.state == "incomplete":
            return msgspec.structs.replace(answer, oldest=0, after=self._so_far())
        if self._before is not None and answer.save_id != self._before[0]:
            self._after, self._before = self._before[1], None
        if answer.state in ("complete", "settling"):
            if answer.oldest <= self._after < answer.latest:
                answer = msgspec.structs.replace(answer, state="suspect", reason=_MIXED, oldest=0)
            elif self._before is not None and answer.oldest < self._before[2]:
                answer = msgspec.structs.replace(answer, state="suspect", reason=_OLDER, oldest=self._before[2])
        return msgspec.structs.replace(answer, after=self._after)

    def _settle(self, answer: Answer, now: float) -> Answer:
        """What may be the middle of a write or of a copy is believed once the listing stayed the same for 10 s."""
        if answer.state not in ("settling", "damaged"):
            return answer
        if now - self.since >= SETTLE_SECONDS:
            believed = (
                msgspec.structs.replace(answer, state="complete", reason="") if answer.state == "settling" else answer
            )
            self._raw, self._believed = believed, True
            return believed
        self.wake_at = self.since + SETTLE_SECONDS
        return msgspec.structs.replace(answer, state="settling")

    def _look_at_signature(self) -> int | None:
        """Of two stats: files that are put in place change the directory's, a save in place that of the file that ends it."""
        end = METADATA if self.answer is not None and self.answer.format == "dcp" else INDEX
        try:
            changed = os.stat(self.path, follow_symlinks=False).st_mtime_ns
        except OSError:
            return None
        try:
            found = os.stat(f"{self.path}/{end}", follow_symlinks=False)
        except FileNotFoundError:
            return hash((changed,))
        except OSError:
            return None
        return hash((changed, found.st_ino, found.st_size, found.st_mtime_ns))
