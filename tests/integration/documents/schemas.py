"""Owns holding what is really printed against the schemas in docs/schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from tests.integration.documents.blocks import REPOSITORY


def against(name: str, said: Any) -> Iterator[str]:
    """What in `said` is not as docs/schemas/NAME has it."""
    schema = json.loads((REPOSITORY / "docs/schemas" / name).read_text())
    for problem in Draft202012Validator(schema).iter_errors(said):
        causes = [problem]
        if problem.validator == "oneOf":  # of all events, what its own says
            own = [event["properties"]["event"]["const"] for event in schema["oneOf"]].index(said["event"])
            causes = [cause for cause in problem.context or () if cause.relative_schema_path[0] == own]
        for cause in causes:
            yield f"{said.get('event', name)}: {cause.json_path}: {cause.message[:300]}"
