"""Owns a scanner's knowledge of published directories: whose they are, and whether they are up to date."""

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from converter.common import errors, names_on_disk
from converter.publish import manifest
from daemon.scanner.messages import Published

PLACES = ("alongside", "subdirectory")
NAMED = 5
"""Foreign files that are named; there may be thousands."""


class Wish(NamedTuple):
    """What an up-to-date directory must carry; an empty dtype is not known yet and any will do."""

    save_id: str
    dtype: str
    max_shard_size: int


class Track(msgspec.Struct, frozen=True, gc=False):
    """A published directory as it was last read. There may be ten thousand: hashes instead of what they are of."""

    facts: Published
    wish: int
    signature: int
    missing_since: float | None = None


def paths(run: str, step: int) -> tuple[str, str]:
    """Where a step may be published, in the order of PLACES."""
    name = names_on_disk.published_name(step)
    return f"{run}/{name}", f"{run}/{names_on_disk.SUBDIRECTORY}/{name}"


def look(
    before: tuple[Track, ...],
    run: str,
    step: int,
    *,
    listed: tuple[bool, bool],
    wish: Wish,
    now: float,
    second_look: float,
    full: bool,
) -> tuple[Track, ...]:
    """The tracks of a step's published directories, brought up to date.

    `listed` says of each place whether a listing showed one. One that was there and is not is kept until it was missing
    for `second_look` seconds; one that is there is read again only if it may have changed (asked with `full`).
    Raises OSError where a directory cannot be read for another reason than rights.
    """
    if not before and not any(listed):
        return before
    old = {track.facts.place: track for track in before}
    tracks = []
    for place, path, is_listed in zip(PLACES, paths(run, step), listed, strict=True):
        track = old.get(place)
        if is_listed:
            if track is None or full or track.wish != hash(wish) or track.missing_since is not None:
                track = _read(place, path, wish, track)
            if track is not None:
                tracks.append(track)
        elif track is not None:
            since = now if track.missing_since is None else track.missing_since
            if now - since < second_look:
                tracks.append(msgspec.structs.replace(track, missing_since=since))
    same = len(tracks) == len(before) and all(a is b for a, b in zip(tracks, before, strict=True))
    return before if same else tuple(tracks)


def _read(place: str, path: str, wish: Wish, before: Track | None) -> Track | None:
    try:
        signature = _signature(path)
        is_same = before is not None and (before.signature, before.wish) == (signature, hash(wish))
        if before is not None and is_same and before.facts.up_to_date:  # another answer may have been an accident
            return before if before.missing_since is None else msgspec.structs.replace(before, missing_since=None)
        directory = Path(path)
        found = manifest.read(directory)
        foreign = tuple(map(errors.printable, manifest.foreign_files(directory)[:NAMED]))
        up_to_date = found is not None and manifest.is_up_to_date(
            directory, save_id=wish.save_id, dtype=wish.dtype or found.dtype, max_shard_size=wish.max_shard_size
        )
    except FileNotFoundError:
        return before
    except PermissionError:
        return Track(Published(place=place, ours=False, foreign=("(not readable for this user)",)), hash(wish), 0)
    facts = Published(
        place=place,
        ours=found is not None and not foreign,
        empty=found is None and not foreign and manifest.is_empty(directory),
        dtype=found.dtype if found is not None and not foreign else None,
        up_to_date=up_to_date,
        save_id=None if found is None else wish.save_id if found.save_id == wish.save_id else found.save_id,
        foreign=foreign,
    )
    return Track(facts, hash(wish), signature)


def _signature(path: str) -> int:
    """Of two stats that change when the directory is replaced, or a file in it comes or goes."""
    try:
        found = os.stat(f"{path}/{names_on_disk.MANIFEST}", follow_symlinks=False)
        of_manifest = (found.st_ino, found.st_size, found.st_mtime_ns)
    except FileNotFoundError:
        of_manifest = (0, 0, 0)
    return hash((os.stat(path, follow_symlinks=False).st_mtime_ns, *of_manifest))
