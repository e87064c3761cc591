"""Owns the JSON schemas of what scripts read: the manifest and the status from their types, the log from its page.

docs/events.md has every event with its fields, and a test compares that with the code.
"""

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from converter.publish import manifest
from converter.publish.manifest import Manifest
from daemon.status.report_types import Report

DOCS = Path(__file__).parents[1] / "docs"
_STRING, _INTEGER, _NUMBER, _FLAG = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
_OBJECT: dict[str, Any] = {"type": "object"}
_STRINGS: dict[str, Any] = {"type": "array", "items": _STRING}
_MAYBE = {"type": ["string", "null"]}
_ALWAYS = {
    **dict.fromkeys(("timestamp", "level", "event", "root", "run", "path", "message"), _STRING),
    "step": _INTEGER,
}  # fmt: skip
"""Fields that any line may have."""
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(
        ("pid", "attempt", "tries", "count", "nan", "inf", "remaining", "exports_left", "deletes_from_save", "keep_latest_k", "model_bytes", "export_bytes"), _INTEGER
    ),
    **dict.fromkeys(("free_bytes", "bytes_done", "bytes_total", "bytes_read", "bytes_written", "parameters"), _INTEGER),
    **dict.fromkeys(("seconds", "duration_seconds"), _NUMBER),
    **dict.fromkeys(("once", "dry_run", "quarantined"), _FLAG),
    **dict.fromkeys(("roots", "names", "differs", "warnings"), _STRINGS),
    **dict.fromkeys(("phases", "figures", "replaced", "replaces"), _OBJECT),
    **dict.fromkeys(("retry_at", "failed_path", "error", "hint"), _MAYBE),
    "checks": {"type": "array", "items": _OBJECT},
    "tensors": {"type": ["integer", "object"]},
}  # fmt: skip
"""Fields of single events that are no text."""
_EVENT = re.compile(r"^\| `([a-z0-9_]+)` \| ([a-z, ]+) \| ([^|]*) \| ([^|]+) \|$", re.M)


def files() -> dict[str, str]:
    """Each schema by its name in docs/schemas."""
    made = {"conversion.json": of_manifest(), "status.json": of_status(), "event.json": of_event()}
    return {name: json.dumps(schema, indent=2) + "\n" for name, schema in made.items()}


def of_manifest() -> dict[str, Any]:
    """`conversion.json` of a published directory."""
    schema = _of(Manifest)
    schema["$defs"]["Manifest"]["properties"] |= {"format": {"const": manifest.FORMAT}, manifest.SEAL: _STRING}
    return _whole(schema)


def of_status() -> dict[str, Any]:
    """`dcp2hfd status --json`."""
    return _whole(_of(Report))


def of_event() -> dict[str, Any]:
    """A line of `dcp2hfd`'s log: which fields there are, and for each event which of them it has."""
    fields, events = dict(_ALWAYS), []
    for name, levels, listed, meaning in _EVENT.findall((DOCS / "events.md").read_text()):
        own = re.findall(r"`(\w+)`", listed)
        fields |= {field: _FIELDS.get(field, _STRING) for field in own if field not in fields}
        known = {"event": {"const": name}, "level": {"enum": levels.split(", ")}}
        events.append(
            {"description": meaning, "properties": known, "propertyNames": {"enum": sorted({*_ALWAYS, *own})}}
        )
    required = ["timestamp", "level", "event"]
    return {"$schema": _DIALECT, "type": "object", "properties": fields, "required": required, "oneOf": events}


_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def _of(kind: Any) -> dict[str, Any]:
    return {"$schema": _DIALECT} | msgspec.json.schema(kind)


def _whole(schema: dict[str, Any]) -> dict[str, Any]:
    """What is written has every field, null where there is nothing to say, and no other."""
    for of in schema["$defs"].values():
        of |= {"required": sorted(of["properties"]), "additionalProperties": False}
        for field in of["properties"].values():
            field.pop("default", None)
    return schema
