"""Owns the resources of a job: processors, memory and time, by the step's size and earlier shortages. Pure."""

import math
from typing import NamedTuple

from daemon.config.settings import Settings

BASE_MEMORY = 3 << 30
"""Bytes. A conversion has 0.6 to 1.2 GB resident whatever the model's size (docs/performance.md); what it reads and writes
counts as the job's too until the kernel gives it back."""
METADATA_SHARE = 100
"""A step has about so many times the bytes that reading its storage metadata takes (a 235B's: 80 MB, over 1 GB to read)."""
BASE_TIME = 900.0
"""Seconds for imports, metadata and a file system that is busy."""
MOST_DOUBLINGS = 4
_MINUTE = 60.0


class Needs(NamedTuple):
    """What is asked for."""

    cpus: int
    memory: int
    """Bytes."""
    seconds: float
    """Whole minutes."""


def reckon(model_bytes: int, settings: Settings, *, too_small: int = 0, too_short: int = 0) -> Needs:
    """What a job for a model of so many bytes in its checkpoint asks for.

    `too_small` and `too_short` count the jobs of this save that ended for want of memory, or of time: each doubles it,
    up to `MOST_DOUBLINGS` times.
    """
    slurm = settings.slurm
    hooks = sum(map(bool, (settings.before_publish, settings.sign))) * settings.hook_timeout
    memory = slurm.memory or BASE_MEMORY + model_bytes // METADATA_SHARE
    seconds = slurm.time or BASE_TIME + model_bytes / slurm.rate + hooks
    return Needs(
        slurm.cpus,
        memory << min(too_small, MOST_DOUBLINGS),
        math.ceil(seconds * 2 ** min(too_short, MOST_DOUBLINGS) / _MINUTE) * _MINUTE,
    )
