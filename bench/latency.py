"""How long a step waits: from the rename of `.metadata` to `conversion_started` and to the published directory.

    python -m bench.latency [--size 0.6B] [--steps 5] [--folder bench/data]

A daemon with a free worker, every check on and the default `poll_interval`; the checkpoint is that of `make bench`,
hard-linked. Prints Markdown: seconds, the largest of all steps and their median, once where events work, once by polling.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from bench.subject import Subject

_REPOSITORY = Path(__file__).resolve().parent.parent
_PATIENCE = 600.0
"""Seconds for one step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.6B")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("bench/data"))
    options = parser.parse_args()
    subject = Subject(options.size, "float32", True, options.folder.absolute())
    subject.folder.mkdir(exist_ok=True)
    subject.build()
    print("| observer | `conversion_started` after s, median | largest | published after s, median | largest |")
    print("| --- | --- | --- | --- | --- |")
    for observer in ("inotify", "polling"):
        with tempfile.TemporaryDirectory(prefix="latency-", dir=subject.folder) as folder:
            waits = list(measure(subject, Path(folder), observer, options.steps))
        began, ended = zip(*waits, strict=True)
        figures = (statistics.median(began), max(began), statistics.median(ended), max(ended))
        print(f"| {observer} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


def measure(subject: Subject, place: Path, observer: str, steps: int) -> Iterator[tuple[float, float]]:
    """Seconds until each step's conversion began, and until it was published."""
    run = place / "root" / "run" / "checkpoint"
    run.mkdir(parents=True)
    shutil.copy2(subject.run / "checkpoint" / "config.json", run)
    environ = os.environ | {
        "DCP2HF_STATE_DIR": str(place / "state"), "DCP2HF_OBSERVER": observer, "DCP2HF_DTYPE": "bfloat16"
    }  # fmt: skip
    said = place / "log"
    with said.open("w") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "daemon", "run", place / "root"],
            env=environ,
            cwd=_REPOSITORY,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(said, "root_watched", 0)
        for number in range(1, steps + 1):
            step = run / f"step-{number}"
            step.mkdir()
            for file in sorted(subject.step.iterdir()):
                os.link(file, step / (file.name if file.name != ".metadata" else "metadata.incoming"))
            time.sleep(13 + number)  # as a save takes: the polls fall elsewhere each time
            os.rename(step / "metadata.incoming", step / ".metadata")
            complete = time.time()
            began = wait_for(said, "conversion_started", number)
            yield began - complete, wait_for(said, "conversion_succeeded", number) - complete
            shutil.rmtree(run / f"step-{number}-hf")
    finally:
        daemon.terminate()
        daemon.wait()


def wait_for(log: Path, event: str, number: int) -> float:
    """When the event was logged of step `number` (0: of any), seconds since the epoch. Raises TimeoutError."""
    ends = time.monotonic() + _PATIENCE
    while time.monotonic() < ends:
        for line in log.read_text().splitlines():
            fields = json.loads(line) if line.startswith("{") else {}
            if fields.get("event") == event and fields.get("step", 0) == number:
                return datetime.fromisoformat(fields["timestamp"]).timestamp()
        time.sleep(0.1)
    raise TimeoutError(f"no {event} of step {number} within {_PATIENCE:.0f} s in\n{log.read_text()[-3000:]}")


if __name__ == "__main__":
    main()
