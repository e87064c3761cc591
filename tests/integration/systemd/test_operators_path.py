"""An operator's path, by the commands of docs/operators.md: installed from a wheel, used, upgraded, rolled back, removed.

One shortcut: what pip would bring (torch and all else) is there already, in a folder that the new environment may import
from. pip checks that it fits `constraints.txt` and the wheel, and downloads nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.documents import blocks
from tests.integration.documents.blocks import REPOSITORY
from tests.integration.systemd.conftest import save_as_trained
from tests.support.checkpoints.cases import BY_NAME
from tests.support.labs import namespaces, wheel
from tests.support.labs.installed import CASES, TRAIN, TRAINING_GROUP, USERS, Unit
from tests.support.labs.machine import Bind, CommandFailed
from tests.support.labs.namespaces import Namespaces

pytestmark = pytest.mark.slow

CASE = BY_NAME["dense_untied-0.3-fsdp-bfloat16"]
PATHS = f"{sys.base_prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PLACES = "/etc /opt/dcp2hf /usr /var /run /root /home"
"""Where something of an installation could be left."""


class Host:
    """A machine on which nothing of ours is installed, and a person at it, as root."""

    def __init__(self, machine: Namespaces, root: Path) -> None:
        self.machine, self.root = machine, root

    def do(self, name: str, folder: str = "/") -> str:
        """A block of docs/operators.md, in a folder."""
        return self.type(blocks.lab(name), folder)

    def type(self, text: str, folder: str = "/", user: str = "root") -> str:
        environ = ("env", "-i", f"PATH={PATHS}", "HOME=/root", "PIP_NO_INDEX=1", "TERM=dumb")
        return self.machine.run(*environ, "bash", "-euc", f"cd {folder}\n{text}", user=user, timeout=120)

    def steps(self) -> dict[str, dict[str, Any]]:
        """By run, its step as anybody's `dcp2hfd status` says."""
        said = json.loads(self.type("/opt/dcp2hf/bin/dcp2hfd status --json", user="stranger"))
        return {run["run"]: run["steps"][0] for run in said["runs"]}

    def states(self) -> dict[str, str]:
        return {run: step["state"] for run, step in self.steps().items()}

    def version(self) -> str:
        code = "import importlib.metadata; print(importlib.metadata.version('dcp2hf'))"
        return self.type(f'/opt/dcp2hf/bin/python -c "{code}"').strip()

    def left(self) -> set[str]:
        """Every path that is called after us, or leads to one that is."""
        return set(self.type(f"find {PLACES} -xdev '(' -name '*dcp2hf*' -o -lname '*dcp2hf*' ')' || true").splitlines())


@pytest.fixture(scope="module")
def host(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """… with two releases in /srv, and users who train and who do not."""
    if reason := namespaces.missing():
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("root")
    os.chown(root, TRAIN, TRAINING_GROUP)
    root.chmod(0o2775)
    first, later = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("later")
    wheel.build(first)
    wheel.build(later, version="99.0")
    binds = [
        Bind(Path(sys.base_prefix), sys.base_prefix), Bind(Path(sysconfig.get_path("purelib")), "/opt/dependencies"),
        Bind(checkpoints, CASES), Bind(root, "/checkpoints", True), Bind(first, "/srv/first"), Bind(later, "/srv/later"),
    ]  # fmt: skip
    with namespaces.machine(tmp_path_factory.mktemp("operator"), binds) as machine:
        machine.write("/etc/sysusers.d/train.conf", USERS)
        machine.run("systemd-sysusers")
        yield Host(machine, root)


def _with_our_packages(python: str) -> str:
    """`python`, or the one that runs us where that is another version: the packages here are compiled for this one."""
    code = "import ensurepip, sys, venv; print(sys.version_info[:2])"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    return python if said == str(sys.version_info[:2]) else f"{sys.base_prefix}/bin/python3"


def test_by_the_operators_guide_alone_it_is_installed_used_upgraded_rolled_back_and_removed_without_a_trace(
    host: Host, checkpoints: Path
) -> None:
    before, unit = host.left(), Unit(host.machine, checkpoints)
    environment, _, rest = blocks.lab("install").partition("\n")
    host.type(environment.replace("/usr/bin/python3", _with_our_packages("/usr/bin/python3")))
    packages = f"/opt/dcp2hf/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    host.machine.write(f"{packages}/dependencies.pth", "/opt/dependencies\n")
    host.type("/opt/dcp2hf/bin/pip uninstall --yes --quiet setuptools")  # venv's own is older than what torch brings
    host.type(rest, "/srv/first")
    host.do("user")
    assert "the configuration is valid" in host.do("start")
    first = host.version()

    # a run is converted, as the training user, and anybody sees it
    save_as_trained(CASE, checkpoints, host.root, "good", assets=CASES)
    unit.wait_for("conversion_succeeded", run="good")
    published = "/checkpoints/good/checkpoint/step-2-hf"
    assert host.type(f"stat -c %U:%G {published}").strip() == "train:train"
    host.do("everybody")
    assert published in host.type("dcp2hfd status", user="stranger")
    assert host.type("man --where dcp2hfd").strip().endswith("/share/man/man8/dcp2hfd.8")

    # an error is understood, mended, and forgotten
    save_as_trained(CASE, checkpoints, host.root, "moved", assets="/lustre/hf")
    unit.wait_for("conversion_failed", run="moved", error="AssetsMissing")
    assert "path_map" in host.steps()["moved"]["hint"]
    errors = host.type("journalctl -u dcp2hfd -p err -o cat").splitlines()
    assert [json.loads(line)["event"] for line in errors] == ["conversion_failed"]
    host.do("look")
    host.machine.append("/etc/dcp2hf/dcp2hf.toml", f'[path_map]\n"/lustre/hf" = "{CASES}"\n')
    host.type("systemctl reload dcp2hfd && dcp2hfd retry /checkpoints/moved/checkpoint")
    unit.wait_for("conversion_succeeded", run="moved")

    # upgraded, it remembers all, and goes on
    host.do("upgrade", "/srv/later")
    assert host.version() == "99.0"
    assert host.states() == {"good": "done", "moved": "done"}
    assert host.steps()["moved"]["attempts"] == 2
    save_as_trained(CASE, checkpoints, host.root, "later", assets=CASES)
    unit.wait_for("conversion_succeeded", run="later")

    # rolled back: the older one refuses the newer ledger, and with the copy knows all, what was made meanwhile too
    with pytest.raises(CommandFailed, match=r"Job for dcp2hfd\.service failed"):
        host.do("roll back", "/srv/first")
    (refusal,) = re.findall(r"(?m)^dcp2hfd: the ledger is from .*$", (REPOSITORY / "docs/operators.md").read_text())
    assert re.search(re.sub(r"\d+", r"\\d+", re.escape(refusal)), host.type("journalctl -u dcp2hfd -o cat"))
    host.do("older ledger")
    assert host.version() == first
    unit.wait_until_idle(60)
    assert host.states() == {"good": "done", "moved": "done", "later": "done"}
    assert len(unit.events("conversion_succeeded")) == 3, "nothing was converted twice"

    # removed
    host.do("uninstall")
    host.do("remove user")
    assert host.left() == before
    assert host.type("getent passwd dcp2hf || true") == ""
    assert {path.name for path in host.root.rglob("*") if path.name.startswith(".dcp2hf")} == set()
    assert (host.root / "good/checkpoint/step-2-hf/conversion.json").exists()
