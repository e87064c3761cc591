"""Owns the listing of a step: its files, sizes and mtimes, its format, and whether it is complete.

Uses only the standard library. A step is listed, never probed. On NFS, a name that was looked up before it existed
stays missing for half a minute, a directory's mtime is equally old, and a file's size lags (measured, see
docs/architecture.md).
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from converter.common import errors

METADATA = ".metadata"
COPY_TOLERANCE = 5_000_000_000
"""ns by which a DCP shard may be newer than `.metadata` and still settle (clock of the file system)."""
SETTLE_SECONDS = 10.0
"""How long the listing must stay the same where shards are newer than `.metadata`."""
LONGEST_SAVE = 3600_000_000_000
"""ns by which a shard may be older than the file that ends its save. After writing, all ranks meet in a collective operation
(torch 2.13.0, `gather_object`), which gives up after 30 minutes by default: twice that."""
_TRANSFERS = (
    r"(.+?)(?:\.[0-9a-f]{8})?\.partial",  # rclone
    r"(.+)\.(?!\d{8}$)[0-9A-Fa-f]{8}",  # aws s3; eight digits are a date
    r"(.+)_\.gstmp",  # gsutil, gcloud storage
    r"\.azDownload-[0-9a-f-]{36}-(.+)",  # azcopy
    r"(.+)\.part\.minio",  # mc
    r"[.~]syncthing[.~](.+)\.tmp",
    r"\.unison\.(.+)\.[0-9a-f]+\.unison\.tmp",
    r"(.+)\.filepart",  # WinSCP
    r"\.in\.(.+?)\.?",  # lftp
    r"\.(.+)\.(?!sha\d)[A-Za-z0-9]{6}",  # rsync; last, since ".distcp" has six letters too
)
"""Temporary names under which tools write a file before they rename it; the group is the file's own name."""
_TRANSFER = re.compile("|".join(f"(?:{pattern})" for pattern in _TRANSFERS))
_OF_CHECKPOINT = re.compile(
    r"\.metadata(\..*)?|.*\.distcp|.*\.safetensors(\.index\.json)?|sharded|metadata\.pkl|model_\d+\.pt"
)
"""Names that may hold a checkpoint."""
_TRANSFER_FOLDERS = frozenset({".~tmp~", ".rsync-partial", ".rsync-tmp"})
"""Folders in which rsync keeps files until all are there (`--delay-updates`), or by convention what it has of one."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a listing shows of one entry of a step directory."""

    name: str
    size: int
    mtime_ns: int
    is_file: bool = True
    """A regular one: what is none (a directory, a pipe, a device) holds nothing of a checkpoint."""
    ctime_ns: int = 0
    """When it was last written or put in place: tells which of two files came later, and is no part of the fingerprint."""


class Times(NamedTuple):
    """mtimes (ns) of a step: of the files that hold its items, and of the one that ends its save."""

    oldest: int
    newest: int
    end: int

    @property
    def latest(self) -> int:
        """The newest of all of them."""
        return max(self.newest, self.end)


@dataclass(frozen=True)
class Listing:
    """One look at a step directory; never compared with the clock of this host, only with another look."""

    path: Path
    files: tuple[FileFacts, ...]
    links: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of names, sizes and mtimes of what may hold a checkpoint: the same as long as nobody saves or copies into it.

        A person's file beside it (an evaluation, a marker) is no part of it.
        """
        said = json.dumps(
            [[f.name, f.size, f.mtime_ns] for f in self.files if is_of_checkpoint(f)] + [list(self.links)]
        )
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def get(self, name: str) -> FileFacts | None:
        """The entry called `name`, if it is there."""
        return next((f for f in self.files if f.name == name), None)


def is_of_checkpoint(file: FileFacts) -> bool:
    """Whether an entry is one of DCP, of HF form or of torch_checkpointing, or a temporary file that becomes one."""
    names = (file.name, _target(file.name))
    return file.name in _TRANSFER_FOLDERS or any(_OF_CHECKPOINT.fullmatch(name) for name in names)


def _target(name: str) -> str:
    """The file's own name under which another tool puts a temporary file of this name in the end; "" for any other name."""
    match = _TRANSFER.fullmatch(name)
    return next((group for group in match.groups() if group), "") if match else ""


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
            files.append(
                FileFacts(entry.name, facts.st_size, facts.st_mtime_ns, stat.S_ISREG(facts.st_mode), facts.st_ctime_ns)
            )
    return Listing(path, tuple(sorted(files, key=lambda f: f.name)), tuple(sorted(links)))


def check_links(listing: Listing) -> None:
    """Raises UnsupportedFormat where a step holds links: they are not followed."""
    if listing.links:
        raise errors.UnsupportedFormat(
            f"the step holds a symbolic link, {listing.links[0]!r}, and links inside steps are not followed",
            path=listing.path / listing.links[0],
            hint="put the file itself in the link's place",
        )


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
    if listing.get(METADATA) is None:
        return "incomplete", "no .metadata yet"
    for name, size in sorted(extent.items()):
        found = listing.get(name)
        if found is None:
            return "incomplete", f"{name} is missing"
        if not found.is_file:
            return "incomplete", f"{name} is no file"
        if found.size < size:
            return "incomplete", f"{name} has {found.size:,} of {size:,} bytes"
    return wholeness(listing, extent, METADATA)


def times(listing: Listing, names: Iterable[str], end: str) -> Times | None:
    """The mtimes of a step with these files, the last one called `end`; None where one of them is missing."""
    stamps = {file.name: file.mtime_ns for file in listing.files}
    wanted = {*names}
    if end not in stamps or not wanted <= stamps.keys():
        return None
    found = [stamps[name] for name in wanted] or [stamps[end]]
    return Times(min(found), max(found), stamps[end])


def wholeness(listing: Listing, names: Collection[str], end: str) -> tuple[str, str]:
    """("complete" | "settling" | "suspect", reason) of a step in which these files and, at last, `end` have all their bytes.

    All of them are of one save unless their times, or another tool's temporary files, tell otherwise.
    """
    if unfinished := _transfer(listing, {*names, end}):
        return "suspect", f"{errors.printable(unfinished)} is a temporary file of a copy that goes on, or was cut off"
    found = times(listing, names, end)
    if found is None:
        return "complete", ""
    kind = "DCP shard" if end == METADATA else "file"
    late, early = found.newest - found.end, found.end - found.oldest
    if early > LONGEST_SAVE:
        return "suspect", (
            f"{kind}s are up to {early / 1e9:,.0f} s older than {end}, longer than a save takes: a mirror of a newer save "
            "over an older one that did not finish, or a copy that took as long"
        )
    if late <= 0:
        return "complete", ""
    if late <= COPY_TOLERANCE:
        return "settling", f"a {kind} is {late / 1e9:.3f} s newer than {end}"
    return "suspect", (
        f"{kind}s are up to {late / 1e9:,.0f} s newer than {end}: a copy made without -a, "
        "or a save over this step that did not finish"
    )


def _transfer(listing: Listing, names: Collection[str]) -> str | None:
    """An entry that another tool writes one of these files to, before it puts it in place; None: there is none.

    One that was left over is older than the file it was to become.
    """
    for entry in listing.files:
        if entry.name in names:
            continue
        if entry.name in _TRANSFER_FOLDERS and not entry.is_file:
            return entry.name
        target = _target(entry.name)
        if target in names and (found := listing.get(target)) and found.ctime_ns <= entry.ctime_ns:
            return entry.name
    return None
