"""Owns `conversion.json`, the manifest of a published directory. It is written last.

Uses only the standard library. The manifest contains nothing that depends on when, where or with how many threads it
was made, so that the same save gives the same bytes: no host, no path, no time, no measured figure. It ends with a
hash of itself. Only the manifest contains the settings of the conversion (shard size, exceptions), so only this hash
shows that they were changed.
"""

import errno
import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from converter.common import names_on_disk
from converter.common.errors import DENIED
from converter.common.files import CONFIG_LIMIT, REFUSED, kind, parse_json, read_regular, write_durably

FORMAT = 1
DEEPEST = 16
"""Folders below one another that what was added may lie in."""
SEAL = "manifest_sha256"
"""Of the manifest without this key."""
ASSET_NAMES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""The tokenizer's files that are copied, besides `additional_chat_templates/*.jinja`."""
HASHED_UP_TO = 16 << 20
"""Bytes of a file whose edit is told by its hash; of a larger one by its size, since reading it again takes too long."""
TEMPLATES = "additional_chat_templates"
_NO_SUCH_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""What names say that a manifest lists and nothing can have: whoever made the directory may have written them."""
_EXPORT_NAMES = frozenset({"config.json", "generation_config.json", "model.safetensors.index.json", *ASSET_NAMES})


@dataclass(frozen=True)
class FileEntry:
    """One file of the directory: its size and its hash."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Check:
    """One check with its verdict ("passed") or, if it did not run ("not run"), the reason."""

    name: str
    verdict: str
    tolerance: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The save that was converted, the versions used, and the checks that ran."""

    step: int
    save_id: str
    dtype: str
    max_shard_size: int
    tensors: int
    parameters: int
    tools: dict[str, str]
    run_config_sha256: str
    files: dict[str, FileEntry]
    checks: tuple[Check, ...]
    accepted: dict[str, Any] = field(default_factory=dict)
    """Exceptions a person allowed: a copy, routing drift, the run's architecture, a head of its own (`untied`), and the
    FQNs of tensors beside the model that were left out (`ignored_tensors`)."""
    run_config_conflict_sha256: str | None = None
    added: dict[str, FileEntry] = field(default_factory=dict)
    """What a `before_publish` hook put there: outside the promise of same bytes."""


def to_bytes(manifest: Manifest) -> bytes:
    """The manifest as it stands on disk."""
    return _sealed(as_dict(manifest))


def as_dict(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON has it, but for its seal."""
    return {"format": FORMAT} | asdict(manifest)


def _sealed(said: dict[str, Any]) -> bytes:
    return _dump(said | {SEAL: hashlib.sha256(_dump(said)).hexdigest()})


def _dump(said: dict[str, Any]) -> bytes:
    return (json.dumps(said, indent=2, sort_keys=True, ensure_ascii=True) + "\n").encode()


def is_intact(directory: Path) -> bool:
    """Whether every byte of a manifest that `read` can read is as it was written."""
    payload = read_regular(directory / names_on_disk.MANIFEST, limit=CONFIG_LIMIT)
    said = parse_json(payload)
    said.pop(SEAL, None)
    return _sealed(said) == payload


def write(directory: Path, manifest: Manifest) -> None:
    """Writes `conversion.json`, durably."""
    write_durably(directory / names_on_disk.MANIFEST, to_bytes(manifest))


def read(directory: Path) -> Manifest | None:
    """The manifest of a published directory, or None where there is none that we wrote. Raises OSError otherwise."""
    try:
        said = parse_json(read_regular(directory / names_on_disk.MANIFEST, limit=CONFIG_LIMIT))
        if said.pop("format") != FORMAT:
            return None
        said.pop(SEAL, None)
        entries = {
            key: {name: FileEntry(**entry) for name, entry in said.pop(key).items()} for key in ("files", "added")
        }
        found = Manifest(**said | entries | {"checks": tuple(Check(**check) for check in said["checks"])})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return None
    right = isinstance(found.save_id, str) and found.save_id.isprintable()  # the daemon says it
    right = right and isinstance(found.step, int) and isinstance(found.dtype, str) and isinstance(found.accepted, dict)
    ignored = found.accepted.get("ignored_tensors", []) if right else []
    right = right and isinstance(ignored, list) and all(isinstance(fqn, str) for fqn in ignored)
    files = [*found.files.items(), *found.added.items()]
    return found if right and all(type(entry.size) is int and _is_inside(name) for name, entry in files) else None


