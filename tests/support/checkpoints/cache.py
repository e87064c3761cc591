"""Owns when test checkpoints are built: once for these sources and these versions, by one process at a time.

The marker is written last and holds a digest of the builders, so a stale or half-built folder is built anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from importlib.metadata import version
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[3]
_MARKER = ".built"
_BUILDING = ".building"
_IN_TESTS = ("reference.py", "save.py", "big.py")
_VERSIONS = ("torch", "torchtitan", "transformers", "tokenizers", "torch_checkpointing")


def digest() -> str:
    """Of every source and data file that decides what is written, and the versions of the libraries that write it."""
    build, examples = _REPOSITORY / "tests" / "build", _REPOSITORY / "examples"
    sources = [*build.glob("*.py"), *build.glob("data/*.json")]
    sources = [path for path in sources if path.name not in _IN_TESTS and not path.name.startswith("test_")]
    sources += [path for path in examples.glob("*.py") if path.name != "demo_run.py"]
    whole = hashlib.sha256()
    for path in sorted(sources):
        whole.update(f"{path.relative_to(_REPOSITORY)}\0".encode() + path.read_bytes())
    whole.update("".join(f"{name}=={version(name)}\n" for name in _VERSIONS).encode())
    return whole.hexdigest()


def is_current(out: Path) -> bool:
    """Whether `out` holds all cases as these sources write them. The run configs hold its absolute path."""
    try:
        return (out / _MARKER).read_text() == f"{out}\n{digest()}"
    except FileNotFoundError:
        return False


def ensure(out: Path) -> None:
    """Build into `out` (absolute) unless it is current. To be called in a process of its own: it forks.

    Raises:
        FileExistsError: `out` holds something that no earlier build left there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with out.with_name(out.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_current(out):
            return
        if any(out.iterdir()) and not any((out / name).exists() for name in (_MARKER, _BUILDING)):
            raise FileExistsError(f"{out} is neither empty nor an earlier build of the test checkpoints")
        shutil.rmtree(out)
        out.mkdir()
        (out / _BUILDING).touch()
        os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before torch is imported

        logging.disable(logging.WARNING)  # torchtitan's own, four times each

        from tests.support.checkpoints import folders, steps

        folders.write_all(out)
        steps.write_all(out)
        (out / _MARKER).write_text(f"{out}\n{digest()}")
        (out / _BUILDING).unlink()
