"""Owns DCP storage metadata: reads `.metadata` without running it, and says whether a step is complete.

Standard library only. Run alone (`python -P -m converter.storage STEP`) it is the small process, limited in
memory and time, that both the converter and the daemon's scanner leave the unpickling to: an allow-list stops
code, but nine hostile bytes can ask for 3 GB, and an honest `.metadata` of a large run takes over 1 GB.

Format: torch.distributed.checkpoint (torch 2.13.0), `metadata.py` and `filesystem.py`.
"""

import argparse
import hashlib
import json
import os
import pickle
import re
import resource
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from converter import errors, layout
from converter.unpickle import DISTCP_NAME, parse

METADATA = ".metadata"
NOT_MODEL = frozenset({"optimizer", "lr_scheduler", "dataloader", "train_state"})
"""First parts of FQNs that TorchTitan's checkpointer keeps beside the model (0.2.0 to 0.3.0)."""
COPY_TOLERANCE = 5_000_000_000
"""ns by which a DCP shard may be newer than `.metadata` and still settle (clock of the file system)."""
SETTLE_SECONDS = 10.0
"""How long the listing must stay the same where shards are newer than `.metadata`."""
_TOO_MUCH = "reading storage metadata took more memory or time than its size allows"
_RAISE = "raise metadata_memory_limit or metadata_deadline if this checkpoint is trusted"
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes an element of each dtype that TorchTitan stores."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a listing shows of one entry of a step directory."""

    name: str
    size: int
    mtime_ns: int
    is_dir: bool = False


@dataclass(frozen=True)
class Listing:
    """One look at a step directory; never compared with the clock of this host, only with another look."""

    path: Path
    files: tuple[FileFacts, ...]
    links: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of names, sizes and mtimes: the same as long as nobody writes into the directory."""
        said = json.dumps([[f.name, f.size, f.mtime_ns] for f in self.files] + [list(self.links)])
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def get(self, name: str) -> FileFacts | None:
        """The entry called `name`, if it is there."""
        return next((f for f in self.files if f.name == name), None)


def list_step(path: Path) -> Listing:
    """Names, sizes and mtimes in `path`; `.nfs*` leftovers of deleted files are no part of a step.

    Raises OSError as the file system gives it (FileNotFoundError: purged).
    """
    files, links = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(".nfs"):
                continue
            if entry.is_symlink():
                links.append(entry.name)
                continue
            facts = entry.stat(follow_symlinks=False)
            files.append(FileFacts(entry.name, facts.st_size, facts.st_mtime_ns, stat.S_ISDIR(facts.st_mode)))
    return Listing(path, tuple(sorted(files, key=lambda f: f.name)), tuple(sorted(links)))


def kind_of(listing: Listing) -> str:
    """ "dcp", "hf" (`last_save_in_hf`), "torch_checkpointing" or "unknown" (nothing there tells yet)."""
    names = {f.name for f in listing.files}
    if METADATA in names or any(name.endswith(".distcp") for name in names):
        return "dcp"
    if "metadata.pkl" in names or any(re.fullmatch(r"model_\d+\.pt", name) for name in names):
        return "torch_checkpointing"
    if "sharded" in names or any(".safetensors" in name for name in names):
        return "hf"
    return "unknown"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One item of a tensor: the hyper-rectangle it covers, and where its bytes lie."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    """Bytes from the start of the DCP shard to the item's zip."""
    length: int
    """Bytes of the item's zip."""


@dataclass(frozen=True, slots=True)
class TensorItems:
    """A tensor of the checkpoint: global shape, dtype's name without `torch.`, and its chunks."""

    fqn: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def elements(self) -> int:
        """Number of elements of the whole tensor."""
        return prod(self.shape)


@dataclass(frozen=True)
class StorageMetadata:
    """What `.metadata` says: the save's identity, the model's tensors, what else is in the checkpoint."""

    save_id: str
    tensors: dict[str, TensorItems]
    others: int = 0
    """Items that are not the model's (optimizer, train state, …)."""
    ranks: int = 0
    """Number of DCP shards that hold something."""
    extent: dict[str, int] = field(default_factory=dict)
    """For every DCP shard named, the bytes it must have at least."""


def is_model(fqn: str) -> bool:
    """Whether an FQN belongs to the model: all that TorchTitan does not keep beside it."""
    return fqn.partition(".")[0] not in NOT_MODEL


