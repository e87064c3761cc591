"""Owns docs/survival.md: what `make faults` tried, and what became of it."""

from __future__ import annotations

import errno
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tests.robustness.calls.plans import GIVES, LOST_REPLIES
from tests.robustness.calls.pool import ALL_POINTS, Row
from tests.robustness.calls.seam import Kind

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "survival.md"
SUITES = {
    "A call of the converter fails": (
        "The conversion succeeds with the same bytes, or it fails with an expected error that states the retry policy. "
        "A published directory is complete, either the old one or the new one. No file of training changes. Nothing "
        "that the converter made is left, unless its removal failed. The next conversion succeeds with the same bytes "
        "and cleans up."
    ),
    "A call of the scanner fails": (
        "The scan continues and reports the failure at most once. It reports a step as complete, up to date or gone "
        "only if that is true. A later scan reports the same facts as a scan without a fault."
    ),
    "A call of the daemon below state_dir fails": (
        "The daemon still converts every complete step. It exits as documented and never with a traceback."
    ),
    "The converter is killed": (
        "Directly after SIGKILL, a published directory is complete, either the old one or the new one. If there was "
        "none before, there may be none. Where names cannot be exchanged, the old one may be set aside, and sweeping "
        "puts it back. The next conversion publishes the same bytes and leaves nothing of its own. No file of training "
        "changes."
    ),
    "The daemon is killed": ("After the next start every complete step is converted, once."),
}
"""Each suite and what it promises."""
_HEAD = """# Failing calls and kills

This page lists the failing calls and kills that the tests inject, and the results. `make faults` makes it; do not edit
it.

`tests/robustness/calls` replaces the file calls of libc itself, so that no call bypasses it. It acts on every call on a
path below the root or below `state_dir`. It makes one call after the other fail once, with each errno that such a call
can give. It makes all calls fail from one call on. It kills the process with SIGKILL before a call, or after the call
took effect. A *point* is one call and its fault. Every point below was tried, and every promise held.
"""
_WHOLE = """
In a first export and in the scanner every call fails with every errno. Calls of the kinds READ, STAT, READDIR, OPEN and
CLOSE number hundreds. There, each call gets one errno, and the next call the next errno. In the other situations every
third call fails in this way, and below `state_dir` every call. A lasting failure begins at every tenth call, and a full
disk at each call.
"""
_PART = """
**This page has a part of the points**, as `make test` tries them: each errno of each kind of call in one place, and
each state of a publication once. `make faults` tries all points and writes this page again.
"""


def told(row: Row) -> str:
    """What became of the points, the commonest first."""
    return ", ".join(f"{what} {count:,}" for what, count in row.outcomes.most_common())


def document(rows: Sequence[Row]) -> str:
    """The whole page."""
    lines = [_HEAD, _WHOLE if ALL_POINTS else _PART, "\n"]
    for suite, promise in SUITES.items():
        lines.append(f"## {suite}\n\n{textwrap.fill(promise, 118)}\n\n")
        lines.append("| situation | points | what became of them |\n|---|---|---|\n")
        lines += [f"| {row.situation} | {row.points:,} | {told(row)} |\n" for row in rows if row.suite == suite]
        lines.append("\n")
    lines.append(f"{sum(row.points for row in rows):,} points in all.\n\n## Errors of each call\n\n")
    lines.append("| call | once, with | although it took effect |\n|---|---|---|\n")
    names = {kind: ", ".join(_names(errors)) for kind, errors in GIVES.items()}
    lines += [f"| {kind.name} | {names[kind]} | {', '.join(_names(LOST_REPLIES.get(kind, ())))} |\n" for kind in Kind]
    lines.append(
        "\nREAD and WRITE also move only half of the requested bytes. Lasting failures are ENOSPC and EDQUOT\n"
    )
    lines.append("for all calls that write, and EIO and ESTALE for every call.\n")
    return "".join(lines)


def _names(errors: Sequence[int]) -> list[str]:
    return [errno.errorcode[error] for error in errors]


def write(rows: Sequence[Row]) -> None:
    """Writes the page if every suite was tried."""
    if os.environ.get("WRITE_DOCS") and {row.suite for row in rows} == set(SUITES):
        DOCUMENT.write_text(document(rows))
