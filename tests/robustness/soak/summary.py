"""Owns the summary of a soak: what was played and seen, as a table, and its place in docs/soak.md."""

from __future__ import annotations

import re
from pathlib import Path

from tests.robustness.soak.history import Record
from tests.robustness.soak.measures import counts, growth_of

BEGIN, END = "<!-- made by tests/robustness/soak: WRITE_DOCS=1 make soak -->\n", "<!-- end -->"


def text(history: list[Record]) -> str:
    """A Markdown table of everything that was counted, and the measures of the daemon that lived longest."""
    begun = history[0]
    minutes = (history[-1]["t"] - begun["t"]) / 60
    rows = [f"| {name} | {count} |" for name, count in counts(history).items()]
    said = [
        f"Seed {begun['seed']}, {begun['steps']} saves planned, {minutes:.0f} minutes.",
        "",
        "| what | times |",
        "|---|---|",
    ]
    measured = growth_of(history)
    if measured is not None:
        rows += [
            "",
            f"The daemon that lived longest was measured for {measured.seconds / 60:.0f} minutes. It ran "
            f"{measured.conversions} conversions in that time.",
            f"A line fitted to its memory rose by {measured.kilobytes:,.0f} kB (largest "
            f"{measured.largest / 1000:.1f} MB). The number of its descriptors rose by {measured.descriptors}.",
        ]
    return "\n".join([*said, *rows])


def write(history: list[Record], document: Path) -> None:
    """Puts the summary between the marks of the document."""
    before, rest = document.read_text().split(BEGIN)
    _, after = re.split(re.escape(END), rest)
    document.write_text(f"{before}{BEGIN}{text(history)}\n{END}{after}")
