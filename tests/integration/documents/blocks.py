"""Owns the blocks of commands in the documents, and what becomes of each.

A block in ```bash is commands, one in ```console commands after "$ " with what they print. A comment on the line before it
says who runs it: `<!-- lab: NAME -->` the tests of labs, by name; `<!-- not run: REASON -->` nobody, and why; without one
tests/integration/documents/test_commands.py does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
_BLOCK = re.compile(r"(?m)^(?:<!-- (lab|not run): (.+?) -->\n)?```(bash|console)\n(.*?)^```$", re.S)


@dataclass(frozen=True)
class Block:
    """One block."""

    document: str
    language: str
    text: str
    kind: str
    """"" (runs anywhere), "lab" or "not run"."""
    what: str
    """Of "lab" the name, of "not run" the reason."""


def of(document: str) -> list[Block]:
    """The blocks of a document, by its path in the repository."""
    found = _BLOCK.findall((REPOSITORY / document).read_text())
    return [Block(document, language, text, kind, what) for kind, what, language, text in found]


def lab(name: str, document: str = "docs/operators.md") -> str:
    """The commands of the lab's block of that name."""
    (found,) = (block.text for block in of(document) if (block.kind, block.what) == ("lab", name))
    return found


def commands(block: Block) -> list[tuple[str, str]]:
    """Each command of a console block with what it prints; a bash block is one command that may print what it likes."""
    if block.language == "bash":
        return [(block.text, "…\n")]
    parts = re.split(r"(?m)^\$ ", block.text)
    assert parts[0] == "", f"{block.document}: output before the first command in\n{block.text}"
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts[1:])]


def is_as_shown(shown: str, printed: str) -> bool:
    """Whether what was printed is what a document shows: … stands for anything, runs of spaces are as good as one."""
    pattern = "".join(
        ".*" if part == "…" else r"[ ]+" if part.isspace() and "\n" not in part else re.escape(part)
        for part in re.split(r"(…|[ ]+)", re.sub(r"(?m)[ ]+$", "", shown))
        if part
    )
    return re.fullmatch(pattern, re.sub(r"(?m)[ ]+$", "", printed), re.S) is not None
