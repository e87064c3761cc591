"""However the service dies under a real systemd, it comes back alone, and the step is converted, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.end_to_end.conftest import ours
from tests.integration.systemd.conftest import Save
from tests.support.checkpoints.cases import BY_NAME
from tests.support.labs.installed import Unit
from tests.support.labs.machine import CommandFailed, wait_until
from tests.support.labs.namespaces import Namespaces

pytestmark = pytest.mark.slow

CASE = BY_NAME["dense_untied-0.3-fsdp-bfloat16"]


def start_converting(unit: Unit, root: Path, save: Save) -> set[int]:
    """Every process of the service once an export grows."""
    save(CASE)
    unit.start()
    wait_until(lambda: any(name.endswith(".staging") for name in ours(root)), 30)
    return unit.pids()


def ended(unit: Unit) -> list[dict[str, Any]]:
    """Conversions that ended well; a worker whose daemon is wedged may have published before the watchdog killed both."""
    return [*unit.events("conversion_succeeded"), *unit.events("conversion_skipped", reason="up_to_date")]


def assert_came_back(unit: Unit, root: Path, before: set[int]) -> None:
    """A second start, without anything of the first; what it converted is all there is."""
    wait_until(lambda: bool(ended(unit)), 120, "the conversion")

    assert unit.show("NRestarts") == "1"
    assert len(ended(unit)) == 1
    assert not unit.pids() & before
    assert ours(root) == []
    assert CASE.published(root).is_dir()


def test_a_wedged_loop_is_killed_by_the_watchdog_and_the_step_converted_after(
    unit: Unit, root: Path, save: Save
) -> None:
    unit.limit("WatchdogSec", "3s")
    before = start_converting(unit, root, save)
    unit.kill("SIGSTOP")
    wait_until(lambda: unit.show("Result") == "watchdog", 10, "the watchdog")

    assert_came_back(unit, root, before)


def test_after_kill_9_of_the_daemon_nothing_of_it_runs_on_and_the_step_is_converted(
    unit: Unit, root: Path, save: Save
) -> None:
    before = start_converting(unit, root, save)
    unit.kill("SIGKILL")

    assert_came_back(unit, root, before)
    assert not unit.events("conversion_skipped")


def test_a_conversion_over_the_memory_limit_dies_alone_and_succeeds_once_there_is_more(
    unit: Unit, machine: Namespaces, root: Path, save: Save
) -> None:
    if not machine.limits_memory:
        pytest.skip("no memory controller was given to the control group that the tests run in")
    unit.limit("MemoryMax", "150M")
    unit.configure('backoff_initial = "1s"')
    save(CASE)
    unit.start()
    failed = unit.wait_for("conversion_failed", step=2)
    assert "SIGKILL" in failed["message"]
    assert failed["retry_at"] is not None
    machine.run("systemctl set-property --runtime dcp2hfd MemoryMax=infinity")
    unit.wait_for("conversion_succeeded", step=2)

    assert unit.show("NRestarts") == "0"
    assert ours(root) == []


def test_a_configuration_that_is_refused_at_the_start_is_not_started_again_and_again(unit: Unit) -> None:
    unit.configure("no_such_key = 1")
    with pytest.raises(CommandFailed):
        unit.start()

    assert (unit.show("ActiveState"), unit.show("NRestarts")) == ("failed", "0")
