"""Owns the keys of the configuration. Each is defined here once, with type, default and meaning (see `load`)."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from daemon.config.slurm_settings import Slurm

# How a value is written, and whether a root's table may set it.
_ROOT: dict[str, Any] = {"per_root": True}
_ROOT_DURATION: dict[str, Any] = {"per_root": True, "unit": "duration"}
_ROOT_SIZE: dict[str, Any] = {"per_root": True, "unit": "size"}
_ROOT_PATH: dict[str, Any] = {"per_root": True, "path": True}
_ROOT_COMMAND: dict[str, Any] = {"per_root": True, "command": True}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon does, for all roots or (see `for_root`) for one."""

    roots: Annotated[
        tuple[str, ...],
        Meta(description="Checkpoint folders of runs, or folders of runs, to watch.", extra={"path": True}),
    ] = ()
    max_depth: Annotated[
        int, Meta(ge=0, description="How many levels of folders below a root to search for runs.", extra=_ROOT)
    ] = 3
    poll_interval: Annotated[
        float,
        Meta(
            gt=0,
            description="How often to list the folders of a root in which inotify does not report changes.",
            extra=_ROOT_DURATION,
        ),
    ] = 10.0
    observer: Annotated[
        Literal["auto", "inotify", "polling"],
        Meta(
            description="How changes are noticed. `inotify` reports them at once; `auto` uses it on local file "
            "systems only, since remote ones do not report the changes of other hosts. Every "
            "`rescan_interval` finds what was not reported.",
            extra=_ROOT,
        ),
    ] = "auto"
    rescan_interval: Annotated[
        float,
        Meta(
            gt=0,
            description="How often to rescan every step, including finished ones. Published directories are checked "
            "on every fifth rescan.",
            extra=_ROOT_DURATION,
        ),
    ] = 120.0
    scan_deadline: Annotated[
        float,
        Meta(
            gt=0,
            description="A root whose scanner makes no progress for this long is reported as unreachable. The scanner"
            " is killed and restarted, with growing pauses.",
            extra=_ROOT_DURATION,
        ),
    ] = 60.0
    metadata_memory_limit: Annotated[
        int,
        Meta(
            ge=1 << 26,
            description="Memory limit for reading one `.metadata`, plus 24 times the size of the file.",
            extra=_ROOT_SIZE,
        ),
    ] = 512 << 20
    metadata_deadline: Annotated[
        float,
        Meta(
            gt=0,
            description="Processor time limit for reading one `.metadata`, plus 1 s for each 2 MB of it.",
            extra=_ROOT_DURATION,
        ),
    ] = 30.0
    workers: Annotated[int, Meta(ge=1, description="How many conversions run at the same time on this host.")] = 1
    runner: Annotated[
        Literal["local", "slurm"],
        Meta(description="Where conversions run: on this host, or as Slurm jobs (docs/cluster.md).", extra=_ROOT),
    ] = "local"
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        Meta(
            description="Threads that read, cast and write in one conversion. `auto` lets the converter choose.",
            extra=_ROOT,
        ),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="Dtype of the export. `auto` uses the run's `training.dtype`.", extra=_ROOT),
    ] = "auto"
    max_shard_size: Annotated[
        int,
        Meta(gt=0, description="Largest HF shard. A larger export has several shards and an index.", extra=_ROOT_SIZE),
    ] = 50_000_000_000
    forward_check: Annotated[
        Literal["full", "off"],
        Meta(description="Compare TorchTitan's logits with HF's, through all layers.", extra=_ROOT),
    ] = "full"
    architecture: Annotated[
        Literal["base", "run"],
        Meta(
            description="Which architecture to use where base assets and run differ. `base` refuses to convert. `run`"
            " uses the run's, and writes config.json from it where the base assets have none.",
            extra=_ROOT,
        ),
    ] = "base"
    untie: Annotated[
        bool,
        Meta(
            description="Export embedding and head as two tensors where the run calls them tied and they differ "
            "(TorchTitan 0.2.0 and 0.2.1 lost the tie).",
            extra=_ROOT,
        ),
    ] = False
    ignore_tensors: Annotated[
        tuple[str, ...],
        Meta(
            description="Tensors beside the model to leave out, as shell patterns of whole names: `rng_state`, "
            "`ema.*`.",
            extra=_ROOT,
        ),
    ] = ()
    allow_routing_drift: Annotated[
        bool, Meta(description="Convert a MoE whose balancing bias HF cannot express.", extra=_ROOT)
    ] = False
    accept_copies: Annotated[
        bool,
        Meta(
            description="Convert *suspect* steps once their listing has not changed for a minute. For mounts whose "
            "clocks or mtimes cannot be trusted, such as object storage.",
            extra=_ROOT,
        ),
    ] = False
    output: Annotated[
        Literal["auto", "alongside", "subdirectory"],
        Meta(
            description="Where to publish. `alongside` is `<run>/step-N-hf`, `subdirectory` is `<run>/hf/step-N-hf`. "
            "`auto` is alongside unless that would harm training (`keep_latest_k` is 2, or the export has"
            " an index).",
            extra=_ROOT,
        ),
    ] = "auto"
    overwrite_foreign: Annotated[
        bool, Meta(description="Replace a `step-N-hf` that the daemon did not make.", extra=_ROOT)
    ] = False
    max_attempts: Annotated[
        int, Meta(ge=1, description="How many attempts may fail before a step is quarantined.", extra=_ROOT)
    ] = 5
    backoff_initial: Annotated[
        float,
        Meta(
            ge=0,
            description="Pause after the first failed attempt. It doubles after each further one.",
            extra=_ROOT_DURATION,
        ),
    ] = 30.0
    backoff_max: Annotated[
        float, Meta(ge=0, description="Longest pause between two attempts.", extra=_ROOT_DURATION)
    ] = 3600.0
    config_grace: Annotated[
        float,
        Meta(
            ge=0,
            description="How long to wait for a missing or unreadable run config once the step is complete.",
            extra=_ROOT_DURATION,
        ),
    ] = 120.0
    deadline: Annotated[
        float,
        Meta(gt=0, description="A conversion that makes no progress for this long is killed.", extra=_ROOT_DURATION),
    ] = 600.0
    min_free_space: Annotated[
        int,
        Meta(
            ge=0,
            description="Space that a conversion must leave free on the file system of the root.",
            extra=_ROOT_SIZE,
        ),
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
        Meta(description="Folders to search for `<run name>/job_config.json`.", extra=_ROOT_PATH),
    ] = ()
    run_config_names: Annotated[
        tuple[str, ...],
        Meta(
            description="Further file names of run configs (JSON, or TOML of TorchTitan 0.2), tried after "
            "`config.json` and `job_config.json`.",
            extra=_ROOT,
        ),
    ] = ()
    hf_assets: Annotated[
        str, Meta(description="Base assets to use instead of those the run recorded.", extra=_ROOT_PATH)
    ] = ""
    tokenizer: Annotated[
        str, Meta(description="Tokenizer to use instead of the one the run recorded.", extra=_ROOT_PATH)
    ] = ""
    assets_roots: Annotated[
        tuple[str, ...],
        Meta(
            description="Folders below which to search for asset paths that the run recorded as relative.",
            extra=_ROOT_PATH,
        ),
    ] = ()
    path_map: Annotated[
        dict[str, str],
        Meta(
            description="Prefixes of recorded paths and their replacements, for assets on another mount.",
            extra=_ROOT,
        ),
    ] = {}
    restrict_assets: Annotated[
        bool,
        Meta(
            description="Follow recorded asset paths only below a root, an `assets_roots` or the target of a "
            "`path_map`.",
            extra=_ROOT,
        ),
    ] = False
    min_step: Annotated[int, Meta(ge=0, description="Ignore steps below this one.", extra=_ROOT)] = 0
    every: Annotated[int, Meta(ge=1, description="Convert only steps divisible by this number.", extra=_ROOT)] = 1
    order: Annotated[
        Literal["oldest", "newest"],
        Meta(
            description="Which step of a run is converted first. `newest` is faster than TorchTitan's purge.",
            extra=_ROOT,
        ),
    ] = "oldest"
    nice: Annotated[int, Meta(ge=0, le=19, description="CPU priority of conversions (19 is lowest).", extra=_ROOT)] = 10
    io_bandwidth_limit: Annotated[
        int,
        Meta(ge=0, description="Bytes per second that a conversion reads and writes. 0: no limit.", extra=_ROOT_SIZE),
    ] = 0
    memory_limit: Annotated[
        int,
        Meta(
            ge=0,
            description="Data memory (RLIMIT_DATA) of each process of a conversion. 0: no limit.",
            extra=_ROOT_SIZE,
        ),
    ] = 0
    metrics_address: Annotated[
        str,
        Meta(
            description="Address that serves the status page, `/metrics`, `/healthz` and `/readyz`. Empty: off.",
            extra={"address": True},
        ),
    ] = "127.0.0.1:9469"
    statistics: Annotated[
        bool,
        Meta(
            description="Estimate the RMS of weights and of their updates by layer, for the status page. Samples of "
            "each run's newest steps are kept in `state_dir`. Slurm jobs make none.",
            extra=_ROOT,
        ),
    ] = True
    before_publish: Annotated[
        tuple[str, ...],
        Meta(
            description="Command (a list of words, no shell) that runs on each export before it is published, and may"
            " add files.",
            extra=_ROOT_COMMAND,
        ),
    ] = ()
    sign: Annotated[
        tuple[str, ...],
        Meta(
            description="Command that writes `model.sig` into each export, after all other files.", extra=_ROOT_COMMAND
        ),
    ] = ()
    on_success: Annotated[
        tuple[str, ...],
        Meta(description="Command that runs for each published step, at least once.", extra=_ROOT_COMMAND),
    ] = ()
    on_failure: Annotated[
        tuple[str, ...],
        Meta(description="Command that runs for each failure, at least once.", extra=_ROOT_COMMAND),
    ] = ()
    hook_timeout: Annotated[
        float,
        Meta(gt=0, description="One of these commands that runs for longer is killed.", extra=_ROOT_DURATION),
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
