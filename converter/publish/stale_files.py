"""Owns the removal of leftovers of dead attempts: staging directories, set-aside directories and locks.

A set-aside directory is put back if necessary. Uses only the standard library.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from converter.common import names_on_disk
from converter.common.files import fsync_directory, rename
from converter.publish import manifest
from converter.publish.lock import Lock
from converter.publish.owners import Owner, is_dead, read_owner

TellKept = Callable[[Path, str], None]
"""Told where a person's files were kept, and why."""


def tell_nobody(kept: Path, why: str) -> None:
    """For a caller that only wants them kept."""


def keep_edited(directory: Path, folder: Path, step: int, kept: TellKept) -> None:
    """Moves what a person edited in an export of ours to a directory that nothing removes. Raises OSError."""
    names = manifest.edited_files(directory)
    if not names:
        return
    aside = folder / names_on_disk.kept_name(step, names_on_disk.new_token())
    aside.mkdir()
    for name in names:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        rename(directory / name, aside / name)
    fsync_directory(folder)
    kept(aside, f"files of the replaced export had been edited ({', '.join(map(ascii, names[:5]))})")


def clear(folder: Path, step: int, check: Callable[[], None], kept: TellKept = tell_nobody) -> None:
    """Removes what dead attempts left of `step`; a set-aside directory whose successor never came is put back, and what is a
    person's is kept.

    `check` raises LockLost unless the caller holds the lock. It is asked after the listing: so every name in it belongs
    to an earlier owner. One that was stopped meanwhile may still want to publish its staging directory, so a directory
    is renamed before it is removed: either rename wins, and nobody publishes half of it.
    """
    published = folder / names_on_disk.published_name(step)
    names = sorted(os.listdir(folder))
    check()
    for name in names:
        parsed = names_on_disk.parse_ours(name)
        if parsed is None or parsed[0] != step or parsed[2] == "lock":
            continue
        path = folder / name
        with contextlib.suppress(FileNotFoundError):  # its owner woke up, and was first
            if parsed[2] == "replaced" and stat.S_ISDIR(os.lstat(path).st_mode):
                if not os.path.lexists(published):
                    rename(path, published)
                    continue
                if foreign := manifest.foreign_files(path):
                    kept(path, f"a replaced directory holds somebody's files ({', '.join(map(ascii, foreign[:5]))})")
                    continue
            if parsed[2] == "staging" and _is_somebodys(path):
                aside = folder / names_on_disk.kept_name(step, names_on_disk.new_token())
                rename(path, aside)
                kept(aside, "somebody's directory was swapped out, and the process was killed before it put it back")
                continue
            if parsed[2] != "discarded":
                discarded = folder / names_on_disk.discarded_name(step, names_on_disk.new_token())
                rename(path, discarded)
                path = discarded
            keep_edited(path, folder, step, kept)
            remove_tree(path)


def _is_somebodys(staging: Path) -> bool:
    """Whether a person's directory has this name: an exchange took it out, and the process was killed before it was put back.

    An export that died half-way has a file of an export, whatever a hook put beside it; one that has begun has none at all.
    """
    if not stat.S_ISDIR(os.lstat(staging).st_mode):
        return False
    names = os.listdir(staging)
    return bool(names) and not any(manifest.is_name_of_export(name) or name == names_on_disk.MANIFEST for name in names)


def remove_tree(path: Path) -> None:
    """Removes a directory of ours; what of it is gone already is fine. Of a link or a file in its place, that alone."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return

    def unless_gone(_call: object, _name: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
        if not isinstance(failure[1], FileNotFoundError):
            raise failure[1]

    shutil.rmtree(path, onerror=unless_gone)


def discard(path: Path) -> None:
    """Removes what nobody needs any more, as far as it can be removed now: what stays is left to the next `clear`."""
    with contextlib.suppress(OSError):
        remove_tree(path)


def sweep(
    folder: Path,
    *,
    is_stale: Callable[[Path, Owner | None], bool] = lambda _, owner: owner is not None and is_dead(owner),
    kept: Callable[[Path, str], None] = lambda path, why: None,
) -> list[str]:
    """Clears `folder` of what dead owners left: staging directories, set-aside ones (recovered), locks; returns the names that
    are gone. `kept` is told where a person's files were kept, and why.

    Holds the lock of each step while it does. What a live owner has (its lock is not stale) is left alone.
    """
    left: dict[int, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        if parsed := names_on_disk.parse_ours(name):
            left.setdefault(parsed[0], []).append(name)
    cleared = []
    for step, names in left.items():
        held = Lock(folder, step)
        with contextlib.suppress(FileNotFoundError):
            owner = read_owner(held.path)
            if not is_stale(held.path, owner) or not held._take_over(owner):
                continue
        with held:
            clear(folder, step, held.check, kept)
            for name in names:  # of a takeover that died half way
                with contextlib.suppress(FileNotFoundError):
                    aside = name.startswith(names_on_disk.lock_name(step) + ".")
                    if aside and ((owner := read_owner(folder / name)) is None or is_stale(folder / name, owner)):
                        with contextlib.suppress(IsADirectoryError, PermissionError):  # a stranger's
                            os.unlink(folder / name)
        cleared += [name for name in names if not os.path.lexists(folder / name)]
    return cleared