def _is_inside(name: str) -> bool:
    """Whether a name that a manifest lists stays in its directory: whoever made the directory may have written it."""
    return name.isprintable() and all(part not in ("", ".", "..") for part in name.split("/"))


def is_up_to_date(directory: Path, *, save_id: str, dtype: str, max_shard_size: int) -> bool:
    """Whether `directory` holds a whole export of this save, dtype and HF shard size."""
    found = read(directory)
    if found is None or (found.save_id, found.dtype, found.max_shard_size) != (save_id, dtype, max_shard_size):
        return False
    try:
        return all(os.stat(directory / name).st_size == entry.size for name, entry in found.files.items())
    except OSError as error:
        if error.errno not in _NO_SUCH_FILE:
            raise
        return False


def is_name_of_export(name: str) -> bool:
    """Whether an export of ours, or of a user's old script, may have a file of this name."""
    if name in _EXPORT_NAMES or (name.startswith("model") and name.endswith(".safetensors") and "/" not in name):
        return True
    folder, _, template = name.partition("/")
    return folder == TEMPLATES and template.endswith(".jinja") and "/" not in template


def foreign_files(directory: Path) -> list[str]:
    """Names in `directory` that are somebody's work: what our manifest does not list or, where there is none of ours,
    what no export of a user's old script has. Of a folder with such a file, or with nothing, its own name."""
    found = read(directory)
    known = {names_on_disk.MANIFEST}
    if found is not None:
        known |= found.files.keys() | found.added.keys() | {names_on_disk.SIGNATURE}

    def is_foreign(name: str) -> bool:
        path = directory / name
        if kind(path, follow=False) == stat.S_IFDIR:
            inside = os.listdir(path) if name.count("/") < DEEPEST else []
            return not inside or any(is_foreign(f"{name}/{part}") for part in inside)
        return not (name in known or is_of_nfs(name) or (found is None and is_name_of_export(name)))

    return [name for name in sorted(os.listdir(directory)) if is_foreign(name)]


def edited_files(directory: Path) -> list[str]:
    """Names that the manifest lists and whose bytes are no longer those it lists: a person's work, sorted.

    Files larger than HASHED_UP_TO are compared by size. A file that may not be read counts as edited. Raises OSError.
    """
    found = read(directory)
    listed = found.files | found.added if found is not None else {}
    return [name for name, entry in sorted(listed.items()) if _is_edited(directory, name, entry)]


def _is_edited(directory: Path, name: str, entry: FileEntry) -> bool:
    path = directory / name
    if any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(directory) and parent != directory):
        return False  # what lies behind a link is not in this directory
    try:
        facts = os.lstat(path)
    except OSError as error:
        if error.errno not in _NO_SUCH_FILE:
            raise
        return False
    if not stat.S_ISREG(facts.st_mode) or facts.st_size != entry.size:
        return True
    if facts.st_size > HASHED_UP_TO:
        return False
    try:
        return hashlib.sha256(read_regular(path, limit=HASHED_UP_TO)).hexdigest() != entry.sha256
    except OSError as error:
        if error.errno not in REFUSED | DENIED:
            raise
        return True


def is_empty(directory: Path) -> bool:
    """Whether nothing lies in it, as a script leaves it that fails early: nobody's work. Raises OSError."""
    return all(is_of_nfs(name) for name in os.listdir(directory))


def is_of_nfs(name: str) -> bool:
    """Whether an NFS client made this name for a file that was removed while somebody had it open."""
    return name.rpartition("/")[2].startswith(".nfs")
