"""Owns the selection of steps by a PATH, and the reasons why other names are passed over.

Uses only the standard library.
"""

import stat
from pathlib import Path

from converter.common import names_on_disk
from converter.common.files import exists, is_folder, kind


class NoSuchPath(ValueError):
    """Nothing is there, or nothing that could hold steps."""


class NoSteps(ValueError):
    """A folder without a step."""


def steps_of(path: Path) -> tuple[list[Path], bool]:
    """The steps meant by a path in step order, and whether one was named. Raises NoSuchPath, NoSteps, OSError."""
    path = path.absolute()
    if _is_link(path) and names_on_disk.step_number(path.name) is None:
        path = path.resolve()
    if not exists(path):
        raise NoSuchPath(f"{path} does not exist")
    if path.name.endswith(".distcp") and kind(path) == stat.S_IFREG:
        path = path.parent
    if names_on_disk.step_number(path.name) is not None and is_folder(path):
        return [path], True
    if not is_folder(path):
        raise NoSuchPath(f"{path} is neither a step directory, nor a run root, nor a *.distcp file")
    found = sorted((names_on_disk.step_number(entry.name) or 0, entry) for entry in path.iterdir() if _is_step(entry))
    if not found:
        why = f"{path} holds no step-<number> directory"
        if names_on_disk.published_step(path.name) is not None:
            why = f"{path} is a published directory; `dcp2hf verify {path}` checks it"
        elif below := next((str(step.parent) for step in sorted(path.glob("*/step-*")) if _is_step(step)), ""):
            why += f"; is {below} meant?"
        raise NoSteps(why)
    return [entry for _, entry in found], False


def passed_over(folder: Path) -> list[tuple[Path, str]]:
    """What lies in a run and looks like a step, but is none that is converted, and why; by name. Raises OSError."""
    found = []
    for entry in sorted(folder.iterdir()):
        is_link = _is_link(entry)
        is_other = (
            names_on_disk.parse_ours(entry.name) is not None or names_on_disk.published_step(entry.name) is not None
        )
        if not (is_link or names_on_disk.contains_step(entry.name)) or is_other or _is_step(entry):
            continue
        if is_link:
            if is_folder(entry):
                found.append(
                    (entry, f"passed over: a symbolic link, which is not followed; its target is {entry.resolve()}")
                )
        elif not is_folder(entry):
            found.append((entry, "passed over: not a directory"))
        elif names_on_disk.step_number(entry.name) is None:
            why = "its name is not step-<number> (no leading zeros, nothing before or after)"
            found.append((entry, f"passed over: {why}"))
    return found


def _is_step(path: Path) -> bool:
    return names_on_disk.step_number(path.name) is not None and kind(path, follow=False) == stat.S_IFDIR


def _is_link(path: Path) -> bool:
    return kind(path, follow=False) == stat.S_IFLNK
