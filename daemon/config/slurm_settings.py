"""Owns the keys of the table `[slurm]`, for conversions as jobs of a cluster (see `daemon.runners.slurm`)."""

import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

_OURS = re.compile(
    r"--(array|wrap|wait|test-only|clusters?|output|error|job-name|dependency|parsable|gpus?|gpus-.*)(=.*)?"
    r"|-[aWMoeJdG].*|--gres=.*gpu.*|:"
)
"""Arguments that would make another kind of job, one that cannot be found again, or one that holds a GPU."""

_ROOT: dict[str, Any] = {"per_root": True}
_ROOT_SIZE: dict[str, Any] = {"per_root": True, "unit": "size"}
_ROOT_DURATION: dict[str, Any] = {"per_root": True, "unit": "duration"}


class Slurm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of Slurm; empty words are left to its defaults."""

    shared: Annotated[
        str,
        Meta(
            description="Folder that this host and the nodes share, for events, results and output of jobs.",
            extra={"path": True},
        ),
    ] = ""
    python: Annotated[
        str,
        Meta(
            description="Python interpreter on the nodes that has this version of dcp2hf. Empty: the daemon's own, if"
            " the nodes share it.",
            extra={"per_root": True, "path": True},
        ),
    ] = ""
    partition: Annotated[str, Meta(description="Partition to submit to (`sbatch -p`).", extra=_ROOT)] = ""
    account: Annotated[str, Meta(description="Account to submit for (`sbatch -A`).", extra=_ROOT)] = ""
    qos: Annotated[str, Meta(description="Quality of service (`sbatch -q`).", extra=_ROOT)] = ""
    nice: Annotated[
        int, Meta(ge=0, le=2147483645, description="By how much to lower the jobs' priority in Slurm's queue (`sbatch --nice`).", extra=_ROOT)
    ] = 0  # fmt: skip
    extra_args: Annotated[
        tuple[str, ...], Meta(description='Further arguments of `sbatch`, such as `["-C", "avx512"]`.', extra=_ROOT)
    ] = ()
    cpus: Annotated[int, Meta(ge=1, description="Number of processors of a job.", extra=_ROOT)] = 4
    memory: Annotated[
        int,
        Meta(
            ge=0, description="Memory of a job. 0: estimated from the step. Doubled after a job ran out of it.", extra=_ROOT_SIZE
        ),
    ] = 0  # fmt: skip
    time: Annotated[
        float,
        Meta(
            ge=0, description="Time limit of a job. 0: estimated from the step. Doubled after a job ran out of it.", extra=_ROOT_DURATION
        ),
    ] = 0.0  # fmt: skip
    rate: Annotated[
        int,
        Meta(
            ge=1, description="Conservative throughput (bytes/s) used to estimate a job's time limit.", extra=_ROOT_SIZE
        ),
    ] = 50_000_000  # fmt: skip
    max_queued: Annotated[int, Meta(ge=1, description="How many jobs may wait or run at the same time.")] = 20
    poll: Annotated[
        float,
        Meta(
            ge=0.1, description="How often to ask `squeue` about all jobs, while there are any.", extra={"unit": "duration"}
        ),
    ] = 10.0  # fmt: skip
    cancel_on_stop: Annotated[
        bool, Meta(description="Cancel running jobs when the daemon stops. Otherwise the next daemon adopts them.")
    ] = False


def problem_of(slurm: Slurm, roots: Iterable[str]) -> str:
    """Why jobs could not be submitted or followed with these keys beside `roots`; empty: they can."""
    if not slurm.shared:
        return 'runner = "slurm" needs `shared` in [slurm]: a folder that this host and the nodes share'
    if any(f"{slurm.shared}/".startswith(f"{root.rstrip('/')}/") for root in roots):
        return f"slurm.shared: {slurm.shared} lies below a root, where only runs are looked for"
    if any(not word.isprintable() for word in (slurm.shared, slurm.python)):
        return "slurm.shared and slurm.python must be plain paths"
    refused = next((word for word in slurm.extra_args if _OURS.fullmatch(word)), None)
    if refused is not None:
        return f"slurm.extra_args: {refused!r} is the daemon's own to say, or would hold a GPU"
    return ""
