"""Owns docs/fuzzing.md: how many mutated checkpoints were tried, and what became of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.robustness.fuzz.mutators import Mutator
from tests.robustness.fuzz.trial import Became

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "fuzzing.md"
_HEAD = """# Mutated checkpoints

This page reports the results of converting mutated checkpoints. `make fuzz` makes it (`tests/robustness/fuzz`,
hypothesis); do not edit it.

The tests change real tiny checkpoints of TorchTitan and DCP: dense and MoE, with the names of 0.2, 0.3 and between, of
four ranks and one, in float32 and bfloat16, and steps in HF form. Each changed checkpoint is read as the scanner reads
it, in a process with limited memory and time, and is then converted. The conversion must do one of two things. It
refuses the checkpoint with an expected error that does not blame the machine. Or it publishes exactly what torch and
TorchTitan read in the changed checkpoint: *the same* files as without the change, or *honest* other ones. A trial fails
on any other exception, on anything left behind, and past {cpu:.0f} s of processor time or {growth} MiB of new memory.

"""


def document(became: Mapping[Mutator, list[Became]], seed: int) -> str:
    """docs/fuzzing.md."""
    from tests.robustness.fuzz.trial import CPU_SECONDS, GROWTH

    every = [one for found in became.values() for one in found]
    slowest, largest = max(every, key=lambda one: one.seconds), max(every, key=lambda one: one.memory)
    lines = [
        _HEAD.format(cpu=CPU_SECONDS, growth=GROWTH >> 20),
        f"{len(every):,} checkpoints, seed {seed}, were tried.\n",
        f"The slowest took {slowest.seconds:.1f} s of processor time ({slowest.what}, {slowest.outcome}).\n",
        f"Reading a `.metadata` took at most {largest.memory >> 20} MiB of memory ({largest.what}).\n",
    ]
    for group in dict.fromkeys(mutator.group for mutator in became):
        lines.append(
            f"\n## {group[0].upper()}{group[1:]}\n\n| mutator | tried | published, the same | published, honest | refused |\n"
        )
        lines.append("|---|---|---|---|---|\n")
        for mutator, found in became.items():
            if mutator.group == group:
                lines.append(_line(mutator, found))
    return "".join(lines)


def _line(mutator: Mutator, found: list[Became]) -> str:
    outcomes = Counter(one.outcome for one in found)
    same, honest = outcomes.pop("the same", 0), outcomes.pop("honest: other", 0)
    refused = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
    return f"| `{mutator.name}` | {len(found)} | {same} | {honest} | {refused} |\n"


def said_in(text: str) -> tuple[int, list[str]]:
    """Number of trials and names of mutators that a document names."""
    total = re.search(r"^([\d,]+) checkpoints, seed", text, re.MULTILINE)
    assert total
    return int(total[1].replace(",", "")), re.findall(r"^\| `([^`]+)` \| \d", text, re.MULTILINE)
