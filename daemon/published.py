"""Owns what a scanner knows of published directories: whose they are, and whether they are up to date."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from converter import layout, manifest
from daemon.messages import Published

PLACES = ("alongside", "subdirectory")
NAMED = 5
"""Foreign files that are named; there may be thousands."""


class Wish(NamedTuple):
    """What an up-to-date directory must carry; an empty dtype is not known yet and any will do."""

    save_id: str
    dtype: str
    max_shard_size: int


class Track(NamedTuple):
    """A published directory as it was last read."""

    facts: Published
    wish: Wish
    signature: tuple[int, ...]
    missing_since: float | None = None


def paths(run: str, step: int) -> dict[str, str]:
    """Where a step may be published, by place."""
    name = layout.published_name(step)
    return {"alongside": f"{run}/{name}", "subdirectory": f"{run}/{layout.SUBDIRECTORY}/{name}"}


def look(
    before: tuple[Track, ...], *, here: Mapping[str, str], wish: Wish, now: float, second_look: float, full: bool
) -> tuple[Track, ...]:
    """The tracks of a step's published directories, brought up to date.

    `here` are the paths, by place, that a listing showed. One that was there and is not is kept until it was missing
    for `second_look` seconds; one that is there is read again only if it may have changed (asked with `full`).
    Raises OSError where a directory cannot be read for another reason than rights.
    """
    old = {track.facts.place: track for track in before}
    tracks = []
    for place in PLACES:
        track = old.get(place)
        if place in here:
            if track is None or full or track.wish != wish or track.missing_since is not None:
                track = _read(place, here[place], wish, track)
            if track is not None:
                tracks.append(track)
        elif track is not None:
            since = now if track.missing_since is None else track.missing_since
            if now - since < second_look:
                tracks.append(track._replace(missing_since=since))
    return tuple(tracks)


def _read(place: str, path: str, wish: Wish, before: Track | None) -> Track | None:
    try:
        signature = _signature(path)
        if before is not None and (before.signature, before.wish) == (signature, wish):
            return before._replace(missing_since=None)
        directory = Path(path)
        found = manifest.read(directory)
        foreign = tuple(manifest.foreign_files(directory)[:NAMED])
        up_to_date = found is not None and manifest.is_up_to_date(
            directory, save_id=wish.save_id, dtype=wish.dtype or found.dtype, max_shard_size=wish.max_shard_size
        )
    except FileNotFoundError:
        return before
    except PermissionError:
        return Track(Published(place=place, ours=False, foreign=("(not readable for this user)",)), wish, ())
    facts = Published(
        place=place,
        ours=found is not None and not foreign,
        up_to_date=up_to_date,
        save_id=found.save_id if found else None,
        foreign=foreign,
    )
    return Track(facts, wish, signature)


def _signature(path: str) -> tuple[int, ...]:
    """Two stats that change when the directory is replaced, or a file in it comes or goes."""
    try:
        found = os.stat(os.path.join(path, layout.MANIFEST), follow_symlinks=False)
        of_manifest = (found.st_ino, found.st_size, found.st_mtime_ns)
    except FileNotFoundError:
        of_manifest = (0, 0, 0)
    return (os.stat(path, follow_symlinks=False).st_mtime_ns, *of_manifest)
