"""`python -m tests.robustness.soak --seed N --steps N --place DIR`: plays a soak, checks its history, prints what was played.

As root it first gives itself a mount namespace of its own, so that the small file system goes with it. Exit code 1: the
history breaks a rule; it and everything else is kept, and named. WRITE_DOCS=1 writes the summary into docs/soak.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.checkpoints.cache import is_current

_OWN = "SOAK_HAS_ITS_MOUNTS"
_REPOSITORY = Path(__file__).resolve().parents[3]


def main() -> int:
    """Plays and checks, or with --check only checks a history."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2), "big"), help="default: any")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pace", type=float, default=5.0, help="seconds between two saves of any run")
    parser.add_argument(
        "--place", type=Path, help="an empty or new folder; default: one in the folder for temporary files"
    )
    known = os.environ.get("TEST_CHECKPOINTS", str(_REPOSITORY / "build" / "checkpoints"))
    parser.add_argument("--checkpoints", type=Path, default=Path(known), help="test checkpoints; built if need be")
    parser.add_argument("--check", type=Path, metavar="HISTORY", help="only check this history")
    options = parser.parse_args()
    if options.check:
        return _judge(options.check, None)
    if os.geteuid() == 0 and not os.environ.get(_OWN) and _can_unshare():
        command = ["unshare", "--mount", sys.executable, "-m", "tests.robustness.soak", *sys.argv[1:]]
        os.execvpe("unshare", command, os.environ | {_OWN: "1"})

    from tests.robustness.soak.history import History
    from tests.robustness.soak.play import play
    from tests.robustness.soak.schedule import plan

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended then, too
    checkpoints = options.checkpoints.absolute()
    if not is_current(checkpoints):
        subprocess.run(
            [sys.executable, "-m", "tests.support.checkpoints", str(checkpoints)], cwd=_REPOSITORY, check=True
        )
    place = Path(options.place or tempfile.mkdtemp(prefix="soak-")).absolute()
    place.mkdir(parents=True, exist_ok=True)
    history = History(place / "history.jsonl")
    print(f"soak: seed {options.seed}, {options.steps} steps, in {place}", flush=True)
    play(plan(options.seed, options.steps, options.pace), place, checkpoints, history)
    history.close()
    return _judge(history.path, place if options.place is None else None)


def _can_unshare() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "--mount", "true"]).returncode == 0


def _judge(path: Path, temporary: Path | None) -> int:
    """Prints what was played and what it breaks; removes the place of a soak that broke nothing."""
    from tests.robustness.soak import summary
    from tests.robustness.soak.history import read
    from tests.robustness.soak.model import check

    history = read(path)
    violations = check(history)
    print(summary.text(history))
    for violation in violations:
        print(f"BROKEN {violation.rule}: {violation.what} (t={violation.t:.3f})")
    if violations:
        begun = history[0]
        print(f"{len(violations)} broken; seed {begun['seed']}, {begun['steps']} steps; the history is {path}")
        print(f"again: make soak SEED={begun['seed']} STEPS={begun['steps']}")
        return 1
    if os.environ.get("WRITE_DOCS"):
        summary.write(history, _REPOSITORY / "docs" / "soak.md")
    if temporary is not None:
        shutil.rmtree(temporary)
    print("nothing broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