def from_pickle(payload: bytes, listing: Listing) -> StorageMetadata:
    """`.metadata`'s bytes as StorageMetadata. Runs nothing of what they say.

    Raises StepDamaged for what is no storage metadata, HostileCheckpoint for what names code or other folders.
    """
    where = listing.path / METADATA
    raw = parse(payload, where)
    extent: dict[str, int] = {}
    placed: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]] = {}
    others = 0
    for item in raw.items:
        if not DISTCP_NAME.fullmatch(item.file):
            raise errors.HostileCheckpoint(
                f"storage metadata names a file outside the step: {item.file!r}",
                path=where,
                hint="find out who wrote this checkpoint",
            )
        extent[item.file] = max(extent.get(item.file, 0), item.offset + item.length)
        if item.offsets is None or not is_model(item.fqn):
            others += 1
        elif item.transforms:
            raise errors.StepDamaged(
                f"item {item.fqn} is stored through {', '.join(item.transforms)}, which is not read",
                path=where,
                hint="save without stream transforms",
            )
        elif placed.setdefault((item.fqn, item.offsets), where_is := (item.file, item.offset, item.length)) != where_is:
            raise errors.StepDamaged(f"item {item.fqn} is stored twice", path=where, hint="save this step again")
    tensors = {}
    for tensor in raw.tensors:
        if not is_model(tensor.fqn):
            continue
        chunks = []
        for offsets, sizes in tensor.chunks:
            place = placed.pop((tensor.fqn, offsets), None)
            if prod(sizes) == 0 and place is None:
                continue
            if place is None:
                raise errors.StepDamaged(
                    f"{tensor.fqn} has a chunk at {offsets} that is stored nowhere",
                    path=where,
                    hint="save this step again",
                )
            if prod(sizes):
                chunks.append(Chunk(offsets, sizes, *place))
        tensors[tensor.fqn] = TensorItems(tensor.fqn, tensor.dtype, tensor.shape, tuple(chunks))
    stray = next((fqn for fqn, _ in placed), None)
    if stray is not None:
        raise errors.StepDamaged(f"an item of {stray} belongs to no chunk", path=where, hint="save this step again")
    save_id = raw.save_id or hashlib.sha256(payload + listing.fingerprint.encode()).hexdigest()[:32]
    return StorageMetadata(save_id, tensors, others, len(extent), extent)


def completeness(listing: Listing, extent: dict[str, int]) -> tuple[str, str]:
    """("complete" | "incomplete" | "settling" | "suspect", reason) of a DCP step with these needs.

    "settling" becomes complete once the listing has been the same for SETTLE_SECONDS.
    """
    metadata = listing.get(METADATA)
    if metadata is None:
        return "incomplete", "no .metadata yet"
    newest = 0
    for name, size in sorted(extent.items()):
        found = listing.get(name)
        if found is None:
            return "incomplete", f"{name} is missing"
        if found.size < size:
            return "incomplete", f"{name} has {found.size:,} of {size:,} bytes"
        newest = max(newest, found.mtime_ns)
    late = newest - metadata.mtime_ns
    if late <= 0:
        return "complete", ""
    if late <= COPY_TOLERANCE:
        return "settling", f"a DCP shard is {late / 1e9:.3f} s newer than .metadata"
    return "suspect", (
        f"DCP shards are up to {late / 1e9:,.0f} s newer than .metadata: a copy made without -a, "
        "or a save over this step that did not finish"
    )


def limits(size: int) -> tuple[int, int]:
    """(bytes of memory, seconds) that reading a `.metadata` of `size` bytes may take."""
    return (512 << 20) + 24 * size, 30 + size // 2_000_000


