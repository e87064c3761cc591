"""Owns where the shipped rules, dashboard and pages lie, and which metrics their expressions name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from daemon.status.metric_names import METRICS

DOCS = Path(__file__).parents[3] / "docs"
RULES = DOCS / "alerts" / "dcp2hf.rules.yml"
TESTS = DOCS / "alerts" / "dcp2hf.tests.yml"
DASHBOARD = DOCS / "grafana" / "dcp2hf.json"
OF_PROMETHEUS = {"up", "process_start_time_seconds", "process_resident_memory_bytes"}
"""Made by Prometheus itself, or by prometheus_client of every process."""


def rules() -> list[dict[str, Any]]:
    """Every alert."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Every panel of the dashboard that shows something."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """By panel and place in it, every expression of the dashboard, with values for its variables."""
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            said = target["expr"].replace("$__rate_interval", "1m").replace("$job", "dcp2hf")
            found[f"{panel['title']} {target['refId']}"] = re.sub(r"\$(instance|root|run)", ".*", said)
    return found


def queries() -> list[str]:
    """What the dashboard's variables are made of."""
    listed = json.loads(DASHBOARD.read_text())["templating"]["list"]
    return [variable["definition"] for variable in listed if variable["type"] == "query"]


def series(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Every metric that an expression selects, and the labels it selects by."""
    for name, selector in re.findall(r"\b(dcp2hf_\w+|process_\w+|up)\b(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", selector))


def metric_of(sample: str) -> str:
    """The metric that a sample belongs to: the histogram of a `_bucket`, otherwise itself."""
    base = re.sub(r"_(bucket|sum|count)$", "", sample)
    return base if base in METRICS and METRICS[base].kind == "histogram" else sample
