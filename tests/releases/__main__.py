"""Owns how a release's files are made: the real daemon converts a root with a step of each kind, and people ask for things.

    python -m tests.releases CHECKPOINTS     # the folder that `python -m tests.support.checkpoints` made

writes tests/releases/VERSION/ledger.sql (SQLite's dump of the ledger, with its schema version) and conversion.json. What a
release wrote does not change any more: an existing folder is refused.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from daemon.ledger.database import NAME
from tests.integration.end_to_end.conftest import make_shards_newer
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.daemon.running import REPOSITORY, clean

KEPT = Path(__file__).parent
RUNS = {"good": "one_rank", "broken": "nan", "copied": "one_rank", "unfinished": "one_rank"}
"""Runs of the root, and of which case each is a copy."""
ROOT = "/checkpoints"
"""What the root is called in what is kept."""


def main() -> None:
    (checkpoints,) = map(Path, sys.argv[1:])
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    kept = KEPT / version
    if kept.exists():
        sys.exit(f"{kept} exists: what a release wrote does not change any more")
    with tempfile.TemporaryDirectory() as folder:
        root, state = Path(folder) / "root", Path(folder) / "state"
        _make_root(root, checkpoints)
        _run_and_ask(root, state)
        kept.mkdir()
        shutil.copy(root / "good/checkpoint/step-2-hf/conversion.json", kept)
        (kept / "ledger.sql").write_text(_dump(state / NAME).replace(str(root), ROOT))


def _make_root(root: Path, checkpoints: Path) -> None:
    for name, case in RUNS.items():
        shutil.copytree(BY_NAME[case].run(checkpoints), root / name)
    make_shards_newer(root / "copied/checkpoint/step-2")
    (root / "unfinished/checkpoint/step-2/.metadata").unlink()


def _run_and_ask(root: Path, state: Path) -> None:
    """One delivery was made, one waits; a copy is accepted that nobody converted yet."""
    hooks = {"DCP2HF_ON_SUCCESS": '["true"]', "DCP2HF_ON_FAILURE": '["false"]'}
    for code, *command in (
        (1, "run", "--once", root),
        (0, "retry", "--accept-copy", root / "copied/checkpoint"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "daemon", *command],
            env=clean({"DCP2HF_STATE_DIR": str(state)} | hooks), cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != code:
            sys.exit(f"{command} ended with {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")


def _dump(ledger: Path) -> str:
    db = sqlite3.connect(ledger)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return "\n".join((*db.iterdump(), f"PRAGMA user_version = {version};", ""))


if __name__ == "__main__":
    main()