def read(step: Path, *, memory: int | None = None, seconds: float | None = None) -> tuple[Listing, StorageMetadata]:
    """Lists `step` and has its `.metadata` read in a limited process of its own.

    Raises StepIncomplete without `.metadata`, StepDamaged or HostileCheckpoint for one that cannot be used.
    """
    listing = list_step(step)
    found = listing.get(METADATA)
    if found is None:
        raise errors.StepIncomplete(
            "the step has no .metadata: its save is not finished", path=step, hint="wait for the save to end"
        )
    most_memory, most_seconds = limits(found.size)
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-m", "converter.storage", "--items", f"--memory={memory or most_memory}", str(step)],
            cwd="/", env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds or most_seconds,
        )  # fmt: skip
        said = json.loads(answer.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        raise errors.StepDamaged(_TOO_MUCH, path=step / METADATA, hint=_RAISE) from None
    if said.get("error"):
        raise getattr(errors, said["error"])(said["reason"], path=said["path"], hint=said["hint"])
    return listing, from_json(said)


def probe_apart(step: Path) -> dict[str, Any]:
    """`probe` in a limited process of its own."""
    size = next((f.size for f in list_step(step).files if f.name == METADATA), 0)
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-m", "converter.storage", str(step)], cwd="/", env=_environment(), stdin=subprocess.DEVNULL,
            capture_output=True, timeout=limits(size)[1],
        )  # fmt: skip
        said: dict[str, Any] = json.loads(answer.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return {"state": "damaged", "error": "StepDamaged", "reason": _TOO_MUCH, "hint": _RAISE, "save_id": None}
    return said


def _environment() -> dict[str, str]:
    """Just enough for the child to find this package: never the caller's PYTHON* variables."""
    return {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def to_json(metadata: StorageMetadata) -> dict[str, Any]:
    """All of it, for another process."""
    return {
        **asdict(metadata),
        "tensors": [
            [t.fqn, t.dtype, t.shape, [[c.offsets, c.sizes, c.file, c.offset, c.length] for c in t.chunks]]
            for t in metadata.tensors.values()
        ],
    }


def from_json(said: dict[str, Any]) -> StorageMetadata:
    """The other way."""
    tensors = {}
    for fqn, dtype, shape, chunks in said.pop("tensors"):
        tensors[fqn] = TensorItems(
            fqn,
            dtype,
            tuple(shape),
            tuple(Chunk(tuple(o), tuple(s), file, at, length) for o, s, file, at, length in chunks),
        )
    return StorageMetadata(tensors=tensors, **{k: said[k] for k in ("save_id", "others", "ranks", "extent")})


def probe(step: Path) -> dict[str, Any]:
    """What the daemon asks of a step: one JSON object, whatever is there. Raises nothing expected."""
    answer: dict[str, Any] = {
        "step": layout.step_number(step.name),
        "save_id": None,
        "reason": "",
        "error": None,
        "hint": "",
    }
    try:
        listing = list_step(step)
        answer["fingerprint"] = listing.fingerprint
        answer["kind"] = kind = kind_of(listing)
        if listing.links:
            return answer | {
                "state": "damaged",
                "error": "HostileCheckpoint",
                "reason": f"{listing.links[0]!r} is a symbolic link",
                "hint": "links inside steps are not followed",
            }
        if kind == "torch_checkpointing":
            return answer | {
                "state": "unsupported",
                "error": "UnsupportedFormat",
                "reason": "saved by torch_checkpointing, which is not read",
                "hint": "save with DCP",
            }
        if kind == "hf":
            from converter.hf_step import state_of

            return answer | state_of(step, frozenset(f.name for f in listing.files))
        found = listing.get(METADATA)
        if found is None:
            return answer | {
                "state": "incomplete",
                "reason": "no .metadata yet" if kind == "dcp" else "nothing saved yet",
            }
        metadata = from_pickle((step / METADATA).read_bytes(), listing)
        state, reason = completeness(listing, metadata.extent)
        answer |= {"state": state, "reason": reason, "save_id": metadata.save_id, **_sizes(metadata.tensors.values())}
        if not metadata.tensors:
            answer |= {"state": "no_model", "error": "NoModelInStep", "reason": "the checkpoint holds no model tensors"}
    except errors.ConversionError as error:
        answer |= {"state": "damaged", "error": type(error).__name__, "reason": error.what, "hint": error.hint}
    except FileNotFoundError:
        answer |= {"state": "incomplete", "reason": "gone while it was looked at"}
    except (MemoryError, RecursionError):
        answer |= {"state": "damaged", "error": "StepDamaged", "reason": _TOO_MUCH, "hint": _RAISE}
    return answer


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
    parser = argparse.ArgumentParser(prog="python -m converter.storage", description=__doc__)
    parser.add_argument("step", type=Path)
    parser.add_argument("--items", action="store_true", help="print all of the model's items, not the summary")
    parser.add_argument("--memory", type=int, help="bytes of address space (default: by the file's size)")
    options = parser.parse_args(argv)
    step: Path = options.step
    try:
        size = os.stat(step / METADATA).st_size
    except OSError:
        size = 0
    memory, seconds = limits(size)
    resource.setrlimit(resource.RLIMIT_AS, (options.memory or memory,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not options.items:
        print(json.dumps(probe(step)))
        return 0
    answer: dict[str, Any]
    try:
        listing = list_step(step)
        answer = to_json(from_pickle((step / METADATA).read_bytes(), listing))
    except errors.ConversionError as error:
        answer = {"error": type(error).__name__, "reason": error.what, "path": error.path, "hint": error.hint}
    except (MemoryError, RecursionError, pickle.UnpicklingError):
        answer = {"error": "StepDamaged", "path": str(step / METADATA), "reason": _TOO_MUCH, "hint": _RAISE}
    except OSError as error:
        answer = {"error": "MachineFailure", "path": str(step), "reason": str(error), "hint": "it is tried again"}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
