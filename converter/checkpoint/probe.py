"""Owns the probe of a step: it reads `.metadata` without running it, and decides whether the step is complete.

Uses only the standard library. Run alone (`python -P -m converter.checkpoint.probe STEP`) it is the small process with
limited memory and time that unpickles for the converter and for the daemon's scanner. An allow-list stops code, but
nine hostile bytes can ask for 3 GB, and a valid `.metadata` of a large run takes over 1 GB.

The format is that of torch.distributed.checkpoint (torch 2.13.0), `metadata.py` and `filesystem.py`.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import Any

from converter.checkpoint import hf_step
from converter.checkpoint.completeness import METADATA, Listing, check_links, completeness, kind_of, list_step, times
from converter.checkpoint.tensors import StorageMetadata, TensorItems, from_json, from_pickle, to_json
from converter.common import errors, names_on_disk
from converter.common.files import REFUSED, read_regular
from converter.common.metadata_limits import PATIENCE, SIZE_LIMIT, Limits

_TOO_MUCH = "reading storage metadata took more memory or time than its size allows"
_RAISE = "if this checkpoint is trusted, raise --metadata-memory-limit or --metadata-deadline"
DEFAULT_LIMITS = Limits()


def read(step: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[Listing, StorageMetadata]:
    """Lists `step` and has its `.metadata` read in a limited process of its own.

    Raises StepIncomplete without `.metadata`, StepDamaged or HostileCheckpoint for one that cannot be used, StepVanished
    for one that was purged meanwhile, MachineFailure where it could not be read.
    """
    listing = list_step(step)
    found = listing.get(METADATA)
    if found is None:
        raise errors.StepIncomplete(
            "the step has no .metadata: its save is not finished", path=step, hint="wait for the save to end"
        )
    said = _run_apart(step, limits, found.size, "--items")
    if said.get("error"):
        raise getattr(errors, said["error"])(said["reason"], path=said.get("path", step), hint=said["hint"])
    return listing, from_json(said)


def _run_apart(step: Path, limits: Limits, size: int, *flags: str) -> dict[str, Any]:
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-m", "converter.checkpoint.probe", *limits.flags(), *flags, str(step)], cwd="/",
            env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE * limits.of(size)[1],
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _failed(step, "storage metadata was not read in time: the file system does not answer")
    return _said(step, answer.returncode, answer.stdout, answer.stderr)


def _said(step: Path, code: int, out: bytes, err: bytes) -> dict[str, Any]:
    """What the small process answered, or what its end means."""
    if code == 0:
        said: dict[str, Any] = json.loads(out)
        return said
    # Its own limit of time is SIGXCPU; SIGKILL comes from outside, when the machine is out of memory.
    if (code < 0 and code != -signal.SIGKILL) or b"MemoryError" in err:
        return _failed(step, _TOO_MUCH) | {"state": "damaged", "error": "MetadataLimit", "hint": _RAISE}
    last = err.decode(errors="replace").strip().rpartition("\n")[2]
    return _failed(step, f"storage metadata was not read (exit code {code}): {last}")


def _failed(step: Path, reason: str) -> dict[str, Any]:
    return {
        "state": "unknown", "error": "MachineFailure", "reason": reason, "hint": "it is tried again", "save_id": None,
        "path": str(step / METADATA),
    }  # fmt: skip


def probe_apart(step: Path, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """`probe` in a limited process of its own."""
    size = next((f.size for f in list_step(step).files if f.name == METADATA), 0)
    return _run_apart(step, limits, size)


def _payload(step: Path) -> bytes:
    """The bytes of `.metadata`. Raises StepDamaged for what is no file or too large a one, else OSError."""
    try:
        return read_regular(step / METADATA, limit=SIZE_LIMIT)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        raise errors.StepDamaged(
            f".metadata is no file that is read ({error.strerror})",
            path=step / METADATA,
            hint="find out who wrote this checkpoint",
        ) from None


def _environment() -> dict[str, str]:
    """Just enough for the child to find this package: never the caller's PYTHON* variables."""
    return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def probe(step: Path) -> dict[str, Any]:
    """What the daemon asks of a step: one JSON object, whatever is there. Raises nothing expected."""
    answer: dict[str, Any] = {
        "step": names_on_disk.step_number(step.name),
        "save_id": None,
        "reason": "",
        "error": None,
        "hint": "",
    }
    try:
        listing = list_step(step)
        answer["fingerprint"] = listing.fingerprint
        answer["kind"] = kind = kind_of(listing)
        check_links(listing)
        if kind == "torch_checkpointing":
            return answer | {
                "state": "unsupported",
                "error": "UnsupportedFormat",
                "reason": "saved by torch_checkpointing, which is not read",
                "hint": "save with DCP",
            }
        if kind == "hf":
            return answer | hf_step.state_of(step, listing)
        found = listing.get(METADATA)
        if found is None:
            return answer | {
                "state": "incomplete",
                "reason": "no .metadata yet" if kind == "dcp" else "nothing saved yet",
            }
        metadata = from_pickle(_payload(step), listing)
        state, reason = completeness(listing, metadata.extent)
        answer |= {"state": state, "reason": reason, "save_id": metadata.save_id, **_sizes(metadata.tensors.values())}
        if (stamps := times(listing, metadata.extent, METADATA)) is not None:
            answer |= {"oldest": stamps.oldest, "latest": stamps.latest}
        if not metadata.tensors:
            answer |= {"state": "no_model", "error": "NoModelInStep", "reason": "the checkpoint holds no model tensors"}
    except errors.UnsupportedFormat as error:
        answer |= {"state": "unsupported", "error": type(error).__name__, "reason": error.what, "hint": error.hint}
    except errors.ConversionError as error:
        answer |= {"state": "damaged", "error": type(error).__name__, "reason": error.what, "hint": error.hint}
    except FileNotFoundError:
        # Of no fingerprint: it holds for no listing.
        answer |= {"state": "incomplete", "reason": "gone while it was looked at", "fingerprint": ""}
    except (MemoryError, RecursionError):
        answer |= {"state": "damaged", "error": "MetadataLimit", "reason": _TOO_MUCH, "hint": _RAISE}
    return answer | {"reason": errors.brief(answer["reason"])}


