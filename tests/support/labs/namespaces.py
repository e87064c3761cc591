"""Owns a machine in namespaces of this host: systemd as PID 1, limits enforced by the host's own kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.support.labs.machine import BOOT, UNTIL_DEATH, Bind, Machine, lacks, write_binds

_CGROUPS = Path("/sys/fs/cgroup")
_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "blkio", "devices", "freezer")


def missing() -> str:
    """Why there can be no such machine here, or ""."""
    return lacks(("/lib/systemd/systemd", "unshare", "nsenter", "setpriv", "ip"), "systemd util-linux iproute2")


class Namespaces(Machine):
    """systemd in PID, mount, network, IPC, UTS and cgroup namespaces of its own."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self._holder = holder

    def attempt(self, argv: Sequence[str], timeout: float) -> tuple[int, str]:
        command = ["nsenter", "--target", str(self._pid1()), "--all", "--", *argv]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{' '.join(argv)}: nothing for {timeout:.0f} s") from error
        return done.returncode, done.stdout.decode(errors="replace")

    @property
    def limits_memory(self) -> bool:
        """Whether MemoryMax has an effect: whoever runs the tests may not have been given the memory controller."""
        return "memory" in self.run("cat /sys/fs/cgroup/cgroup.controllers 2>/dev/null || ls /sys/fs/cgroup")

    def power_off(self) -> None:
        """Asks systemd to stop everything, and waits for it."""
        with contextlib.suppress(ProcessLookupError, OSError):
            os.kill(self._pid1(), signal.SIGRTMIN + 4)
            self._holder.wait(15)

    def _pid1(self) -> int:
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        if not children:
            raise ConnectionError("the machine is off")
        return int(children[0])


@contextlib.contextmanager
def machine(folder: Path, binds: Iterable[Bind]) -> Iterator[Namespaces]:
    """A running machine; `folder` (empty) keeps its console."""
    write_binds(folder, binds)
    first = [name for name in _CONTROLLERS if (_CGROUPS / name).is_dir()]
    groups = _make_groups(folder.name, first)
    enter = 'for group in $groups; do echo 0 > "$group/cgroup.procs"; done; exec "$@"'
    unshare = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup"]
    console = folder / "console"
    with console.open("wb") as log:
        holder = subprocess.Popen(
            [*UNTIL_DEATH, "sh", "-c", enter, "sh", *unshare, "--propagation", "private", BOOT],
            env=os.environ | {"lab": str(folder), "lab_controllers": " ".join(first), "groups": " ".join(map(str, groups))},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        started = Namespaces(holder)
        started.wait_for_boot(30, console)
        yield started
        started.power_off()
    finally:
        holder.kill()
        holder.wait()
        for group in groups:
            _remove_group(group)


def _make_groups(name: str, first: Sequence[str]) -> list[Path]:
    """Control groups below our own, one in each hierarchy: of the second version, and of the first where it is in use."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path.strip("/"))
    second = _CGROUPS / "unified" if (_CGROUPS / "unified").is_dir() else _CGROUPS
    groups = [second / own.get("", "") / f"lab-{os.getpid()}-{name}"]
    if first:
        for controller in ("name=systemd", *first):
            folder = _CGROUPS / controller.removeprefix("name=")
            groups.append(folder / own.get(controller, "") / f"lab-{os.getpid()}-{name}")
    for group in groups:
        group.mkdir(exist_ok=True)  # cpu and cpuacct may be one hierarchy
    return groups


def _remove_group(group: Path) -> None:
    """Removes a control group and those below it, once the kernel has let go of the processes that were in them."""
    ends = time.monotonic() + 5
    while group.exists():
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if time.monotonic() > ends:
            raise TimeoutError(f"{group} is left: something of the machine still runs")
        time.sleep(0.05)
