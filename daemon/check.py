"""Owns `dcp2hfd check`: it reports the ledger, how each root would be watched, and what cannot be reached now."""

import contextlib
import errno
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from converter.checkpoint.completeness import METADATA
from converter.common import errors, names_on_disk
from converter.run import run_config
from daemon.config import units
from daemon.config.schema import HOOKS
from daemon.config.settings import Settings
from daemon.host import mounts
from daemon.rules import judge_step
from daemon.scanner import folder_rules, unwatched_folders

NAMED = 10
"""Runs that are named."""
PATIENCE = 5.0
"""Seconds after which a root that does not answer is said to hang."""


def report(settings: Settings, state_dir: Path, *, patience: float = PATIENCE) -> Iterator[str]:
    """The lines of the report. A root that cannot be watched now is named; that makes no configuration invalid:

    it may be a mount that comes later, and the daemon takes it up when it is there.
    """
    yield f"state_dir: {state_dir} ({mounts.of(str(state_dir)).type})"
    yield f"workers: {settings.workers}"
    away = 0
    for root in settings.roots:
        here, problem = settings.for_root(root), problem_of(root, patience=patience)
        read_only = "" if problem else problem_of_writing(root, patience=patience)
        uses = here.observer
        if uses == "auto":
            uses = "inotify" if mounts.has_events(root) else "polling"
        yield f"root: {root} ({mounts.of(root).type}: {uses}, listed every {units.show_duration(here.poll_interval)})"
        if names_on_disk.step_number(os.path.basename(root)) is not None:
            problem = problem or "this is a step: name the folder that holds it, or a folder of runs"
        if problem:
            away += 1
            yield f"  warning: {problem}"
        elif read_only:
            yield f"  warning: {read_only}"
        yield (
            f"  runs up to {here.max_depth} folders below, {here.order} step first, output {here.output}, dtype {here.dtype}"
        )
        yield from _of_assets(here, patience)
        if not problem:
            if not read_only:
                yield from _of_rights(root, here, patience)
            yield from _of_retention(root, here, patience)
        for name in HOOKS:
            if argv := getattr(here, name):
                yield f"  {name}: {argv[0]}{'' if shutil.which(argv[0]) else ' (not found, or not to be run)'}"
        if here.runner == "slurm":
            yield from _of_jobs(here)
        if settings.root.get(root):
            yield f"  of its own: {', '.join(sorted(settings.root[root]))}"
    but = f", but {away} of {units.counted(len(settings.roots), 'root')} cannot be watched now" if away else ""
    yield f"the configuration is valid{but}; `dcp2hfd run --dry-run` says what it would do to each step"


def problem_of(root: str, *, patience: float, listing: Callable[[str], object] = os.listdir) -> str:
    """Why this user cannot list `root` now, "" if it can. `patience`: seconds.

    A path that hangs is left to its thread, which ends with the process.
    """

    def look() -> str:
        try:
            listing(root)
        except FileNotFoundError:
            return "not there now (a mount that is not up yet?); it is watched as soon as it is"
        except NotADirectoryError:
            return "not a folder"
        except OSError as error:
            return f"cannot be listed by this user now: {error.strerror}"
        return ""

    said = unwatched_folders.within(patience, look)
    return _no_answer(patience) if said is None else said


def _no_answer(patience: float) -> str:
    return f"no answer within {patience:.0f} s: does its mount hang?"


def _of_rights(root: str, here: Settings, patience: float) -> Iterator[str]:
    """What this user may not do at or below `root` and the service must: read runs, and write where exports go."""
    found = unwatched_folders.within(patience, lambda: list(_missing_rights(root, here)))
    if found is None:
        yield f"  warning: whether this user has the rights it needs is not known: {_no_answer(patience)}"
    for line in (found or ())[:NAMED]:
        yield f"  warning: {line}"
    if found and len(found) > NAMED:
        yield f"  and {len(found) - NAMED} more"


