"""Owns the keys of the configuration: each stands once, here, with its type, default and meaning (see `config`, `keys`)."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from daemon.slurmkeys import Slurm

# How a value is written, and whether a root's table may set it.
_ROOT: dict[str, Any] = {"per_root": True}
_ROOT_DURATION: dict[str, Any] = {"per_root": True, "unit": "duration"}
_ROOT_SIZE: dict[str, Any] = {"per_root": True, "unit": "size"}
_ROOT_PATH: dict[str, Any] = {"per_root": True, "path": True}
_ROOT_COMMAND: dict[str, Any] = {"per_root": True, "command": True}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon does, for all roots or (see `for_root`) for one."""

    roots: Annotated[
        tuple[str, ...], Meta(description="Run roots, or folders of run roots, to watch.", extra={"path": True})
    ] = ()
    max_depth: Annotated[
        int, Meta(ge=0, description="Levels of folders below a root in which runs are looked for.", extra=_ROOT)
    ] = 3
    poll_interval: Annotated[
        float,
        Meta(
            gt=0,
            description="Time between two looks at a root: folders whose changes are not reported are listed.",
            extra=_ROOT_DURATION,
        ),
    ] = 10.0
    observer: Annotated[
        Literal["auto", "inotify", "polling"],
        Meta(
            description="`inotify` looks at once where something changed; `auto` uses it on local file systems only "
            "(remote ones report nothing of other hosts). What was not reported is found every `rescan_interval`.",
            extra=_ROOT,
        ),
    ] = "auto"
    rescan_interval: Annotated[
        float,
        Meta(
            gt=0,
            description="Time between two looks at everything, settled steps too; into published directories at every fifth.",
            extra=_ROOT_DURATION,
        ),
    ] = 120.0
    scan_deadline: Annotated[
        float,
        Meta(
            gt=0,
            description="A root whose scanner makes no progress for so long is unreachable: the scanner is killed and "
            "started again, with growing pauses.",
            extra=_ROOT_DURATION,
        ),
    ] = 60.0
    metadata_memory_limit: Annotated[
        int,
        Meta(
            ge=1 << 26,
            description="Memory for reading one `.metadata`; 24 times the file's size is added.",
            extra=_ROOT_SIZE,
        ),
    ] = 512 << 20
    metadata_deadline: Annotated[
        float,
        Meta(
            gt=0,
            description="Processor time for reading one `.metadata`; 1 s for each 2 MB of it is added.",
            extra=_ROOT_DURATION,
        ),
    ] = 30.0
    workers: Annotated[int, Meta(ge=1, description="Conversions at the same time on this host.")] = 1
    runner: Annotated[
        Literal["local", "slurm"],
        Meta(description="Where conversions run: here, or as Slurm jobs (docs/cluster.md).", extra=_ROOT),
    ] = "local"
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        Meta(description="Threads that move the bytes of a conversion; `auto` is the converter's choice.", extra=_ROOT),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="Dtype of the export; `auto` is the run's `training.dtype`.", extra=_ROOT),
    ] = "auto"
    max_shard_size: Annotated[
        int, Meta(gt=0, description="Largest HF shard; past it an export has several and an index.", extra=_ROOT_SIZE)
    ] = 50_000_000_000
    forward_check: Annotated[
        Literal["full", "off"],
        Meta(description="Compare TorchTitan's logits with HF's, through all layers.", extra=_ROOT),
    ] = "full"
    architecture: Annotated[
        Literal["base", "run"],
        Meta(
            description="Whose architecture holds where base assets and run differ: `base` refuses, `run` takes the run's, "
            "and makes config.json of it where the base assets have none.",
            extra=_ROOT,
        ),
    ] = "base"
    untie: Annotated[
        bool,
        Meta(
            description="Export embedding and head as two where the run calls them tied and they differ (TorchTitan 0.2.0 "
            "and 0.2.1 lost the tie).",
            extra=_ROOT,
        ),
    ] = False
    ignore_tensors: Annotated[
        tuple[str, ...],
        Meta(
            description="Shell patterns of whole tensor names beside the model that are left out: `rng_state`, `ema.*`.",
            extra=_ROOT,
        ),
    ] = ()
    allow_routing_drift: Annotated[
        bool, Meta(description="Convert a MoE whose balancing bias HF cannot express.", extra=_ROOT)
    ] = False
    accept_copies: Annotated[
        bool,
        Meta(
            description="For mounts whose clocks or mtimes say nothing (object storage): convert *suspect* steps once their "
            "listing has been the same for a minute.",
            extra=_ROOT,
        ),
    ] = False
    output: Annotated[
        Literal["auto", "alongside", "subdirectory"],
        Meta(
            description="Where to publish: `alongside` is `<run>/step-N-hf`, `subdirectory` is `<run>/hf/step-N-hf`; `auto` is "
            "alongside unless that would hurt training (`keep_latest_k` is 2, or the export has an index).",
            extra=_ROOT,
        ),
    ] = "auto"
    overwrite_foreign: Annotated[
        bool, Meta(description="Replace a `step-N-hf` that is somebody else's.", extra=_ROOT)
    ] = False
    max_attempts: Annotated[
        int, Meta(ge=1, description="Attempts that may fail before a step is quarantined.", extra=_ROOT)
    ] = 5
    backoff_initial: Annotated[
        float, Meta(ge=0, description="Pause after a first failed attempt; it doubles.", extra=_ROOT_DURATION)
    ] = 30.0
    backoff_max: Annotated[
        float, Meta(ge=0, description="Longest pause between two attempts.", extra=_ROOT_DURATION)
    ] = 3600.0
    config_grace: Annotated[
        float,
        Meta(
            ge=0,
            description="How long a missing or unreadable run config is waited for once the step is complete.",
            extra=_ROOT_DURATION,
        ),
    ] = 120.0
    deadline: Annotated[
        float,
        Meta(gt=0, description="Time without progress after which a conversion is killed.", extra=_ROOT_DURATION),
    ] = 600.0
    min_free_space: Annotated[
        int, Meta(ge=0, description="Space that a conversion must leave free on the root.", extra=_ROOT_SIZE)
    ] = 100_000_000
    state_dir: Annotated[
        str,
        Meta(
            description="Folder of the ledger, on a local disk. Empty: `$STATE_DIRECTORY`, else `/var/lib/dcp2hf` if "
            "readable, else `$XDG_STATE_HOME/dcp2hf`.",
            extra={"path": True},
        ),
    ] = ""
    logs_roots: Annotated[
        tuple[str, ...],
        Meta(description="Folders in which `<run name>/job_config.json` is looked for.", extra=_ROOT_PATH),
    ] = ()
    run_config_names: Annotated[
        tuple[str, ...],
        Meta(
            description="Further names of run configs (JSON, or TOML of TorchTitan 0.2), tried after `config.json` and `job_config.json`.",
            extra=_ROOT,
        ),
    ] = ()
    hf_assets: Annotated[str, Meta(description="Base assets to use whatever the run recorded.", extra=_ROOT_PATH)] = ""
    tokenizer: Annotated[str, Meta(description="Tokenizer to use whatever the run recorded.", extra=_ROOT_PATH)] = ""
    assets_roots: Annotated[
        tuple[str, ...],
        Meta(description="Folders under which relative recorded asset paths are looked for.", extra=_ROOT_PATH),
    ] = ()
    path_map: Annotated[
        dict[str, str],
        Meta(
            description="Prefixes of recorded paths and what they are here, for assets on another mount.",
            extra=_ROOT,
        ),
    ] = {}
    restrict_assets: Annotated[
        bool,
        Meta(
            description="Follow recorded asset paths only below a root, an `assets_roots` or the target of a `path_map`.",
            extra=_ROOT,
        ),
    ] = False
    min_step: Annotated[int, Meta(ge=0, description="Steps below it are left alone.", extra=_ROOT)] = 0
    every: Annotated[int, Meta(ge=1, description="Only steps divisible by it.", extra=_ROOT)] = 1
    order: Annotated[
        Literal["oldest", "newest"],
        Meta(description="Which step of a run comes first; `newest` outruns TorchTitan's purge.", extra=_ROOT),
    ] = "oldest"
    nice: Annotated[int, Meta(ge=0, le=19, description="CPU priority of conversions (19 is lowest).", extra=_ROOT)] = 10
    io_bandwidth_limit: Annotated[
        int,
        Meta(ge=0, description="Bytes a second that a conversion reads and writes; 0 is no limit.", extra=_ROOT_SIZE),
    ] = 0
    memory_limit: Annotated[
        int,
        Meta(
            ge=0,
            description="Data memory (RLIMIT_DATA) that each process of a conversion may map; 0 is no limit.",
            extra=_ROOT_SIZE,
        ),
    ] = 0
    metrics_address: Annotated[
        str,
        Meta(
            description="Where the status page, `/metrics`, `/healthz` and `/readyz` are served while it watches; empty "
            "is off.",
            extra={"address": True},
        ),
    ] = "127.0.0.1:9469"
    statistics: Annotated[
        bool,
        Meta(
            description="Estimate the RMS of weights and of their updates by layer, for the status page; samples of each "
            "run's newest steps are kept in `state_dir`. Conversions as jobs have none.",
            extra=_ROOT,
        ),
    ] = True
    before_publish: Annotated[
        tuple[str, ...],
        Meta(
            description="Command (a list of words, no shell) that sees an export before it is published, and may add files.",
            extra=_ROOT_COMMAND,
        ),
    ] = ()
    sign: Annotated[
        tuple[str, ...],
        Meta(description="Command that leaves `model.sig` there, made last, over all the rest.", extra=_ROOT_COMMAND),
    ] = ()
    on_success: Annotated[
        tuple[str, ...],
        Meta(description="Command that is told of each published step, at least once.", extra=_ROOT_COMMAND),
    ] = ()
    on_failure: Annotated[
        tuple[str, ...],
        Meta(description="Command that is told of each failure, at least once.", extra=_ROOT_COMMAND),
    ] = ()
    hook_timeout: Annotated[
        float,
        Meta(gt=0, description="Time after which one of these commands is killed.", extra=_ROOT_DURATION),
    ] = 600.0

    slurm: Annotated[Slurm, Meta(description="`[slurm]`: how jobs are submitted.")] = Slurm()
    root: Annotated[
        dict[str, dict[str, Any]], Meta(description='`[root."/path"]`: a root, and the keys that differ there.')
    ] = {}
    """Keys of tables are joined to them by a dot."""

    def for_root(self, root: str) -> "Settings":
        """These settings as they hold for one root."""
        own = self.root.get(root, {})
        slurm = {key.removeprefix("slurm."): value for key, value in own.items() if key.startswith("slurm.")}
        rest = {key: value for key, value in own.items() if "." not in key}
        return msgspec.structs.replace(self, **rest, slurm=msgspec.structs.replace(self.slurm, **slurm), root={})
