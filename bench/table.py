"""Owns how results are shown: medians and ratios, as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import Cost
from bench.subject import Subject, cores

Costs = Mapping[tuple[str, str], Sequence[Cost]]
PHASES = ("look", "plan", "tokenizer", "export", "wait_for_plan", "forward_titan", "forward_hf", "read_back", "publish")


def machine() -> dict[str, str]:
    """What the figures depend on."""
    model = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.machine(),
    )  # fmt: skip
    tools = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchtitan", "transformers", "numpy"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": f"{cores()} cores of {model}", "memory": f"{memory / 1e9:.0f} GB", "tools": tools}


def render(subject: Subject, costs: Costs) -> str:
    """All of it."""
    about = machine()
    parts = [
        f"### {subject.size}, {subject.dtype}{' with Adam' if subject.adam else ''}, 4 ranks, exported in bfloat16",
        f"{about['processor']}, {about['memory']}; {about['tools']}. Medians of {len(next(iter(costs.values())))}.",
        _whole(costs),
        _export(costs),
        _phases(costs),
        _bytes(costs),
    ]
    return "\n\n".join(part for part in parts if part)


def _whole(costs: Costs) -> str:
    rows = []
    for (what, cache), found in costs.items():
        if what in ("export alone", "floor"):
            continue
        theirs = costs.get(("TorchTitan's", cache))
        wall, anonymous = middle(found, lambda c: c.wall), middle(found, lambda c: c.anonymous)
        faster = f"{middle(theirs, lambda c: c.wall) / wall:.1f}x" if theirs else ""
        smaller = f"{middle(theirs, lambda c: c.anonymous) / anonymous:.0f}x" if theirs else ""
        spread = f"{min(c.wall for c in found):.1f} to {max(c.wall for c in found):.1f}"
        cpu, read = middle(found, lambda c: c.cpu), middle(found, lambda c: c.read)
        written = middle(found, lambda c: c.written)
        rows.append([what, cache, f"{wall:.1f}", spread, f"{cpu:.1f}", f"{anonymous / 1e6:.0f}",
                     f"{middle(found, lambda c: c.largest) / 1e6:.0f}", f"{read / 1e9:.2f}", f"{written / 1e9:.2f}",
                     faster, smaller])  # fmt: skip
    head = ["whole command", "cache", "wall s", "from to", "CPU s", "anonymous MB, all processes",
            "largest process MB", "read GB", "written GB", "faster", "smaller"]  # fmt: skip
    return _table(head, rows)


def _export(costs: Costs) -> str:
    rows = []
    for cache in ("warm", "cold"):
        if ("floor", cache) not in costs:
            continue
        floor = {key: middle(costs["floor", cache], _said(key)) for key in ("moved", "durable")}
        ours = {key: middle(costs["export alone", cache], _said(key)) for key in ("moved", "durable", "hashed")}
        rows.append([cache, f"{floor['moved']:.2f}", f"{ours['moved']:.2f}", f"{ours['moved'] / floor['moved']:.2f}x",
                     f"{floor['durable']:.2f}", f"{ours['durable']:.2f}", f"{ours['durable'] / floor['durable']:.2f}x",
                     f"{ours['hashed']:.2f}", f"{ours['hashed'] / floor['durable']:.2f}x",
                     f"{ours['hashed'] / floor['moved']:.2f}x"])  # fmt: skip
    head = ["export alone", "floor s", "ours s", "ratio", "floor and fsync s", "ours and fsync s", "ratio",
            "ours, fsync, read back and hashed s", "to the floor and fsync", "to the floor without fsync"]  # fmt: skip
    return _table(head, rows)


def _phases(costs: Costs) -> str:
    rows = []
    for (what, cache), found in costs.items():
        ends = [line for cost in found for line in cost.said if line.get("event") == "conversion_succeeded"]
        if ends:
            row = [median(end["phases"].get(phase, 0.0) for end in ends) for phase in PHASES]
            rows.append([what, cache, *(f"{seconds:.2f}" for seconds in row)])
    return _table(["phases, s (some side by side)", "cache", *PHASES], rows)


def _bytes(costs: Costs) -> str:
    """What was read of the checkpoint, by our own count: the optimizer's part would show."""
    rows = []
    for (what, cache), found in costs.items():
        said = {line["event"]: line for line in found[0].said if "event" in line}
        if cache == "warm" and "conversion_succeeded" in said:
            items, read = said["conversion_started"]["bytes_total"], said["conversion_succeeded"]["bytes_read"]
            rows.append([what, f"{items:,}", f"{read:,}", f"{read / items:.3f}x"])
    return _table(["bytes of the checkpoint", "in the model's items", "read", "ratio"], rows)


def middle(costs: Sequence[Cost], of: Callable[[Cost], float]) -> float:
    return median(map(of, costs))


def _said(key: str) -> Callable[[Cost], float]:
    return lambda cost: float(cost.said[-1][key])


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) if rows else ""
