"""Owns a dcp2hf installed in a lab's machine as docs/operators.md says, and the unit as tests talk to it."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.labs.machine import Bind, Machine, wait_until

_REPOSITORY = Path(__file__).parents[3]
CASES = "/srv/cases"
"""Where a machine sees the test checkpoints, and with them the assets that their run configs record elsewhere."""
UNIT = "dcp2hfd"
_DROP_IN = f"/etc/systemd/system/{UNIT}.service.d"
_CONFIG = "/etc/dcp2hf/dcp2hf.toml"
TRAIN, TRAINING_GROUP = 2001, 2000
"""User and group `train`; the service's user `dcp2hf` is put into that group, `stranger` is not."""
USERS = f"""\
g train {TRAINING_GROUP}
u train {TRAIN}:{TRAINING_GROUP} "who trains"
u stranger - "nobody's colleague"
"""
_SITE = "site"
"""The drop-in that makes the unit fit the host."""


def binds(folder: Path, checkpoints: Path) -> list[Bind]:
    """What a machine needs of this host: Python, the packages of the running environment, ours, and the checkpoints.

    /opt/dcp2hf is a virtual environment with converter and daemon as `pip install .` would leave them, made in `folder`;
    what they need is not copied but comes after them on its path.
    """
    packages = folder / "dcp2hf" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    for name in ("converter", "daemon"):
        shutil.copytree(_REPOSITORY / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(_REPOSITORY / "systemd", folder / "dcp2hf/share/dcp2hf")
    (packages / "dependencies.pth").write_text("/opt/dependencies\n")
    programs = folder / "dcp2hf" / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(f"{sys.base_prefix}/bin/python3.{sys.version_info[1]}")
    for name, room in (("dcp2hf", "converter"), ("dcp2hfd", "daemon")):
        program = programs / name
        program.write_text(f"#!/opt/dcp2hf/bin/python\nimport sys\nfrom {room}.cli import main\nsys.exit(main())\n")
        program.chmod(0o755)
    (folder / "dcp2hf" / "pyvenv.cfg").write_text(
        f"home = {sys.base_prefix}/bin\ninclude-system-site-packages = false\n"
    )
    return [
        Bind(folder / "dcp2hf", "/opt/dcp2hf"),
        Bind(Path(sys.base_prefix), sys.base_prefix),
        Bind(Path(sysconfig.get_path("purelib")), "/opt/dependencies"),
        Bind(checkpoints, CASES),
    ]


class Unit:
    """The unit dcp2hfd on a machine, or another one."""

    def __init__(self, machine: Machine, checkpoints: Path, *, name: str = UNIT, pause: float = 0.2) -> None:
        """`pause`: seconds between two looks at its log; a slow machine should do better than answer."""
        self._machine, self._checkpoints, self._name, self._pause = machine, checkpoints, name, pause
        self._cursor = ""

    def install(self) -> None:
        """As docs/operators.md has it, with a user of its own."""
        self._machine.write("/etc/sysusers.d/train.conf", USERS)
        shipped = "/opt/dcp2hf/share/dcp2hf"
        self._machine.run(
            f"install -Dm644 {shipped}/dcp2hf.sysusers /etc/sysusers.d/dcp2hf.conf && systemd-sysusers && "
            f"install -Dm644 {shipped}/dcp2hf.toml {_CONFIG} && "
            f"install -Dm644 {shipped}/dcp2hfd.service /etc/systemd/system/{UNIT}.service"
        )
        self._edit(
            _SITE,
            "[Unit]\nRequiresMountsFor=/checkpoints\n[Service]\nSupplementaryGroups=train\nReadWritePaths=/checkpoints\n",
        )

    def limit(self, name: str, value: str) -> None:
        """A setting of the unit that a test wants tighter, until `reset`."""
        self._edit(f"test-{name}", f"[Service]\n{name}={value}\n")

    def reset(self) -> None:
        """Stopped, and the unit as installed."""
        self._machine.run(
            f"systemctl stop {self._name}; rm -f {_DROP_IN}/test-*; systemctl daemon-reload; systemctl reset-failed {self._name} || true",
            timeout=120,
        )

    def _edit(self, name: str, text: str) -> None:
        self._machine.write(f"{_DROP_IN}/{name}.conf", text)
        self._machine.run("systemctl daemon-reload")

    def configure(self, *lines: str, roots: Sequence[str] = ("/checkpoints",)) -> None:
        """The example config with these roots and `lines` (`key = value`) instead of its own; recorded asset paths are mapped to where they are here."""
        said = [f"roots = {json.dumps(list(roots))}", *lines]
        keys = tuple(line.partition("=")[0] + "=" for line in said)
        example = (_REPOSITORY / "systemd" / "dcp2hf.toml").read_text().splitlines()
        kept = [line for line in example if not line.startswith(keys)]
        self._machine.write(_CONFIG, "\n".join((*kept, *said, "[path_map]", f'"{self._checkpoints}" = "{CASES}"', "")))

    def start(self, *, keep_ledger: bool = False) -> None:
        """`systemctl start`; the log begins anew."""
        if not keep_ledger:
            self._machine.run("rm -rf /var/lib/dcp2hf/*")
        self._cursor = self._machine.run(
            "journalctl -n 0 --show-cursor --no-pager | sed -n 's/^-- cursor: //p'"
        ).strip()
        self.control("start")

    def control(self, verb: str) -> float:
        """`systemctl VERB` of it; returns the seconds it took."""
        began = time.monotonic()
        self._machine.run("systemctl", verb, self._name, timeout=120)
        return time.monotonic() - began

    def kill(self, signal: str, who: str = "main") -> None:
        self._machine.run("systemctl", "kill", f"--kill-whom={who}", f"--signal={signal}", self._name)

    def show(self, name: str) -> str:
        """A property."""
        return self._machine.run("systemctl", "show", "--value", "--property", name, self._name).strip()

    def log(self) -> list[dict[str, Any]]:
        """What the service logged since `start`, its own lines only."""
        after = f"--after-cursor={self._cursor}" if self._cursor else "--boot"
        command = ("journalctl", after, "-u", self._name, "-o", "cat", "--no-pager", "--all")
        lines = self._machine.run(*command).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def events(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [said for said in self.log() if said["event"] == event and fields.items() <= said.items()]

    def wait_for(self, event: str, seconds: float = 120.0, *, count: int = 1, **fields: Any) -> dict[str, Any]:
        """The event, once it was logged `count` times. Raises AssertionError with the log."""
        try:
            wait_until(lambda: len(self.events(event, **fields)) >= count, seconds, pause=self._pause)
        except AssertionError:
            said = self._machine.run(
                f"journalctl -u {self._name} -o cat --no-pager | tail -n 60; systemctl status --no-pager {self._name} || true"
            )
            raise AssertionError(f"no {event} {fields} within {seconds:.0f} s in\n{said}") from None
        return self.events(event, **fields)[count - 1]

    def wait_until_idle(self, seconds: float) -> None:
        """Returns once nothing converts or waits."""
        idle = " 0 converting, 0 waiting"
        wait_until(lambda: idle in self.show("StatusText"), seconds, "nothing to do", pause=self._pause)

    def stop_main(self) -> float:
        """`systemctl stop`; returns the seconds after which the main process was gone, whatever else still had to go."""
        asked, gone = self._machine.run(
            f"cut -d' ' -f1 /proc/uptime; systemctl stop {self._name}; systemctl show --value -p ExecMainExitTimestampMonotonic {self._name}",
            timeout=120,
        ).split()
        return int(gone) / 1e6 - float(asked)

    def pids(self) -> set[int]:
        """Every process on the machine that runs from the installed environment, of this unit or left by it."""
        return set(map(int, self._machine.run("pgrep -f ^/opt/dcp2hf/bin/python || true").split()))
