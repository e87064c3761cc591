"""Owns the listing of the shared folder, in a short separate process. A file system that hangs blocks nothing else.

`python -m daemon.runners.slurm.shared_folder` reads a request as JSON on stdin and prints the answer as JSON on stdout.
The folder is listed each time, because on NFS a name that is looked up before it exists stays missing for half a
minute. Jobs of our own user wrote the files, but they are read like anybody's: only regular files, within limits, with
our names. Uses only the standard library.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from converter.common.errors import printable
from converter.common.files import REFUSED, open_regular, read_regular
from daemon.runners.slurm.job_script import EVENTS, NAME, OUTPUT, RESULT

MOST_BYTES = 1 << 18
"""Of one job's events that are read in one look; the rest is read in the next ones."""
MOST_LINE = 1 << 16
"""Bytes of a line; what is longer is no event, and left out."""
KEPT = 14 * 86_400.0
"""Seconds for which files are kept that belong to no job any more: the output of failed ones."""
_TAIL = 500
"""Bytes of a job's output that are shown."""


def look(folder: Path, offsets: Mapping[str, int]) -> dict[str, Any]:
    """By job: its event lines from an offset on, each with where it begins; its exit code once all are read.

    {"lines": [[offset, text], …], "offset": where to go on, "code": int or None, "tail": str}. Raises OSError.
    """
    there = set(os.listdir(folder))
    found: dict[str, Any] = {}
    for name, offset in offsets.items():
        lines: list[tuple[int, str]] = []
        end, is_all, code = offset, True, None
        try:
            if name + EVENTS in there:
                lines, end, is_all = _read_lines(folder / (name + EVENTS), offset)
            if name + RESULT in there and is_all:
                code = _code(folder / (name + RESULT))
        except OSError as error:
            if error.errno not in REFUSED:  # a link, a pipe: nobody's word
                raise
        tail = _tail(folder / (name + OUTPUT)) if code and name + OUTPUT in there else ""
        found[name] = {"lines": lines, "offset": end, "code": code, "tail": tail}
    return found


def remove(folder: Path, names: Iterable[str]) -> None:
    """Removes all that jobs left."""
    for name in names:
        for suffix in (EVENTS, RESULT, OUTPUT):
            with contextlib.suppress(OSError):
                os.unlink(folder / (name + suffix))


def remove_old(folder: Path, keep: Iterable[str], now: float) -> None:
    """Removes what jobs left long ago, but those of `keep`. Raises OSError where the folder cannot be listed."""
    kept = set(keep)
    for entry in os.scandir(folder):
        name = next((entry.name.removesuffix(end) for end in (EVENTS, RESULT, OUTPUT) if entry.name.endswith(end)), "")
        if NAME.fullmatch(name) and name not in kept:
            with contextlib.suppress(OSError):
                if now - entry.stat(follow_symlinks=False).st_mtime > KEPT:
                    os.unlink(entry.path)


def _read_lines(path: Path, offset: int) -> tuple[list[tuple[int, str]], int, bool]:
    """Whole lines from `offset` on, where to go on, and whether that is all there is. An unfinished line waits."""
    fd, _ = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        file.seek(offset)
        block = file.read(MOST_BYTES)
        is_all = not file.read(1)
    lines: list[tuple[int, str]] = []
    *whole, rest = block.split(b"\n")
    for line in whole:
        if len(line) <= MOST_LINE:
            lines.append((offset, line.decode(errors="replace")))
        offset += len(line) + 1
    return lines, offset + (len(rest) if len(rest) > MOST_LINE else 0), is_all


def _code(path: Path) -> int | None:
    said = read_regular(path, limit=64).strip()
    return int(said) if said.isdigit() and len(said) <= 3 else None


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        fd, facts = open_regular(path)
        with os.fdopen(fd, "rb") as file:
            file.seek(max(0, facts.st_size - _TAIL))
            return printable(" | ".join(filter(None, file.read(_TAIL).decode(errors="replace").splitlines())))
    return ""


def main() -> None:
    """Answers one request: {"folder", "offsets": {name: offset}, "remove": [name], "keep": [name] or None}."""
    asked = json.load(sys.stdin)
    folder = Path(asked["folder"])
    try:
        remove(folder, filter(NAME.fullmatch, asked["remove"]))
        answer: dict[str, Any] = {
            "jobs": look(folder, {name: at for name, at in asked["offsets"].items() if NAME.fullmatch(name)})
        }
        if asked["keep"] is not None:
            remove_old(folder, asked["keep"], time.time())
    except OSError as error:
        answer = {"problem": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
