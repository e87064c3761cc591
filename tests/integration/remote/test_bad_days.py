"""The server hangs or dies, a host loses power, a replacement is cut in two: the service goes on, and no step is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.common import names_on_disk
from converter.publish import lock, owners
from tests.integration.end_to_end.conftest import ours
from tests.integration.remote.conftest import PATIENCE, POLL, Hosts, Root
from tests.support.checkpoints.cases import BY_NAME
from tests.support.labs.here import contents, converted_here
from tests.support.labs.machine import CommandFailed, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

REMOTE, LOCAL = BY_NAME["two_steps"], BY_NAME["one_rank"]
DEADLINE = 4
"""scan_deadline, seconds."""


def grows(root: Root) -> bool:
    """Whether an export is being written below the root."""
    return any(name.endswith(".staging") for name in ours(root.exported))


def test_while_the_server_hangs_in_a_conversion_all_else_goes_on_and_after_it_the_conversion_too(
    hosts: Hosts, root: Root, checkpoints: Path, tmp_path: Path
) -> None:
    guest, unit = hosts.one.guest, hosts.one.unit
    guest.run("rm -rf /scratch; install -d -o train -g train -m 2775 /scratch")
    unit.limit("ReadWritePaths", "/scratch")
    unit.limit("WatchdogSec", "10s")
    unit.configure(
        "workers = 2", f'poll_interval = "{POLL}s"', f'scan_deadline = "{DEADLINE}s"', roots=[root.path, "/scratch"]
    )
    root.save(REMOTE, 2)
    unit.start()
    wait_until(lambda: grows(root), PATIENCE)
    with hosts.server.hanging():
        guest.run(f"cp -rp /srv/cases/{LOCAL.name} /scratch/ && chmod -R g+w /scratch/{LOCAL.name}", user="train")
        unit.wait_for("root_unreachable", PATIENCE, root=root.path)
        unit.wait_for("conversion_succeeded", PATIENCE, root="/scratch")
        said = guest.run("/opt/dcp2hf/bin/dcp2hfd status", timeout=60)
        assert "two_steps" in said
        assert unit.show("StatusText").startswith("2 roots (1 unreachable), 1 converting")
        assert (unit.show("NRestarts"), unit.show("ActiveState")) == ("0", "active")
        assert not unit.events("conversion_succeeded", root=root.path)
    unit.wait_for("root_recovered", PATIENCE, root=root.path)
    attempt = unit.wait_for("conversion_succeeded", PATIENCE, root=root.path)["attempt"]
    # A server that slept for longer than LEASE may have forgotten what was open: the attempt goes on, or meets EIO.
    failed = unit.events("conversion_failed", root=root.path)
    assert attempt == len(failed) + 1 <= 2
    assert not [said for said in failed if said["error"] != "MachineFailure" or said["quarantined"]]
    assert contents(root.published(REMOTE, 2)) == converted_here(REMOTE, checkpoints, tmp_path, 2)
    assert ours(root.exported) == []


def test_a_stop_while_the_server_is_dead_takes_less_than_ten_seconds_and_what_is_left_goes_later(
    hosts: Hosts, root: Root
) -> None:
    unit = hosts.one.unit
    unit.configure(f'poll_interval = "{POLL}s"', f'scan_deadline = "{DEADLINE}s"', roots=[root.path])
    root.save(REMOTE, 2)
    unit.start()
    wait_until(lambda: grows(root), PATIENCE)
    with hosts.server.dead():
        unit.wait_for("root_unreachable", PATIENCE)
        assert unit.stop_main() < 10
        assert unit.events("daemon_stopped")
    unit.start(keep_ledger=True)
    unit.wait_for("stale_removed", PATIENCE)
    unit.control("stop")

    assert ours(root.exported) == []


_CUT = """
import os, shutil, signal, sys
from pathlib import Path
from converter.common import names_on_disk as layout; from converter.publish import lock; from converter.publish import swap as publish

