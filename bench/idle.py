"""What watching costs while nothing happens: a daemon over RUNS runs of STEPS converted steps under one root.

    python -m bench.idle [--runs 100] [--steps 100] [--seconds 300]

Prints Markdown: memory of each process once the first rescan is over, processor time, and system calls by kind (strace,
where it is installed). The steps are real ones of one tiny checkpoint, hard-linked; the ledger knows them, as after
having converted them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.measure import family
from converter.checkpoint.probe import probe
from converter.common import names_on_disk
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Row, State
from daemon.scanner.messages import answer_of

_REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--observer", default="auto", choices=["auto", "polling"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dcp2hf-idle-") as folder:
        place = Path(folder)
        make(place, options.runs, options.steps)
        watch(place, options.seconds, options.observer)


def make(place: Path, runs: int, steps: int) -> None:
    """A root of hard links to one converted step, and a ledger that knows them."""
    subprocess.run(
        [sys.executable, "-m", "tests.support.checkpoints.big", place / "one", "--size", "tiny", "--ranks", "2"],
        cwd=_REPOSITORY, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    step = place / "one" / "checkpoint" / "step-2"
    command = [sys.executable, "-m", "converter", "convert", "--dcp-path", step, "--forward-check", "off"]
    subprocess.run(command, cwd=_REPOSITORY, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = Ledger.open(place / "state")
    answer = answer_of(probe(step))
    for run in (place / "root" / f"run-{number:03d}" / "checkpoint" for number in range(runs)):
        run.mkdir(parents=True)
        shutil.copy2(step.parent / "config.json", run)
        for number in range(1, steps + 1):
            for name, to in ((step.name, f"step-{number}"), (f"{step.name}-hf", names_on_disk.published_name(number))):
                shutil.copytree(step.with_name(name), run / to, copy_function=os.link)
                shutil.copystat(step.with_name(name), run / to)
            path = str(run / f"step-{number}")
            ledger.put(
                Row(
                    path=path, root=str(place / "root"), run=str(run), run_name=run.parent.name, step=number,
                    save_id=answer.save_id or "", state=State.DONE, answer=answer, complete_at=1.0,
                    output=str(run / names_on_disk.published_name(number)),
                )
            )  # fmt: skip
    ledger.close()


def watch(place: Path, seconds: int, observer: str) -> None:
    environ = os.environ | {"DCP2HF_STATE_DIR": str(place / "state"), "DCP2HF_OBSERVER": observer}
    log = open(place / "log", "w")  # noqa: SIM115 - the daemon's for as long as it runs
    began = time.monotonic()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "daemon", "run", place / "root"], env=environ, cwd=_REPOSITORY, stdout=log, stderr=log
    )
    try:
        time.sleep(150)  # the first scan, and the first rescan (after 2 minutes)
        used = {pid: ticks(pid) for pid in family(daemon.pid)}
        print(f"log after {time.monotonic() - began:.0f} s: {len((place / 'log').read_text().splitlines())} lines\n")
        time.sleep(seconds)
        print("| process | resident MB | shared out (PSS) MB | % of a core |\n| --- | --- | --- | --- |")
        for pid in family(daemon.pid):
            percent = (ticks(pid) - used.get(pid, 0)) / os.sysconf("SC_CLK_TCK") / seconds * 100
            name = "scanner" if "scanner" in Path(f"/proc/{pid}/cmdline").read_text() else "daemon"
            print(f"| {name} | {rollup(pid, 'Rss'):.1f} | {rollup(pid, 'Pss'):.1f} | {percent:.2f} |")
        for pid in family(daemon.pid) if shutil.which("strace") else ():
            count(pid)
    finally:
        daemon.terminate()
        daemon.wait()
        log.close()


def ticks(pid: int) -> int:
    """Processor time of a process and its ended children, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def rollup(pid: int, key: str) -> float:
    """MB, from /proc/PID/smaps_rollup."""
    match = re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    assert match
    return int(match[1]) / 1024


def count(pid: int, seconds: int = 60) -> None:
    """System calls of a process in a minute, by kind."""
    found = subprocess.run(
        ["timeout", "-s", "INT", str(seconds), "strace", "-c", "-f", "-p", str(pid)], capture_output=True, text=True
    ).stderr
    calls = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", found, re.M)
    total = next((int(number) for number, name in calls if name == "total"), 0)
    most = ", ".join(f"{name} {number}" for number, name in calls if name != "total")
    print(f"\nprocess {pid}: {total} system calls in {seconds} s ({most})")


if __name__ == "__main__":
    main()
