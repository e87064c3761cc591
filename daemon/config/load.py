"""Owns the reading of the configuration: TOML file, environment and command line become one frozen Settings.

Precedence: command line, environment, the table of a root, the file, the default. An unknown key is an error that
names the key.
"""

import contextlib
import difflib
import itertools
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from converter.common import hook_command
from daemon.config import slurm_settings, units
from daemon.config.schema import KEYS, TABLES, extra, type_of, value_of, variable
from daemon.config.settings import Settings
from daemon.host import mounts

PREFIX = "DCP2HF_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
DEFAULT_CONFIG = "/etc/dcp2hf/dcp2hf.toml"


class SettingsError(Exception):
    """A configuration that is not one; the message names the key and where it came from."""


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
    settings = msgspec.structs.replace(
        settings,
        root={root: {key: value_of(_convert(table, path), key) for key in table} for root, table in tables.items()},
    )
    _check_runners(settings)
    return settings


def named(config: str | None, *, environ: Mapping[str, str] = os.environ) -> str | None:
    """The file that another shell's command must be told of; None: it finds the configuration by itself, or there is none."""
    path = config or environ.get(CONFIG_VARIABLE)
    return os.path.abspath(path) if path and os.path.abspath(path) != DEFAULT_CONFIG else None


def load_for_status(
    *, config: str | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[Settings, str | None]:
    """The settings, and why they cannot be used (None: they can).

    Then only `state_dir` and `metrics_address` are taken from what can still be read: `status` is needed just when a
    configuration has a mistake.
    """
    try:
        return load(config=config, environ=environ), None
    except SettingsError as error:
        named = config or environ.get(CONFIG_VARIABLE)
        path = os.path.abspath(named) if named else DEFAULT_CONFIG
        said = _salvage(path)
        settings = Settings()
        for key in ("state_dir", "metrics_address"):
            value = environ.get(variable(key), said.get(key, getattr(settings, key)))
            with contextlib.suppress(SettingsError):
                usable = _convert({key: _value(key, value, path, os.path.dirname(path))}, path)
                settings = msgspec.structs.replace(settings, **{key: getattr(usable, key)})
        return settings, str(error)


def _salvage(path: str) -> dict[str, Any]:
    """What can be read of a file that may be no TOML: its keys before the first table, line by line."""
    said: dict[str, Any] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in itertools.takewhile(
            lambda line: not line.startswith("["), Path(path).read_text("utf-8").splitlines()
        ):
            with contextlib.suppress(tomllib.TOMLDecodeError):
                said |= tomllib.loads(line)
    return said


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"the config file cannot be read: {path}: {why}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the config file is not TOML: {path}: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    known = {variable(key): key for key in KEYS}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE:
            continue
        if name not in known:
            raise SettingsError(f"unknown environment variable {name}{_nearest(name, list(known))}")
        said[known[name]] = _from_text(known[name], text, name)
    return said


def _from_text(key: str, text: str, variable: str) -> Any:
    """A variable's text as TOML would have had it: JSON for lists and tables, else by the key's type."""
    kind = type_of(key)
    if "command" in extra(key) and not text.lstrip().startswith("["):
        raise SettingsError(f"{variable}: {hook_command.problem_of(text)}")
    if get_origin(kind) in (tuple, dict):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            raise SettingsError(f'{variable} must be JSON, such as ["/a", "/b"], not {text!r}') from None
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "unit" not in extra(key) and (kind is int or key == "threads") and text.strip().lstrip("-").isdigit():
        return int(text)
    return text


def _check(said: dict[str, Any], source: str, folder: str, *, root: str | None = None) -> dict[str, Any]:
    """`said` with known keys only, units resolved and paths absolute."""
    where = f'[root."{root}"] of {source}' if root else source
    checked: dict[str, Any] = {}
    for key, value in _flat(said, where).items():
        if key not in KEYS:
            raise SettingsError(f"unknown key {key!r} in {where}{_nearest(key, list(KEYS))}")
        if root and not extra(key).get("per_root"):
            raise SettingsError(f"{key!r} holds for the whole daemon and cannot be set in {where}")
        checked[key] = _value(key, value, where, folder)
    if isinstance(tables := checked.get("root"), dict):
        checked["root"] = {
            os.path.join(folder, os.path.normpath(path)): _check(table, source, folder, root=path)
            for path, table in tables.items()
        }
    return checked


def _flat(said: dict[str, Any], where: str) -> dict[str, Any]:
    """`said` with the keys of tables as `table.key`."""
    flat: dict[str, Any] = {}
    for key, value in said.items():
        if key in TABLES and not isinstance(value, dict):
            raise SettingsError(f"{key} in {where} must be a table [{key}]")
        flat |= {f"{key}.{name}": own for name, own in value.items()} if key in TABLES else {key: value}
    return flat


def _check_runners(settings: Settings) -> None:
    """Raises SettingsError where a root's conversions are to be jobs that could not be submitted or followed."""
    for here in (settings.for_root(root) for root in settings.roots):
        if here.runner == "slurm" and (problem := slurm_settings.problem_of(here.slurm, settings.roots)):
            raise SettingsError(problem)


def _value(key: str, value: Any, where: str, folder: str) -> Any:
    how = extra(key)
    if key == "root" and not (isinstance(value, dict) and all(isinstance(table, dict) for table in value.values())):
        meant = "" if isinstance(value, dict) else "; did you mean 'roots'?"
        raise SettingsError(f'root in {where} must be tables such as [root."/checkpoints"]{meant}')
    if "unit" in how and isinstance(value, str):
        try:
            return (units.duration if how["unit"] == "duration" else units.size)(value)
        except ValueError as error:
            raise SettingsError(f"{key} in {where}: {error}") from None
    if "unit" in how and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise SettingsError(
            f'{key} in {where} must be a number or text such as "10{"s" if how["unit"] == "duration" else "GB"}"'
        )
    if "address" in how and isinstance(value, str) and value:
        try:
            units.address(value)
        except ValueError as error:
            raise SettingsError(f"{key} in {where}: {error}") from None
    if "command" in how and (problem := hook_command.problem_of(value)):
        raise SettingsError(f"{key} in {where}: {problem}")
    if get_origin(type_of(key)) is tuple and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        raise SettingsError(f'{key} in {where} must be a list of texts, such as ["/a", "/b"]')
    if "path" in how and isinstance(value, str):
        return os.path.normpath(os.path.join(folder, os.path.expanduser(value))) if value else value
    if "path" in how and isinstance(value, list):
        return [os.path.normpath(os.path.join(folder, os.path.expanduser(p))) for p in value]
    if key == "path_map" and isinstance(value, list) and all(isinstance(pair, str) and "=" in pair for pair in value):
        return dict(pair.split("=", 1) for pair in value)
    return value


def _convert(said: dict[str, Any], source: str) -> Settings:
    nested: dict[str, Any] = {}
    for key, value in said.items():
        table, _, name = key.rpartition(".")
        whole = int(value) if type_of(key) is int and isinstance(value, float) else value
        (nested.setdefault(table, {}) if table else nested)[name] = whole
    try:
        return msgspec.convert(nested, Settings)
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at `$.")
        key = key.rstrip("`")
        if key in KEYS and get_origin(type_of(key)) is Literal:
            what = f"{what}, not one of {', '.join(map(str, get_args(type_of(key))))}"
        what = what.replace("`object`", "a table")
        raise SettingsError(f"{key or 'settings'} ({source} and the environment): {what}") from None


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
