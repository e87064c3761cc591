"""A daemon on each of two hosts, one root, steps that a third party saves: found, converted once, readable by whom it must."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.integration.end_to_end.conftest import ours
from tests.integration.remote.conftest import ATTRIBUTES, PATIENCE, POLL, Hosts, Root
from tests.support.checkpoints.cases import BY_NAME
from tests.support.labs.here import contents, converted_here
from tests.support.labs.machine import CommandFailed, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CASE = BY_NAME["two_steps"]
APPEARED = {2: "metadata last", 4: "metadata first"}


@dataclass(frozen=True)
class Shared:
    """What two daemons did with a root into which steps were saved while they watched."""

    root: Root
    complete_at: dict[int, float]
    logs: list[list[dict[str, Any]]]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [said for log in self.logs for said in log if said["event"] == event]


@pytest.fixture(scope="module")
def shared(hosts: Hosts) -> Iterator[Shared]:
    root = Root(hosts, "shared")
    root.make()
    for host in hosts:
        host.unit.configure(f'poll_interval = "{POLL}s"', roots=[root.path])
        host.unit.start()
    complete_at = {number: root.save(CASE, number, appearing) for number, appearing in APPEARED.items()}
    wait_until(lambda: all(root.published(CASE, number).is_dir() for number in APPEARED), PATIENCE)
    for host in hosts:
        host.unit.wait_until_idle(PATIENCE)
    logs = [host.unit.log() for host in hosts]
    for host in hosts:
        host.unit.reset()
    return Shared(root, complete_at, logs)


def test_a_step_of_another_host_is_found_whatever_the_order_in_which_its_names_appear(shared: Shared) -> None:
    for number, complete in shared.complete_at.items():
        found = [
            datetime.fromisoformat(said["timestamp"]).timestamp()
            for said in shared.events("step_complete")
            if said["step"] == number
        ]
        assert len(found) == 2
        assert max(found) - complete < POLL + ATTRIBUTES


def test_two_hosts_convert_each_step_once(shared: Shared) -> None:
    assert sorted(said["step"] for said in shared.events("conversion_succeeded")) == sorted(APPEARED)
    assert not shared.events("conversion_failed")
    assert ours(shared.root.exported) == []


@pytest.mark.parametrize("number", APPEARED)
def test_what_is_published_over_nfs_is_byte_for_byte_what_is_published_here(
    number: int, shared: Shared, checkpoints: Path, tmp_path: Path
) -> None:
    assert contents(shared.root.published(CASE, number)) == converted_here(CASE, checkpoints, tmp_path, number)


def test_where_root_is_squashed_the_published_directory_is_the_service_s_and_the_training_user_reads_it(
    shared: Shared,
) -> None:
    guest = shared.root.hosts.other.guest
    run = f"{shared.root.path}/{CASE.name}/checkpoint"

    assert guest.run("stat", "-c", "%U:%G", f"{run}/step-2-hf", user="train").strip() == "dcp2hf:train"
    guest.run(f"cat {run}/step-2-hf/* > /dev/null", user="train")
    for nobody in ("root", "stranger"):
        with pytest.raises(CommandFailed, match="Permission denied"):
            guest.run(f"cat {run}/step-2-hf/config.json", user=nobody)


def test_a_run_that_the_service_may_not_write_to_is_said_by_name_and_nothing_else_stops(
    hosts: Hosts, root: Root
) -> None:
    root.save(CASE, 2)
    hosts.other.guest.run(f"chmod g-w {root.path}/{CASE.name}/checkpoint", user="train")
    hosts.one.unit.start()
    failed = hosts.one.unit.wait_for("conversion_failed", PATIENCE, step=2)

    assert "EACCES" in failed["message"]
    assert failed["failed_path"].startswith(f"{root.path}/{CASE.name}/checkpoint/")
    assert failed["retry_at"] is not None
