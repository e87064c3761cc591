"""Owns the description of each key: its type, its notation, and where it may stand. A table's keys are `table.key`.

The table of docs/configuration.md is made from it (`table`).
"""

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from daemon.config import units
from daemon.config.settings import Settings
from daemon.config.slurm_settings import Slurm

TABLES: dict[str, type[msgspec.Struct]] = {"slurm": Slurm}
"""Keys that are tables of keys; `root` is one of tables."""


def _fields() -> Iterator[tuple[str, Any]]:
    """(key, annotated type) of each."""
    for field in msgspec.structs.fields(Settings):
        if field.name in TABLES:
            for own in msgspec.structs.fields(TABLES[field.name]):
                yield f"{field.name}.{own.name}", own.type
        else:
            yield field.name, field.type


_TYPES: dict[str, Any] = {key: get_args(annotated)[0] for key, annotated in _fields()}
KEYS: dict[str, Meta] = {
    key: next(meta for meta in get_args(annotated) if isinstance(meta, Meta)) for key, annotated in _fields()
}
HOOKS = tuple(key for key, meta in KEYS.items() if (meta.extra or {}).get("command"))
"""Keys that are commands."""


def type_of(key: str) -> Any:
    """The type of a key's value."""
    return _TYPES[key]


def extra(key: str) -> dict[str, Any]:
    """How a key's value is written ("unit", "path", "address", "command"), and whether a root's table may set it."""
    return KEYS[key].extra or {}


def value_of(settings: Settings, key: str) -> Any:
    """What a key is set to."""
    table, _, name = key.rpartition(".")
    return getattr(getattr(settings, table) if table else settings, name)


def variable(key: str) -> str:
    """A key's twin in the environment."""
    return f"DCP2HF_{key.replace('.', '__').upper()}"


def table() -> str:
    """The keys as a Markdown table, for docs/configuration.md."""
    lines = ["| key | default | per root | meaning |", "|---|---|---|---|"]
    defaults = Settings()
    for key in (key for key in KEYS if key != "root"):
        value, unit = value_of(defaults, key), extra(key).get("unit")
        if value and unit:
            value = units.show_duration(value) if unit == "duration" else units.show_size(value)
        choices = get_args(type_of(key)) if get_origin(type_of(key)) is Literal else ()
        meaning = f"{KEYS[key].description}" + (f" One of {', '.join(f'`{c}`' for c in choices)}." if choices else "")
        per_root = "yes" if extra(key).get("per_root") else ""
        lines.append(f"| `{key}` | `{json.dumps(value)}` | {per_root} | {meaning} |")
    return "\n".join(lines) + "\n"
