"""Owns what a listing shows of a step: files, sizes, mtimes; which format it is; whether it is whole.

Standard library only. A step is listed, never probed: on NFS a name that was looked for before it was there stays
missing for half a minute, a directory's mtime is as old, and a file's size lags (measured, see docs/architecture.md).
"""

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

METADATA = ".metadata"
COPY_TOLERANCE = 5_000_000_000
"""ns by which a DCP shard may be newer than `.metadata` and still settle (clock of the file system)."""
SETTLE_SECONDS = 10.0
"""How long the listing must stay the same where shards are newer than `.metadata`."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a listing shows of one entry of a step directory."""

    name: str
    size: int
    mtime_ns: int
    is_file: bool = True
    """A regular one: what is none (a directory, a pipe, a device) holds nothing of a checkpoint."""


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
            files.append(FileFacts(entry.name, facts.st_size, facts.st_mtime_ns, stat.S_ISREG(facts.st_mode)))
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
        if not found.is_file:
            return "incomplete", f"{name} is no file"
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
