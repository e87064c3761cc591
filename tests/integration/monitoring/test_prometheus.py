"""A real Prometheus asks a real daemon: what it stores is so, and alerts fire when a root goes or a step waits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.monitoring.conftest import prometheus
from tests.integration.monitoring.documents import RULES, expressions
from tests.unit.daemon.asking import free_address
from tests.unit.daemon.running import daemons
from tests.unit.daemon.status.test_http_routes import FAST, SERVE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("promtool")]


def impatient() -> str:
    """The shipped rules, with seconds for minutes: what waits an hour waits three seconds."""
    text = RULES.read_text().replace("dcp2hf_lag_seconds > 3600", "dcp2hf_lag_seconds > 3")
    return re.sub(r"for: \d+[mh]", "for: 1s", text)


def test_a_root_that_goes_away_and_a_step_that_waits_raise_their_alerts_and_these_end(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run, root, address = make_run("a", 10, 20), tmp_path / "root", free_address()
    (run / "behaviour-step-20").write_text("fail_late MachineFailure backoff")
    place = tmp_path / "prometheus"
    place.mkdir()
    environ = FAST | {"DCP2HF_METRICS_ADDRESS": address, "DCP2HF_MAX_ATTEMPTS": "1000", "DCP2HF_BACKOFF_MAX": "1s"}
    with daemons() as begin, prometheus(place, address, impatient()) as asked:
        daemon = begin(SERVE, tmp_path / "state", str(root), **environ)
        daemon.wait_for("conversion_succeeded")
        asked.wait_for(lambda: asked.value('dcp2hf_steps{state="done"}') == {f"{root} a done": 1})
        asked.wait_for(lambda: asked.value("dcp2hf_root_up") == {str(root): 1})
        asked.wait_for(lambda: "Dcp2hfStepUnconverted" in asked.firing())
        (run / "behaviour-step-20").unlink()
        asked.wait_for(lambda: "Dcp2hfStepUnconverted" not in asked.firing())
        asked.wait_for(lambda: asked.value('dcp2hf_attempts_total{outcome="succeeded"}') == {"succeeded": 2})

        root.rename(tmp_path / "away")
        asked.wait_for(lambda: "Dcp2hfRootAway" in asked.firing())
        (tmp_path / "away").rename(root)
        asked.wait_for(lambda: "Dcp2hfRootAway" not in asked.firing())

        empty = [name for name, text in expressions().items() if not asked.value(text)]
        assert set(empty) <= QUIET, "panels that show nothing although there is something"

        assert daemon.stop() == 0
        asked.wait_for(lambda: "Dcp2hfDown" in asked.firing())


QUIET = {
    "Lag: oldest complete step that is not converted A",
    "Steps in error A",
    "Phases, mean (some run side by side) A",
    "Slurm jobs A",
    "Slurm's commands, an hour A",
}
"""Nothing waits or is in error in the end, nothing runs as a job; the stand-in for the converter has no phases."""
