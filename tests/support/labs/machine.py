"""Owns what every machine of a lab is: a systemd to talk to, folders of the host in it, commands run on it."""

from __future__ import annotations

import abc
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

BOOT = Path(__file__).with_name("boot.sh")
UNTIL_DEATH = ("setpriv", "--pdeathsig", "KILL", "--")
"""Begins a command line that must not outlive the thread that started it, however that ends."""


class CommandFailed(Exception):
    """A command on a machine ended with another status than 0; the message holds its output."""


@dataclass(frozen=True)
class Bind:
    """A folder of the host as a machine sees it, whatever the modes of the folders above it."""

    source: Path
    target: str
    is_writable: bool = False


class Machine(abc.ABC):
    """A machine whose PID 1 is systemd."""

    @abc.abstractmethod
    def attempt(self, argv: Sequence[str], timeout: float) -> tuple[int, str]:
        """Status and output (both streams) of a command run as root. Raises OSError if the machine does not answer."""

    def run(self, *command: str, user: str = "root", timeout: float = 60.0) -> str:
        """The output of a command; a single argument is a line of bash. Raises CommandFailed."""
        argv = list(command) if len(command) > 1 else ["bash", "-c", *command]
        if user != "root":
            argv = ["runuser", "-u", user, "--", *argv]
        status, output = self.attempt(argv, timeout)
        if status:
            raise CommandFailed(f"{' '.join(command)}: status {status}\n{output}")
        return output

    def write(self, path: str, text: str) -> None:
        """Writes a file on the machine."""
        self.run("bash", "-c", 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"', "write", path, text)

    def append(self, path: str, text: str) -> None:
        """Adds to the end of a file on the machine."""
        self.run("bash", "-c", 'printf %s "$2" >> "$1"', "append", path, text)

    def wait_for_boot(self, seconds: float, console: Path) -> None:
        """Returns once systemd finished its start. Raises TimeoutError with the end of the console."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            try:
                if self.attempt(["systemctl", "is-system-running"], 5.0)[1].strip() in ("running", "degraded"):
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise TimeoutError(f"the machine did not come up:\n{console.read_text(errors='replace')[-2000:]}")


def write_binds(folder: Path, binds: Iterable[Bind]) -> None:
    """The file that boot.sh reads, and the folder it mounts its overlay on."""
    (folder / "overlay").mkdir(exist_ok=True)
    lines = [f"{bind.source} {bind.target} {'rw' if bind.is_writable else 'ro'}\n" for bind in binds]
    (folder / "binds").write_text("".join(lines))


def lacks(programs: Iterable[str], packages: str) -> str:
    """Why this host cannot run a lab ("" if it can): not root, or the Debian packages it would need."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in programs if shutil.which(name) is None and not Path(name).exists()]
    return f"needs {', '.join(missing)} (apt-get install {packages})" if missing else ""


def wait_until(condition: Callable[[], object], seconds: float, what: str = "", *, pause: float = 0.2) -> float:
    """Waits for something on a machine; returns the seconds it took. Raises AssertionError."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(pause)
    return time.monotonic() - began