published = Path(sys.argv[1])
renames = []

def cut(event, arguments):
    if event == "os.rename":
        renames.append(arguments)
        if len(renames) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

with lock.Lock(published.parent, 2) as held:
    staging = publish.staging_path(published.parent, 2, held.owner.token)
    shutil.copytree(published, staging)
    sys.addaudithook(cut)
    publish.publish(staging, published, 2, held.owner.token, lambda directory: None)
"""


def test_a_kill_between_the_two_renames_of_a_replacement_is_made_good_by_the_next_start(
    hosts: Hosts, root: Root, checkpoints: Path, tmp_path: Path
) -> None:
    guest, unit = hosts.one.guest, hosts.one.unit
    converted = converted_here(REMOTE, checkpoints, tmp_path, 2)
    root.save(REMOTE, 2)
    run = f"{root.path}/{REMOTE.name}/checkpoint"
    guest.run(f"rm -rf /run/made && cp -r {tmp_path}/step-2-hf /run/made && chmod -R a+rX /run/made")
    as_service = ("runuser", "-u", "dcp2hf", "-G", "train", "--")
    guest.run(*as_service, "cp", "-r", "/run/made", f"{run}/step-2-hf")
    with pytest.raises(CommandFailed, match=r"status (-9|137)"):
        guest.run(*as_service, "/opt/dcp2hf/bin/python", "-c", _CUT, f"{run}/step-2-hf")
    left = sorted(names_on_disk.parse_ours(Path(name).name)[2] for name in ours(root.exported))
    assert left == ["lock", "replaced", "staging"]
    assert not root.published(REMOTE, 2).exists()
    unit.start()
    unit.wait_for("stale_removed", PATIENCE)
    unit.wait_for("conversion_skipped", PATIENCE, step=2, reason="up_to_date")

    assert contents(root.published(REMOTE, 2)) == converted
    assert ours(root.exported) == []
    assert not unit.events("conversion_succeeded"), "what was there before is good"


def test_the_step_of_a_host_that_lost_power_is_taken_over_by_the_other_and_published_once(
    hosts: Hosts, root: Root, checkpoints: Path, tmp_path: Path
) -> None:
    for host in hosts:
        host.unit.start()
    root.save(REMOTE, 2)
    wait_until(lambda: grows(root), PATIENCE)
    (name,) = (name for name in ours(root.exported) if name.endswith(".lock"))
    owner = owners.read_owner(root.exported / name)
    assert owner is not None
    lost, left = (hosts.one, hosts.other) if owner.host.startswith("guest1/") else (hosts.other, hosts.one)
    lost.guest.lose_power()
    try:
        left.unit.wait_for("conversion_succeeded", lock.STALE + PATIENCE, step=2)
        assert contents(root.published(REMOTE, 2)) == converted_here(REMOTE, checkpoints, tmp_path, 2)
        assert ours(root.exported) == []
    finally:
        lost.guest.power_on()
        lost.guest.wait()
        lost.unit.install()
    lost.unit.configure(f'poll_interval = "{POLL}s"', roots=[root.path])
    lost.unit.start()
    lost.unit.wait_for("conversion_skipped", PATIENCE, step=2, reason="up_to_date")

    assert not lost.unit.events("conversion_started")


def test_a_conversion_over_the_memory_limit_dies_alone_also_where_the_kernel_tells_systemd(
    hosts: Hosts, root: Root
) -> None:
    """cgroup v2: systemd hears of it, and would stop the whole unit unless told otherwise (OOMPolicy=)."""
    unit = hosts.one.unit
    unit.limit("MemoryMax", "150M")
    root.save(REMOTE, 2)
    unit.start()
    failed = unit.wait_for("conversion_failed", PATIENCE, step=2)

    assert "SIGKILL" in failed["message"]
    assert (unit.show("NRestarts"), unit.show("ActiveState")) == ("0", "active")
