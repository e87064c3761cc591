"""Under a real systemd the unit starts, converts, reloads and stops as it promises, as a user of its own."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.integration.documents import blocks
from tests.integration.end_to_end.conftest import ours
from tests.integration.systemd.conftest import Lab, Save
from tests.support.checkpoints.cases import BY_NAME
from tests.support.labs.here import contents, converted_here
from tests.support.labs.installed import CASES, Unit
from tests.support.labs.machine import CommandFailed, wait_until
from tests.support.labs.namespaces import Namespaces

pytestmark = pytest.mark.slow

CASE = BY_NAME["dense_untied-0.3-fsdp-bfloat16"]


def test_a_user_without_any_privilege_converts_what_the_training_group_may_read_with_every_check(
    unit: Unit, machine: Namespaces, root: Path, save: Save, checkpoints: Path, tmp_path: Path
) -> None:
    save(CASE)
    unit.start()
    unit.wait_for("conversion_succeeded", step=2)
    folder = f"/checkpoints/{CASE.published(root).relative_to(root)}"

    assert contents(CASE.published(root)) == converted_here(CASE, checkpoints, tmp_path)
    assert machine.run("stat", "-c", "%U:%G %a", folder).strip() == "dcp2hf:train 2755"
    assert machine.run("ps", "-o", "user=", "-p", unit.show("MainPID")).strip() == "dcp2hf"
    assert "CapEff:\t0000000000000000" in machine.run("cat", f"/proc/{unit.show('MainPID')}/status")
    machine.run(f"cat {folder}/*", user="train")
    with pytest.raises(CommandFailed, match="Permission denied"):
        machine.run(f"cat {folder}/*", user="stranger")


def test_start_returns_once_the_root_is_being_scanned_and_the_status_says_so(unit: Unit) -> None:
    unit.start()
    watched = datetime.fromisoformat(unit.wait_for("root_watched")["timestamp"]).timestamp()
    active = time.time() - time.monotonic() + int(unit.show("ActiveEnterTimestampMonotonic")) / 1e6

    assert watched <= active
    assert unit.show("StatusText") == "1 root, 0 converting, 0 waiting, 0 quarantined"


def test_the_status_text_follows_what_is_done_and_a_loop_at_work_outlives_a_short_watchdog(
    unit: Unit, save: Save
) -> None:
    unit.limit("WatchdogSec", "3s")
    save(CASE)
    unit.start()
    wait_until(lambda: unit.show("StatusText") == "1 root, 1 converting, 0 waiting, 0 quarantined", 30)
    wait_until(lambda: unit.show("StatusText") == "1 root, 0 converting, 0 waiting, 0 quarantined", 90)

    assert unit.events("conversion_succeeded")
    assert unit.show("NRestarts") == "0"


def test_reload_takes_a_changed_config_and_keeps_the_old_one_where_the_new_is_wrong(
    unit: Unit, root: Path, save: Save
) -> None:
    save(CASE)
    unit.configure(roots=["/checkpoints/empty"])
    (root / "empty").mkdir()
    unit.start()
    main = unit.show("MainPID")
    unit.configure("no_such_key = 1")
    unit.control("reload")
    unit.wait_for("config_invalid")
    assert not unit.events("step_complete")

    unit.configure(roots=["/checkpoints/empty", f"/checkpoints/{CASE.name}"])
    unit.control("reload")
    unit.wait_for("conversion_succeeded", step=2)

    assert len(unit.events("config_reloaded")) == 1
    assert (unit.show("MainPID"), unit.show("ActiveState")) == (main, "active")


def test_stop_in_the_middle_of_a_conversion_takes_less_than_ten_seconds_and_leaves_nothing_of_ours(
    unit: Unit, root: Path, save: Save
) -> None:
    save(CASE)
    unit.start()
    wait_until(lambda: any(name.endswith(".staging") for name in ours(root)), 30)

    assert unit.control("stop") < 10
    assert unit.show("Result") == "success"
    assert ours(root) == []
    assert not CASE.published(root).exists()
    assert unit.pids() == set()

    unit.start(keep_ledger=True)
    unit.wait_for("conversion_succeeded", step=2, attempt=1)


def test_it_is_ready_on_the_loopback_device_and_listens_nowhere_else(unit: Unit, machine: Namespaces) -> None:
    ask = "import sys, urllib.request as u; print(u.urlopen('http://127.0.0.1:9469' + sys.argv[1]).read().decode())"
    unit.start()
    unit.wait_for("root_watched")
    wait_until(lambda: "1 root" in unit.show("StatusText"), 30)

    assert machine.run("/opt/dcp2hf/bin/python", "-c", ask, "/readyz").strip() == "ok"
    assert 'dcp2hf_root_up{root="/checkpoints"} 1.0' in machine.run("/opt/dcp2hf/bin/python", "-c", ask, "/metrics")
    listening = {
        line.split()[3] for line in machine.run("ss -Htlnp").splitlines() if f"pid={unit.show('MainPID')}" in line
    }
    assert listening == {"127.0.0.1:9469"}


def test_the_template_serves_one_training_user_as_that_user_with_a_ledger_of_its_own(
    lab: Lab, machine: Namespaces, root: Path, save: Save, checkpoints: Path
) -> None:
    of_train = Unit(machine, checkpoints, name="dcp2hfd@train")
    try:
        machine.run("bash", "-euc", blocks.lab("template"))
        machine.append("/etc/dcp2hf/train.toml", f'[path_map]\n"{checkpoints}" = "{CASES}"\n')
        of_train.control("reload")
        save(CASE)
        of_train.wait_for("conversion_succeeded", step=2)

        folder = f"/checkpoints/{CASE.published(root).relative_to(root)}"
        assert machine.run("stat", "-c", "%U", folder).strip() == "train"
        status = ("/opt/dcp2hf/bin/dcp2hfd", "status", "--config", "/etc/dcp2hf/train.toml")
        said = machine.run(*status, user="stranger")
        assert "ledger in /var/lib/dcp2hf@train" in said
        assert "done" in said
    finally:
        machine.run("systemctl disable --now dcp2hfd@train; rm -rf /etc/systemd/system/dcp2hfd@* /var/lib/dcp2hf@train")
