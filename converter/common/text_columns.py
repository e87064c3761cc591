"""Owns the text output of both commands that does not use rich: plain columns, and characters that an encoding lacks.

Uses only the standard library, because the daemon imports it too.
"""

import io
from collections.abc import Sequence
from typing import TextIO


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of left-aligned columns, two spaces apart, of any length: nothing wraps, so that a script finds whole lines."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def about(count: int) -> str:
    """A measured size in bytes, in three digits and decimal units, as both commands and the page write it: `1.19 GB`."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.3g} {unit}"


def allow_any_character(stream: TextIO) -> None:
    """A character that the stream's encoding lacks is written as an escape, instead of ending the command."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
