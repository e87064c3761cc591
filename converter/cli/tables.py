"""Owns the output of `dcp2hf inspect`: tables on a terminal, plain columns if it is piped."""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converter.common.errors import printable
from converter.common.text_columns import about, allow_any_character, columns

_STEPS = ("step", "state", "format", "model", "parameters", "dtypes", "DCP shards", "save id")
_TENSORS = ("tensor", "dtype", "shape", "parameters", "chunks")
_NUMBERS = {"model", "parameters", "DCP shards", "shape", "chunks"}
"""Columns that a terminal aligns to the right."""
_WIDE = 70
_WIDE_ONLY = {"format", "parameters", "DCP shards", "save id", "chunks"}
"""Columns that a terminal has from so many characters on."""
_COLOURS = {
    "complete": "green",
    "suspect": "yellow",
    "settling": "yellow",
    "incomplete": "yellow",
    "damaged": "red",
    "unreadable": "red",
}


def show(described: list[dict[str, Any]]) -> None:
    """A table of steps and why some are not complete; of a single step, its tensors as well."""
    allow_any_character(sys.stdout)
    steps = [_step(said) for said in described]
    reasons = [f"{_name(said)}: {printable(said['reason'])}" for said in described if said["reason"]]
    reasons += [f"{_name(said)}: {printable(said['note'])}" for said in described if said.get("note")][:1]
    tensors = described[0].get("tensors", {}) if len(described) == 1 else {}
    rows = [_tensor(fqn, facts) for fqn, facts in tensors.items()]
    if sys.stdout.isatty():
        _draw(steps, reasons, rows)
        return
    for line in (*columns(_STEPS, steps), *reasons):
        print(line)
    if rows:
        print("", *columns(_TENSORS, rows), sep="\n")


def _name(said: dict[str, Any]) -> str:
    return printable(Path(said["path"]).name)


def _step(said: dict[str, Any]) -> tuple[str, ...]:
    return (
        _name(said), said["state"], said.get("kind", ""), about(said.get("model_bytes", 0)),
        f"{said.get('model_elements', 0):,}", printable(" ".join(said.get("dtypes", ()))), str(said.get("ranks", "")),
        printable(str(said.get("save_id") or "")),
    )  # fmt: skip


def _tensor(fqn: str, facts: dict[str, Any]) -> tuple[str, ...]:
    shape = facts["shape"]
    return (
        printable(fqn), printable(facts["dtype"]), "x".join(map(str, shape)), f"{math.prod(shape):,}", str(facts["chunks"])
    )  # fmt: skip


def _draw(steps: Sequence[Sequence[str]], reasons: Sequence[str], tensors: Sequence[Sequence[str]]) -> None:
    """The same on a terminal: what does not fit is folded, and a run has a sum."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)

    def draw(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(box=None, pad_edge=False, header_style="dim")
        if console.width < _WIDE:
            kept = [i for i, name in enumerate(head) if name not in _WIDE_ONLY]
            head, rows = [head[i] for i in kept], [[row[i] for i in kept] for row in rows]
        for i, name in enumerate(head):
            between = 0 < i < len(head) - 1
            table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=between, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, _COLOURS.get(cell, "") if i == 1 else "") for i, cell in enumerate(row)))
        console.print(table)

    draw(_STEPS, steps)
    for reason in reasons:
        console.print(Text(reason, "yellow"))
    if len(steps) > 1:
        count = Counter(row[1] for row in steps)
        console.print(Text(", ".join(f"{count[state]:,} {state}" for state in count), "dim"))
    if tensors:
        console.print()
        draw(_TENSORS, tensors)
        console.print(Text(f"{len(tensors):,} tensors", "dim"))
