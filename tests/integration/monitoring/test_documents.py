"""The page of metrics is made from the catalogue; alerts, runbook and dashboard name only what is served."""

import re

import pytest

from daemon.status import metric_names
from daemon.status.metric_names import METRICS
from tests.integration.monitoring.documents import (
    DOCS,
    OF_PROMETHEUS,
    expressions,
    metric_of,
    panels,
    queries,
    rules,
    series,
)

USED = [(rule["alert"], rule["expr"]) for rule in rules()] + list(expressions().items())
USED += [("variable", query) for query in queries()]


def test_the_table_of_metrics_is_made_from_the_catalogue() -> None:
    text = (DOCS / "metrics.md").read_text()
    (found,) = re.findall(r"<!-- table: .*? -->\n(.*?)<!-- end of table -->", text, re.S)

    assert found == metric_names.table()


def test_names_are_as_prometheus_wants_them() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"dcp2hf_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.meaning.endswith(".")
        assert metric.kind != "histogram" or name.endswith("_seconds")


@pytest.mark.parametrize(("where", "expression"), USED)
def test_an_expression_names_metrics_and_labels_that_exist(where: str, expression: str) -> None:
    found = list(series(expression))

    assert found, "an expression selects something"
    for name, labels in found:
        metric = metric_of(name)
        assert metric in METRICS or name in OF_PROMETHEUS, (where, name)
        own = set(METRICS[metric].labels) if metric in METRICS else set()
        assert labels <= own | {"job", "instance"}, (where, name, labels)


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    used = {metric_of(name) for _, expression in USED for name, _ in series(expression)}

    assert set(METRICS) - used == set()


def test_every_alert_leads_to_a_section_of_the_runbook_and_every_section_to_an_alert() -> None:
    sections = re.findall(r"^## (\w+)$", (DOCS / "runbook.md").read_text(), re.M)

    assert [rule["alert"] for rule in rules()] == sections
    for rule in rules():
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbook.md#{rule['alert'].lower()}")
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


def test_no_two_panels_lie_over_each_other() -> None:
    taken = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
