"""promtool takes what is served, the alerts and every expression of the dashboard, without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.monitoring.documents import RULES, TESTS, expressions, rules
from tests.unit.daemon.asking import free_address, get
from tests.unit.daemon.running import daemons
from tests.unit.daemon.status.test_http_routes import FAST, SERVE

pytestmark = pytest.mark.slow

Promtool = Callable[..., str]


def test_every_alert_is_taken_and_fires_when_it_should(promtool: Promtool) -> None:
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("test", "rules", TESTS)
    tested = TESTS.read_text()
    assert [rule["alert"] for rule in rules() if f"alertname: {rule['alert']}\n" not in tested] == []


def test_a_rule_that_never_fires_would_be_found(promtool: Promtool, tmp_path: Path) -> None:
    shutil.copy(TESTS, tmp_path)
    text = RULES.read_text().replace("dcp2hf_root_up == 0", "dcp2hf_root_up == 2")
    (tmp_path / RULES.name).write_text(text)

    with pytest.raises(AssertionError, match="Dcp2hfRootAway"):
        promtool("test", "rules", tmp_path / TESTS.name)


def test_every_expression_of_the_dashboard_is_one(promtool: Promtool, tmp_path: Path) -> None:
    recorded = [{"record": f"panel:{i}", "expr": text} for i, text in enumerate(expressions().values())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))

    assert f"SUCCESS: {len(recorded)} rules found" in promtool("check", "rules", tmp_path / "rules.yml")


def test_what_a_daemon_serves_is_taken_without_a_word(
    promtool: Promtool, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run, address = make_run("a", 10, 20), free_address()
    (run / "behaviour-step-20").write_text("fail NonFiniteTensor never")
    with daemons() as begin:
        environ = FAST | {"DCP2HF_METRICS_ADDRESS": address}
        daemon = begin(SERVE, tmp_path / "state", str(tmp_path / "root"), **environ)
        daemon.wait_for("conversion_failed")
        text = get(address, "/metrics")[1]

    assert "dcp2hf_steps_in_error{" in text
    assert promtool("check", "metrics", stdin=text) == ""
