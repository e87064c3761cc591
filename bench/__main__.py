"""`make bench`: our conversion, TorchTitan's own and the floor, alternating in one run; medians and ratios.

    python -m bench [--size 0.6B] [--dtype float32] [--no-adam] [--runs 3] [--limit 1073741824] [--folder bench/data]

Prints a table (Markdown) and writes FOLDER/NAME.json. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import table
from bench.limited import memory_limit
from bench.measure import Cost, make_cold, make_warm, run
from bench.subject import PARAMETERS, Subject, available_memory, cores

CHECKS = {"all checks": (), "forward check off": ("--forward-check", "off")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.6B", choices=PARAMETERS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the checkpoint")
    parser.add_argument("--adam", default=True, action=argparse.BooleanOptionalAction)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit", type=int, default=0, help="bytes: once more inside a memory control group (root)")
    parser.add_argument("--theirs", default=True, action=argparse.BooleanOptionalAction)
    parser.add_argument("--folder", type=Path, default=Path("bench/data"))
    options = parser.parse_args()
    subject = Subject(options.size, options.dtype, options.adam, options.folder.absolute())
    say(f"needs {subject.needs_disk / 1e9:.0f} GB of disk in {subject.folder}")
    if shutil.disk_usage(subject.folder.parent).free < subject.needs_disk:
        sys.exit("not so much is free")
    subject.folder.mkdir(exist_ok=True)
    subject.build()
    with_theirs = options.theirs and subject.theirs_fits
    if options.theirs and not with_theirs:
        free = available_memory() / 1e9
        say(f"TorchTitan's conversion needs more memory than there is ({free:.0f} GB): no ratio against it")
    bench = Bench(subject, options.limit)
    for number in range(options.runs):
        for cache in ("warm", "cold"):
            say(f"run {number + 1} of {options.runs}, {cache}")
            bench.round(cache, with_theirs=with_theirs)
    (subject.folder / f"{subject.name}.json").write_text(json.dumps(bench.as_json(), indent=1))
    print(table.render(subject, bench.costs))


class Bench:
    """The measured runs: (what, cache) -> costs."""

    def __init__(self, subject: Subject, limit: int) -> None:
        self._subject, self._limit = subject, limit
        self._out = subject.folder / "out"
        self.costs: dict[tuple[str, str], list[Cost]] = {}

    def round(self, cache: str, *, with_theirs: bool) -> None:
        """Everything once."""
        subject, out, threads = self._subject, self._out, min(4, cores())
        if with_theirs:
            self._measure("TorchTitan's", cache, subject.theirs(out / "theirs"))
        for what, flags in CHECKS.items():
            self._measure(what, cache, subject.ours(out, *flags))
            if self._limit:
                with memory_limit(self._limit) as prefix:
                    self._measure(f"{what}, limited", cache, subject.ours(out, *flags), prefix)
        export = self._measure("export alone", cache, subject.export_alone(out / "alone", threads))
        written = export.said[-1]["written"]
        self._measure("floor", cache, subject.floor(out / "floor", written, threads))

    def _measure(self, what: str, cache: str, command: list[str], prefix: list[str] | None = None) -> Cost:
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        (make_warm if cache == "warm" else make_cold)(self._subject.step)
        cost = run(command, prefix=prefix or ())
        self.costs.setdefault((what, cache), []).append(cost)
        say(f"  {what}: {cost.wall:.1f} s, {cost.anonymous / 1e6:.0f} MB")
        shutil.rmtree(self._out)
        return cost

    def as_json(self) -> dict[str, Any]:
        """Every run as it was measured."""
        return {
            "machine": table.machine(),
            "costs": {f"{what} ({cache})": [asdict(cost) for cost in costs] for (what, cache), costs in self.costs.items()},
        }  # fmt: skip


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