def _missing_rights(root: str, here: Settings) -> Iterator[str]:
    for path, folder in _folders(root, here.max_depth):
        if isinstance(folder, OSError):
            yield _not_readable(path, folder)
            continue
        if not os.access(path, os.X_OK, effective_ids=True):  # it can be listed, and nothing in it opened
            yield _not_readable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
            continue
        if not folder.is_run:
            continue
        step = f"{path}/step-{max(folder.steps)}"
        try:
            if METADATA in os.listdir(step):
                os.close(os.open(f"{step}/{METADATA}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
            _run_config(step, here)
        except OSError as error:
            yield _not_readable(str(error.filename or step), error)
        except errors.MachineFailure as error:
            yield f"{error}; {error.hint}"
        except errors.ConversionError:
            pass  # not there yet, or half-written: no matter of rights
        below = here.output != "alongside" and names_on_disk.SUBDIRECTORY in folder.subfolders
        needed = {f"{path}/{names_on_disk.SUBDIRECTORY}": below, path: here.output != "subdirectory" or not below}
        for target in (name for name, is_needed in needed.items() if is_needed):
            if not os.access(target, os.W_OK | os.X_OK, effective_ids=True):
                yield (
                    f"{target}: this user may not write exports there: give its group rwx (chmod g+rwxs, and umask 002 in the "
                    "trainer), or run the service as the training user (docs/operators.md, Rights)"
                )


def _not_readable(path: str, error: OSError) -> str:
    if error.errno in errors.DENIED:
        return (
            f"{path}: this user may not read it ({error.strerror}): give its group r and, of folders, x (docs/operators.md, "
            "Rights)"
        )
    return f"{path}: it cannot be read now ({error.strerror}): look at the mount and its server"


def _folders(path: str, depth: int) -> Iterator[tuple[str, folder_rules.Folder | OSError]]:
    """Every folder from `path` on, `depth` levels, that may be a run or hold one; or why it cannot be listed."""
    try:
        folder = unwatched_folders.listed(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield path, error
        return
    yield path, folder
    for name in folder.subfolders if depth > 0 and not folder.is_run else ():
        yield from _folders(f"{path.rstrip('/')}/{name}", depth - 1)


def _run_config(step: str, here: Settings) -> run_config.RunConfig:
    """The run config of a step. Raises ConversionError."""
    logs = [Path(one) for one in here.logs_roots]
    return run_config.find(Path(step), names=here.run_config_names, logs_roots=logs)


def _of_retention(root: str, here: Settings, patience: float) -> Iterator[str]:
    """Runs of which TorchTitan up to 0.3.0 deletes exports where they are published now.

    Whether an export has an index, and so goes below, is not asked here.
    """
    if here.output == "subdirectory":
        return
    found = unwatched_folders.within(patience, lambda: list(_kept(root, here)))
    if found is None:
        yield f"  warning: what keep_latest_k keeps is not known: no answer within {patience:.0f} s"
    hazards = [(run, keep) for run, keep in found or () if keep > 2 or (keep and here.output == "alongside")]
    for run, keep in hazards[:NAMED]:
        yield f"  {run}: warning: {judge_step.hazard(keep)}; {judge_step.cure(keep)}"
    if len(hazards) > NAMED:
        yield f"  and {len(hazards) - NAMED} more runs"


def _kept(root: str, here: Settings) -> Iterator[tuple[str, int]]:
    """Runs at or below `root` and the `keep_latest_k` that they recorded; what cannot be read is left out."""
    for path, folder in _folders(root, here.max_depth):
        if not isinstance(folder, OSError) and folder.is_run:
            with contextlib.suppress(OSError, errors.ConversionError):
                yield path, _run_config(f"{path}/step-{max(folder.steps)}", here).keep_latest_k or 0


def problem_of_writing(root: str, *, patience: float) -> str:
    """Why nothing could be published on `root`, "" if nothing speaks against it: by the mount, and by the service's unit."""

    def ask() -> str:
        try:
            flags = os.statvfs(root).f_flag
        except OSError as error:
            return f"its file system cannot be asked now ({error.strerror}): look at the mount and its server"
        return "it is mounted read-only here: nothing can be published on it" if flags & os.ST_RDONLY else ""

    said = unwatched_folders.within(patience, ask)
    if said or said is None:
        return said or _no_answer(patience)
    unit = _unit(patience)
    if unit.get("LoadState") != "loaded" or unit.get("ProtectSystem") != "strict":
        return ""
    writable = [path.lstrip("-+") for path in unit.get("ReadWritePaths", "").split()]
    if any(f"{root}/".startswith(f"{path.rstrip('/')}/") for path in writable):
        return ""
    return "dcp2hfd.service may not write there: add it to ReadWritePaths= of the unit's drop-in"


def _unit(patience: float) -> dict[str, str]:
    """What systemd knows of the installed service; empty without one, or without systemd."""
    ask = ["systemctl", "show", "dcp2hfd.service", "--property=LoadState,ProtectSystem,ReadWritePaths"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=patience, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _of_assets(here: Settings, patience: float) -> Iterator[str]:
    """Folders with which recorded paths are found, where this user does not find them."""
    named = [("hf_assets", here.hf_assets), ("tokenizer", here.tokenizer)]
    named += [("assets_roots", path) for path in here.assets_roots] + [("logs_roots", path) for path in here.logs_roots]
    named += [("path_map", path) for path in here.path_map.values()]
    for key, path in named:
        if path and (problem := problem_of(path, patience=patience, listing=os.stat)):
            yield f"  warning: {key}: {path}: {problem.partition(';')[0]}"


def _of_jobs(here: Settings) -> Iterator[str]:
    """What a job would ask for, and what is missing on this host."""
    from daemon.runners.slurm import commands, resources

    asked = commands.arguments("dcp2hf-N-…", here.slurm.shared, resources.reckon(0, here), here)
    yield f"  a job of a small step: sbatch {shlex.join(asked)}"
    for name in ("sbatch", "squeue", "scancel"):
        if not shutil.which(name):
            yield f"  {name}: not found, or not to be run"
    if problem := problem_of(here.slurm.shared, patience=PATIENCE):
        yield f"  slurm.shared: {here.slurm.shared}: {problem}"
