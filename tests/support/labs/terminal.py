"""Owns a terminal of a given size as tests need one: a command runs on it, and what it wrote there is read."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][0-9A-Z]|[78=>])")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Said:
    """What a command wrote on a terminal, and its exit code."""

    raw: str
    code: int

    @property
    def text(self) -> str:
        """Without what the terminal obeys."""
        return _CONTROL.sub("", self.raw).replace("\r", "")

    def has_colour(self) -> bool:
        """Whether a foreground colour was set."""
        return any(
            30 <= int(number) <= 37 or int(number) == 38
            for found in COLOUR.findall(self.raw)
            for number in re.findall(r"\d+", found)
        )


def on_terminal(
    command: Sequence[str | Path], *, environ: Mapping[str, str], folder: Path, columns: int = 100, lines: int = 50,
    interrupt_after: str = "", by: signal.Signals = signal.SIGINT, seconds: float = 60.0,
) -> Said:  # fmt: skip
    """Runs a command whose output and input are a terminal; sends it a signal once it wrote `interrupt_after`.

    Raises TimeoutError, with what it wrote, unless it ends in so many seconds.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = {name: value for name, value in environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
        cwd=folder,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    os.close(theirs)
    written, waiting, ends = b"", bool(interrupt_after), time.monotonic() + seconds
    try:
        while time.monotonic() < ends:
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                got = os.read(ours, 1 << 16)
            except OSError:  # EIO: the last one that had it open is gone
                return Said(written.decode(errors="replace"), process.wait(seconds))
            written += got
            if waiting and interrupt_after.encode() in written:
                waiting = False
                process.send_signal(by)
        raise TimeoutError(written.decode(errors="replace"))
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()
