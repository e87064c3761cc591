"""Owns the options of a conversion, from the command line or from the daemon. Uses only the standard library."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from converter.common.io_pacing import KEPT_IN_CACHE, Traffic
from converter.common.metadata_limits import Limits
from converter.publish.publish_hooks import PublishHooks
from converter.run import base_assets

MAX_SHARD_SIZE = 50_000_000_000
"""transformers 5's default: 50 GB."""


@dataclass(frozen=True)
class Options:
    """What a person or the daemon may ask of a conversion; `cli` says what each means."""

    output: Path | None = None
    dtype: str = "auto"
    run_config: Path | None = None
    run_config_names: tuple[str, ...] = ()
    logs_roots: tuple[Path, ...] = ()
    search: base_assets.Search = field(default_factory=base_assets.Search)
    architecture: str = "base"
    untie: bool = False
    """Export embedding and head that the run calls tied, and which differ, as two."""
    ignore_tensors: tuple[str, ...] = ()
    """Shell patterns of FQNs beside the model."""
    allow_routing_drift: bool = False
    accept_copy: bool = False
    force: bool = False
    max_shard_size: int = MAX_SHARD_SIZE
    threads: int = 0
    """0: as many as there are cores to run on, at most 4."""
    forward_check: str = "full"
    if_exists: str = "overwrite"
    ours_only: bool = False
    """Exports without our manifest are somebody's, too."""
    metadata_limits: Limits = field(default_factory=Limits)
    io_bandwidth_limit: int = 0
    """Bytes a second that are read and written, by both processes together; 0: no limit."""
    hooks: PublishHooks = field(default_factory=PublishHooks)
    statistics: Path | None = None
    """Folder of one run's samples; None: nothing is sampled."""
    sleep: Callable[[float], None] = time.sleep

    def traffic(self, model_bytes: int) -> Traffic:
        """What one of the processes that move bytes of this model may do to its neighbours."""
        processes = 2 if self.forward_check == "full" else 1
        return Traffic(self.io_bandwidth_limit / processes, drop_behind=model_bytes > KEPT_IN_CACHE)