def _sizes(tensors: Iterable[TensorItems]) -> dict[str, Any]:
    """Bytes, elements, largest item and dtypes of the model: all the daemon's estimates use."""
    chunks = [(c.length, t) for t in tensors for c in t.chunks]
    return {
        "model_bytes": sum(length for length, _ in chunks),
        "model_elements": sum(t.elements for t in tensors),
        "largest_item": max((length for length, _ in chunks), default=0),
        "dtypes": sorted({t.dtype for t in tensors}),
    }


def main(argv: list[str] | None = None) -> int:
    """One JSON line about a step, within limits of memory and time that it sets itself."""
    parser = argparse.ArgumentParser(prog="python -m converter.checkpoint.probe", description=__doc__)
    parser.add_argument("step", type=Path)
    parser.add_argument("--items", action="store_true", help="print all of the model's items, not the summary")
    parser.add_argument(
        "--memory", type=int, default=Limits.memory, help="bytes of address space, but for the file's size"
    )
    parser.add_argument(
        "--seconds", type=float, default=Limits.seconds, help="of processor time, but for the file's size"
    )
    options = parser.parse_args(argv)
    step: Path = options.step
    try:
        size = os.lstat(step / METADATA).st_size
    except OSError:
        size = 0
    memory, seconds = Limits(options.memory, options.seconds).of(size)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (ceil(seconds), ceil(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not options.items:
        print(json.dumps(probe(step)))
        return 0
    answer: dict[str, Any]
    try:
        listing = list_step(step)
        answer = to_json(from_pickle(_payload(step), listing))
    except errors.ConversionError as error:
        answer = {"error": type(error).__name__, "reason": error.what, "path": error.path, "hint": error.hint}
    except FileNotFoundError:
        answer = {
            "error": "StepVanished",
            "path": str(step),
            "reason": "the step is gone",
            "hint": "the trainer purged it",
        }
    except (MemoryError, RecursionError):
        answer = {"error": "MetadataLimit", "path": str(step / METADATA), "reason": _TOO_MUCH, "hint": _RAISE}
    except OSError as error:
        answer = {"error": "MachineFailure", "path": str(step), "reason": str(error), "hint": "it is tried again"}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
