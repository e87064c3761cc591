"""Owns the files with samples of a run's steps, one safetensors file for each step, for comparison with the next step.

Uses only numpy and the standard library. The two most recently written files of a run are kept. Files with other names
stay.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from converter.checkpoint.hf_step import header
from converter.common.files import exists, fsync_directory, open_regular, read_into, write_durably
from converter.export.hf_shards import lay_out
from converter.export.plan import Export
from converter.statistics.element_sampling import Floats

MOST = 2
"""Steps of which samples are kept."""
_NAME = re.compile(r"\.?samples-(0|[1-9][0-9]{0,17})\.(safetensors|partial)")


def write(folder: Path, step: int, samples: Mapping[str, Floats]) -> None:
    """Keeps the samples of `step`, by identity, on disk when this returns; older ones go. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    exports = [Export(name, name, 0, values.shape) for name, values in samples.items()]
    (shard,), _ = lay_out(exports, dict.fromkeys(samples, "float32"), max_shard_size=1 << 62)
    payload = bytearray(shard.size)
    payload[: len(shard.header)] = shard.header
    for name, at in shard.positions.items():
        payload[at : at + samples[name].nbytes] = samples[name].tobytes()
    partial = folder / f".samples-{step}.partial"
    write_durably(partial, bytes(payload), exclusive=False)
    os.replace(partial, _path(folder, step))
    _forget_older(folder)
    fsync_directory(folder)


def others(folder: Path, step: int) -> list[int]:
    """Other steps of which samples are kept, the nearest first. Raises OSError."""
    if not exists(folder):
        return []
    found = {int(match[1]) for name in os.listdir(folder) if (match := _NAME.fullmatch(name)) and name[0] != "."}
    return sorted(found - {step}, key=lambda other: (abs(other - step), other))


class Kept:
    """The kept samples of one step, read one by one."""

    def __init__(self, folder: Path, step: int):
        """Raises OSError, and ValueError for what is no such file."""
        path = _path(folder, step)
        entries, size = header(path)
        self.step = step
        self._entries = {entry.name: entry for entry in entries}
        self._fd, facts = open_regular(path)
        if facts.st_size != size:
            self.close()
            raise ValueError(f"has {facts.st_size:,} of {size:,} bytes")

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._fd)

    def get(self, identity: str, count: int) -> Floats | None:
        """The `count` values under this identity; None where they are not there, or not as they were (no save that holds NaN
        or infinity is ever kept). Raises OSError."""
        entry = self._entries.get(identity)
        if entry is None or (entry.dtype, entry.shape) != ("float32", (count,)):
            return None
        values = np.empty(count, np.float32)
        is_whole = read_into(self._fd, values.data, entry.position) == values.nbytes
        return values if is_whole and np.isfinite(values).all() else None


class Nothing:
    """Stands for a step where there is none to compare with."""

    step = None

    def close(self) -> None:
        """There is nothing to let go of."""

    def get(self, identity: str, count: int) -> None:
        """Nothing is there."""


NOTHING = Nothing()


def _path(folder: Path, step: int) -> Path:
    return folder / f"samples-{step}.safetensors"


def _forget_older(folder: Path) -> None:
    """Leaves the newest ones; what a killed conversion left half written goes once it is older than those."""
    written = sorted(_ours(folder), reverse=True)
    whole = [path for _, path in written if path.suffix != ".partial"]
    oldest = min((stamp for stamp, path in written if path in whole[:MOST]), default=0)
    for stamp, path in written:
        if stamp < oldest or path in whole[MOST:]:
            with contextlib.suppress(FileNotFoundError):  # another conversion of this run has just done it
                path.unlink()


def _ours(folder: Path) -> Iterator[tuple[int, Path]]:
    for name in os.listdir(folder):
        if _NAME.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                yield (folder / name).stat().st_mtime_ns, folder / name
