"""Owns the configuration: TOML file, environment and command line into one frozen Settings.

Precedence: command line, environment, the table of a root, the file, the default. Every key stands once, here, with
its meaning; the README's table is rendered from it (`table`).
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from daemon import mounts, units

PREFIX = "DCP2HF_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
DEFAULT_CONFIG = "/etc/dcp2hf/dcp2hf.toml"

# How a value is written, and whether a root's table may set it.
_ROOT: dict[str, Any] = {"per_root": True}
_ROOT_DURATION: dict[str, Any] = {"per_root": True, "unit": "duration"}
_ROOT_SIZE: dict[str, Any] = {"per_root": True, "unit": "size"}
_ROOT_PATH: dict[str, Any] = {"per_root": True, "path": True}


class SettingsError(Exception):
    """A configuration that is not one; the message names the key and where it came from."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon does, for all roots or (see `for_root`) for one."""

    roots: Annotated[
        tuple[str, ...], Meta(description="Run roots, or folders of run roots, to watch.", extra={"path": True})
    ] = ()
    max_depth: Annotated[
        int, Meta(ge=0, description="Levels of folders below a root in which runs are looked for.", extra=_ROOT)
    ] = 3
    poll_interval: Annotated[
        float, Meta(gt=0, description="Time between two listings of a root.", extra=_ROOT_DURATION)
    ] = 10.0
    observer: Annotated[
        Literal["auto", "inotify", "polling"],
        Meta(
            description="`inotify` looks at once where something changed; `auto` uses it on local file systems only "
            "(remote ones report nothing of other hosts). Listing every `poll_interval` goes on in any case.",
            extra=_ROOT,
        ),
    ] = "auto"
    rescan_interval: Annotated[
        float,
        Meta(gt=0, description="Time between two looks at steps that are settled.", extra=_ROOT_DURATION),
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
    workers: Annotated[int, Meta(ge=1, description="Conversions at the same time.")] = 1
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
            description="Whose architecture holds where base assets and run differ: `base` refuses, `run` takes the run's.",
            extra=_ROOT,
        ),
    ] = "base"
    allow_routing_drift: Annotated[
        bool, Meta(description="Convert a MoE whose balancing bias HF cannot express.", extra=_ROOT)
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
        Meta(description="Further names of run configs, tried after `config.json` and `job_config.json`.", extra=_ROOT),
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
    memory_limit: Annotated[
        int,
        Meta(
            ge=0,
            description="Data memory (RLIMIT_DATA) that each process of a conversion may map; 0 is no limit.",
            extra=_ROOT_SIZE,
        ),
    ] = 0

    root: Annotated[
        dict[str, dict[str, Any]], Meta(description='`[root."/path"]`: a root, and the keys that differ there.')
    ] = {}

    def for_root(self, root: str) -> "Settings":
        """These settings as they hold for one root."""
        return msgspec.structs.replace(self, **self.root.get(root, {}), root={})


_EXTRA: dict[str, dict[str, Any]] = {
    f.name: next((m.extra or {} for m in get_args(f.type) if isinstance(m, Meta)), {})
    for f in msgspec.structs.fields(Settings)
}
_MEANING = {
    f.name: next((m.description or "" for m in get_args(f.type) if isinstance(m, Meta)), "")
    for f in msgspec.structs.fields(Settings)
}


def load(
    *,
    config: str | None = None,
    roots: tuple[str, ...] = (),
    environ: Mapping[str, str] = os.environ,
    default: str = DEFAULT_CONFIG,
) -> Settings:
    """The settings that hold: `config` or `$DCP2HF_CONFIG` or the default file, the environment, then `roots` if given.

    Paths become absolute (those of a file relative to it, others to the current folder) without touching any: a root may hang.
    Raises SettingsError naming the key.
    """
    named = config or environ.get(CONFIG_VARIABLE)
    path = os.path.abspath(named) if named else default
    said: dict[str, Any] = {}
    if named or os.path.exists(path):
        said = _check(_read(path), path, os.path.dirname(path))
    said |= (of_environment := _check(_from_environment(environ), "the environment", os.getcwd()))
    tables: dict[str, dict[str, Any]] = said.pop("root", {})
    if roots:
        said["roots"] = [os.path.abspath(root) for root in roots]
    if roots or "roots" in of_environment:
        tables = {root: table for root, table in tables.items() if root in said["roots"]}
    said["roots"] = list(dict.fromkeys([*said.get("roots", []), *tables]))
    nested = next(
        (f"{a} lies inside {b}" for a in said["roots"] for b in said["roots"] if a.startswith(b.rstrip("/") + "/")),
        None,
    )
    if nested:
        raise SettingsError(f"roots: {nested}; each checkpoint must lie below one root only")
    settings = _convert(said, path)
    return msgspec.structs.replace(
        settings,
        root={root: {key: getattr(_convert(table, path), key) for key in table} for root, table in tables.items()},
    )


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the config file cannot be read: {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the config file is not TOML: {path}: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE:
            continue
        key = variable[len(PREFIX) :].lower()
        if key.upper() != variable[len(PREFIX) :] or key not in _EXTRA:
            known = [PREFIX + name.upper() for name in _EXTRA]
            raise SettingsError(f"unknown environment variable {variable}{_nearest(variable, known)}")
        said[key] = _from_text(key, text, variable)
    return said


def _from_text(key: str, text: str, variable: str) -> Any:
    """A variable's text as TOML would have had it: JSON for lists and tables, else by the key's type."""
    kind = _type(key)
    if get_origin(kind) in (tuple, dict):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            raise SettingsError(f'{variable} must be JSON, such as ["/a", "/b"], not {text!r}') from None
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "unit" not in _EXTRA[key] and (kind is int or key == "threads") and text.strip().lstrip("-").isdigit():
        return int(text)
    return text


def _type(key: str) -> Any:
    return get_args(next(f.type for f in msgspec.structs.fields(Settings) if f.name == key))[0]


def _check(said: dict[str, Any], source: str, folder: str, *, root: str | None = None) -> dict[str, Any]:
    """`said` with known keys only, units resolved and paths absolute."""
    where = f'[root."{root}"] of {source}' if root else source
    checked: dict[str, Any] = {}
    for key, value in said.items():
        if key not in _EXTRA:
            raise SettingsError(f"unknown key {key!r} in {where}{_nearest(key, list(_EXTRA))}")
        if root and not _EXTRA[key].get("per_root"):
            raise SettingsError(f"{key!r} holds for the whole daemon and cannot be set in {where}")
        checked[key] = _value(key, value, where, folder)
    if isinstance(tables := checked.get("root"), dict):
        checked["root"] = {
            os.path.join(folder, os.path.normpath(path)): _check(table, source, folder, root=path)
            for path, table in tables.items()
        }
    return checked


def _value(key: str, value: Any, where: str, folder: str) -> Any:
    extra = _EXTRA[key]
    if key == "root" and not (isinstance(value, dict) and all(isinstance(table, dict) for table in value.values())):
        raise SettingsError(f'root in {where} must be tables such as [root."/checkpoints"]')
    if "unit" in extra and isinstance(value, str):
        try:
            return (units.duration if extra["unit"] == "duration" else units.size)(value)
        except ValueError as error:
            raise SettingsError(f"{key} in {where}: {error}") from None
    if "unit" in extra and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise SettingsError(
            f'{key} in {where} must be a number or text such as "10{"s" if extra["unit"] == "duration" else "GB"}"'
        )
    if "path" in extra and isinstance(value, str):
        return os.path.normpath(os.path.join(folder, os.path.expanduser(value))) if value else value
    if "path" in extra and isinstance(value, list):
        return [
            os.path.normpath(os.path.join(folder, os.path.expanduser(p))) if isinstance(p, str) else p for p in value
        ]
    if key == "path_map" and isinstance(value, list) and all(isinstance(pair, str) and "=" in pair for pair in value):
        return dict(pair.split("=", 1) for pair in value)
    return value


def _convert(said: dict[str, Any], source: str) -> Settings:
    try:
        return msgspec.convert(
            {key: int(v) if _type(key) is int and isinstance(v, float) else v for key, v in said.items()}, Settings
        )
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at `$.")
        raise SettingsError(f"{key.rstrip('`') or 'settings'} ({source} and the environment): {what}") from None


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def state_dir(settings: Settings, *, environ: Mapping[str, str] = os.environ, table: str | None = None) -> Path:
    """The folder of the ledger. Raises SettingsError where it lies on a network file system (SQLite's WAL must not)."""
    shared = Path("/var/lib/dcp2hf")
    if settings.state_dir:
        path = Path(settings.state_dir)
    elif environ.get("STATE_DIRECTORY"):
        path = Path(environ["STATE_DIRECTORY"].partition(":")[0])
    elif os.access(shared, os.R_OK | os.X_OK):
        path = shared
    else:
        base = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME", "/"), ".local/state")
        path = Path(base) / "dcp2hf"
    # The name alone first: a hanging mount must not hang the start, it must be refused.
    for resolve in (os.path.abspath, os.path.realpath):
        mount = mounts.of(resolve(path), table=table)
        if mount.is_network:
            raise SettingsError(
                f"state_dir {path} lies on {mount.type} ({mount.point}); the ledger needs a local disk: "
                f"set state_dir (or {PREFIX}STATE_DIR) to a folder on one"
            )
    return path


def table() -> str:
    """The keys as a Markdown table, for the README."""
    lines = ["| key | default | per root | meaning |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(Settings):
        if field.name == "root":
            continue
        unit = _EXTRA[field.name].get("unit")
        value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        shown = (
            units.show_duration(value) if unit == "duration" else units.show_size(value) if unit == "size" else value
        )
        text = (
            str(shown).lower()
            if isinstance(value, bool)
            else "{}"
            if value == {}
            else "[]"
            if value == ()
            else f'"{shown}"'
        )
        if isinstance(value, int) and not isinstance(value, bool) and (not unit or value == 0):
            text = str(value)
        choices = (
            [a for a in get_args(_type(field.name)) if isinstance(a, str)]
            if get_origin(_type(field.name)) is Literal
            else []
        )
        meaning = _MEANING[field.name] + (f" One of {', '.join(f'`{c}`' for c in choices)}." if choices else "")
        lines.append(
            f"| `{field.name}` | `{text}` | {'yes' if _EXTRA[field.name].get('per_root') else ''} | {meaning} |"
        )
    return "\n".join(lines) + "\n"
