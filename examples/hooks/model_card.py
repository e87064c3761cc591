#!/usr/bin/env python3
"""before_publish: adds a model card, README.md, made from the manifest. Standard library only; runs in the staging directory."""

import json
import sys
from pathlib import Path


def card(facts: dict) -> str:
    """The model card: metadata for the hub, then what was converted and what was checked."""
    made = facts["manifest"]
    checks = "\n".join(
        f"| {check['name']} | {check['verdict']} | {check['tolerance'] or check['reason'] or ''} |"
        for check in made["checks"]
    )
    tools = ", ".join(f"{name} {version}" for name, version in sorted(made["tools"].items()))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# Step {made["step"]}

Converted from the TorchTitan checkpoint with save id `{made["save_id"]}`: {made["tensors"]:,} tensors,
{made["parameters"]:,} parameters, {made["dtype"]}. Made with {tools}.

| check | verdict | |
|---|---|---|
{checks}

`conversion.json` has the sha256 of every file.
"""


if __name__ == "__main__":
    Path("README.md").write_text(card(json.load(sys.stdin)))
