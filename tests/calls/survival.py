"""Owns docs/survival.md: what `make faults` tried, and what became of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from tests.calls.plans import GIVES, LOST_REPLIES
from tests.calls.pool import ALL_POINTS, Row
from tests.calls.seam import Kind

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "survival.md"
SUITES = {
    "A call of the converter fails": (
        "The conversion succeeds with the same bytes, or fails as an expected failure that says what to expect of another "
        "try. Whatever is published is whole, the old one or the new one; nothing of training changes; nothing of ours is "
        "left, unless removing it was what failed. The next conversion succeeds with the same bytes and cleans up."
    ),
    "A call of the scanner fails": (
        "The scan goes on, says it at most once, and says of no step that it is complete, up to date or gone unless it is. "
        "A later scan reports the same facts as one without a fault."
    ),
    "A call of the daemon below state_dir fails": (
        "The daemon converts every complete step all the same, ends as documented, and never with a traceback."
    ),
    "The converter is killed": (
        "At once after SIGKILL, what is published is whole, the old one or the new one, or nothing where nothing was; where "
        "names cannot be exchanged, the old one may be set aside, and sweeping puts it back. The next conversion "
        "publishes the same bytes and leaves nothing of ours; nothing of training changed."
    ),
    "The daemon is killed": ("After the next start every complete step is converted, once."),
}
"""Each suite and what it promises."""
_HEAD = """# What is survived

Made by `make faults`; do not edit. `tests/calls` lays a seam under the processes: libc itself, so that nothing goes
around it. It makes every call on a path below the root, or below `state_dir`, fail once, one call after the other, with
each errno that such a call can give; from a call on for good; or kills the process with SIGKILL before the call, or once
it took effect. A *point* is one call and what it met. Every point below was met, and every promise held.
"""
_WHOLE = """
In a first export and in the scanner every call fails with every errno; of the kinds of which there are hundreds of calls
(READ, STAT, READDIR, OPEN, CLOSE) each call meets one errno, the next call the next. In the other situations every third
call fails so, and below `state_dir` every call. What lasts begins at every tenth call, a full disk at each.
"""
_PART = """
**This is a part of the points**, as `make test` tries them: each errno of each kind of call in one place, each state of a
publication once. `make faults` tries all and writes this page anew.
"""


def told(row: Row) -> str:
    """What became of the points, the commonest first."""
    return ", ".join(f"{what} {count:,}" for what, count in row.outcomes.most_common())


def document(rows: Sequence[Row]) -> str:
    """The whole page."""
    lines = [_HEAD, _WHOLE if ALL_POINTS else _PART, "\n"]
    for suite, promise in SUITES.items():
        lines.append(f"## {suite}\n\n{promise}\n\n| situation | points | what became of them |\n|---|---|---|\n")
        lines += [f"| {row.situation} | {row.points:,} | {told(row)} |\n" for row in rows if row.suite == suite]
        lines.append("\n")
    lines.append(f"{sum(row.points for row in rows):,} points in all.\n\n## What a call can give\n\n")
    lines.append("| call | once, with | although it took effect |\n|---|---|---|\n")
    names = {kind: ", ".join(_names(errors)) for kind, errors in GIVES.items()}
    lines += [f"| {kind.name} | {names[kind]} | {', '.join(_names(LOST_REPLIES.get(kind, ())))} |\n" for kind in Kind]
    lines.append(
        "\nREAD and WRITE also move half of what they were asked to. For good: ENOSPC and EDQUOT for all that\n"
    )
    lines.append("writes, EIO and ESTALE for every call.\n")
    return "".join(lines)


def _names(errors: Sequence[int]) -> list[str]:
    return [errno.errorcode[error] for error in errors]


def write(rows: Sequence[Row]) -> None:
    """Writes the page if every suite was tried."""
    if os.environ.get("WRITE_DOCS") and {row.suite for row in rows} == set(SUITES):
        DOCUMENT.write_text(document(rows))
