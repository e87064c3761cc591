"""Owns the meaning of a listing: which names are steps, published directories, or folders to search. Pure.

Nothing here touches a file system. The scanner lists, and these functions interpret the listing.
"""

import os
from collections.abc import Iterable
from typing import NamedTuple

from converter.common import names_on_disk


class Entry(NamedTuple):
    """One name of a folder as scandir shows it."""

    name: str
    is_dir: bool
    is_link: bool = False

    @staticmethod
    def of(entry: "os.DirEntry[str]") -> "Entry":
        """As scandir gave it; a link is not followed. Raises OSError where the file system is asked for its kind."""
        return Entry(entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink())


class Folder(NamedTuple):
    """What a folder below a root is made of."""

    steps: frozenset[int]
    published: frozenset[int]
    subfolders: tuple[str, ...]
    links: tuple[str, ...]
    """Symbolic links to what might be a run or a step: not followed, named once."""
    unreadable: tuple[str, ...]
    """Names that are not UTF-8: they could neither be logged nor kept."""
    lookalikes: tuple[str, ...]
    """Folders named almost as a step is (`step-0010`): neither steps nor gone into, named once."""
    has_ours: bool
    """There are staging directories or locks of ours, stale or in use."""

    @property
    def is_run(self) -> bool:
        """A folder that holds steps is a run (its checkpoint folder)."""
        return bool(self.steps)


def interpret(entries: Iterable[Entry]) -> Folder:
    """Sorts the names of a folder.

    Names beginning with a dot are not gone into (snapshots of file servers, `.git`), nor is anything that looks like
    a step or is one of ours.
    """
    steps, published, subfolders, links, unreadable, lookalikes = set(), set(), [], [], [], []
    has_ours = False
    for entry in entries:
        name = entry.name
        if names_on_disk.parse_ours(name) is not None:
            has_ours = True
        elif not _is_utf8(name):
            unreadable.append(name)
        elif entry.is_link:
            links.append(name)
        elif not entry.is_dir:
            continue
        elif (step := names_on_disk.step_number(name)) is not None:
            steps.add(step)
        elif (step := names_on_disk.published_step(name)) is not None:
            published.add(step)
        elif names_on_disk.is_almost_step(name):
            lookalikes.append(name)
        elif not name.startswith((".", "tmp_step-")):
            subfolders.append(name)
    return Folder(
        frozenset(steps),
        frozenset(published),
        tuple(sorted(subfolders)),
        tuple(sorted(links)),
        tuple(sorted(unreadable)),
        tuple(sorted(lookalikes)),
        has_ours,
    )


def wanted(step: int, *, min_step: int, every: int) -> bool:
    """Whether the configuration asks for this step at all."""
    return step >= min_step and step % every == 0


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
