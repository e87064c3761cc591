"""Owns the rules for `before_publish` and `sign` in a staging directory: they may add files, then one signature.

Uses only the standard library. A command runs in the directory, in its own process group. Its files are checked before
anything is published. Our files must be unchanged, and added files must be plain files with names of their own.
"""

import contextlib
import ctypes
import hashlib
import os
import resource
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from converter.common import errors, hook_command, interrupts, names_on_disk
from converter.common.files import CONFIG_LIMIT, open_regular
from converter.publish import manifest
from converter.publish.manifest import FileEntry, Manifest

MOST_FILES = 10_000
LEAST_LIMIT = 1 << 30
"""Bytes that may be added however small the export is; else as many as it has itself."""
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
BEAT = 5.0
"""Seconds between two signs of life."""
_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class PublishHooks:
    """Commands as lists of words; an empty one is none."""

    before_publish: tuple[str, ...] = ()
    sign: tuple[str, ...] = ()
    timeout: float = 600.0
    """Seconds that each may take."""


@dataclass(frozen=True)
class Hooked:
    """One staging directory whose checks have all passed, and the commands that see it before it is published."""

    staging: Path
    hooks: PublishHooks
    facts: Mapping[str, Any]
    alive: Callable[[str], None] = lambda name: None
    """Told every few seconds which command runs."""

    def before_publish(self, made: Manifest) -> Manifest:
        """Runs `before_publish`; the manifest with what it added. Raises HookFailed, and then nothing may be published."""
        name = "before_publish"
        if not self.hooks.before_publish:
            return made
        limit = max(LEAST_LIMIT, sum(entry.size for entry in made.files.values()))
        before = self._stamps(made.files)
        self._run(name, self.hooks.before_publish, {"manifest": manifest.as_dict(made)}, limit)
        self._check_ours(name, made.files, before)
        return replace(made, added=self._added(name, made.files, limit))

    def sign(self, made: Manifest) -> None:
        """Runs `sign` over all the rest, the manifest included. Raises HookFailed unless it left a signature and nothing else."""
        name, signature = "sign", self.staging / names_on_disk.SIGNATURE
        if not self.hooks.sign:
            return
        payload = manifest.to_bytes(made)
        ours = made.files | made.added
        ours |= {names_on_disk.MANIFEST: FileEntry(len(payload), hashlib.sha256(payload).hexdigest())}
        before = self._stamps(ours)
        self._run(
            name, self.hooks.sign, {"manifest": manifest.as_dict(made), "signature": str(signature)}, CONFIG_LIMIT
        )
        self._check_ours(name, ours, before)
        found = set(self._others(name, ours))
        self._check(name, names_on_disk.SIGNATURE in found, f"left no {names_on_disk.SIGNATURE}")
        self._check(name, len(found) == 1, f"left more than {names_on_disk.SIGNATURE}: {min(found - {names_on_disk.SIGNATURE}, default='')}")  # fmt: skip

    # The command
    def _run(self, name: str, argv: tuple[str, ...], more: dict[str, Any], limit: int) -> None:
        facts = {"event": name, **self.facts, "staging": str(self.staging), **more}
        environ = hook_command.hook_environment(facts)
        with contextlib.ExitStack() as at_end:
            with interrupts.held():  # a signal that comes while it starts is raised once its end is certain
                child = self._start(name, argv, facts, environ, limit)
                at_end.callback(_end_group, child)
            assert child.stdout is not None
            end = _Tail(child.stdout)
            ended = self._wait(name, child)
        said = hook_command.last_words(end.read(), argv, environ)
        hint = f"the command printed at its end: {said}" if said else "the command printed nothing"
        self._check(name, ended, f"did not end within {self.hooks.timeout:g} s", hint)
        code = child.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._check(name, code == 0, how, hint)

    def _start(
        self, name: str, argv: tuple[str, ...], facts: dict[str, Any], environ: dict[str, str], limit: int
    ) -> subprocess.Popen[bytes]:
        """Starts a command in a session of its own. Raises HookFailed."""

        def prepare() -> None:  # system calls alone: other threads of ours may hold any lock
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))

        asked = os.memfd_create("facts", os.MFD_CLOEXEC)  # no pipe: a command that does not read it would hold us up
        try:
            os.write(asked, hook_command.to_stdin(facts))
            os.lseek(asked, 0, os.SEEK_SET)
            return subprocess.Popen(
                argv, cwd=self.staging, env=environ, stdin=asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=prepare,
            )  # fmt: skip
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise self._failed(name, f"cannot be started: {error}", "see that it is there and may be run") from None
        finally:
            os.close(asked)

    def _wait(self, name: str, child: subprocess.Popen[bytes]) -> bool:
        """Whether it ended in time."""
        ends = time.monotonic() + self.hooks.timeout
        while (left := ends - time.monotonic()) > 0:
            self.alive(name)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(min(left, BEAT))
                return True
        return False

    # What it left
    def _stamps(self, ours: Mapping[str, FileEntry]) -> dict[str, tuple[int, ...]]:
        return {name: _stamp(os.lstat(self.staging / name)) for name in ours}

    def _check_ours(self, hook: str, ours: Mapping[str, FileEntry], before: dict[str, tuple[int, ...]]) -> None:
        """Every file is what it was: at a glance, and by its hash where something about it is not the same."""
        for name, entry in ours.items():
            try:
                facts = os.lstat(self.staging / name)
                same = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1
                same = same and (_stamp(facts) == before[name] or _entry(self.staging / name) == entry)
            except (FileNotFoundError, NotADirectoryError):
                same = False
            self._check(hook, same, f"changed, linked or removed {name}, which is not its own")

    def _added(self, hook: str, ours: Mapping[str, FileEntry], limit: int) -> dict[str, FileEntry]:
        found = self._others(hook, ours)
        for name in found:
            taken = name in (names_on_disk.MANIFEST, names_on_disk.SIGNATURE) or manifest.is_name_of_export(name)
            self._check(hook, not taken, f"added {name}: that name is an export's own")
        self._check(hook, len(found) <= MOST_FILES, f"added {len(found):,} files: {MOST_FILES:,} at most")
        size = sum(found.values())
        self._check(hook, size <= limit, f"added {size:,} bytes: {limit:,} at most")
        return {name: _entry(self.staging / name) for name in found}

    def _others(self, hook: str, ours: Mapping[str, FileEntry]) -> dict[str, int]:
        """Name and bytes of each file that is not among `ours`, in order; empty folders, which no manifest lists, go."""
        found: dict[str, int] = {}
        for folder, folders, names in os.walk(self.staging, topdown=False):
            for name in (*names, *folders):
                path = Path(folder) / name
                shown = str(path.relative_to(self.staging))
                facts = os.lstat(path)
                if stat.S_ISDIR(facts.st_mode):
                    with contextlib.suppress(OSError):
                        path.rmdir()
                elif shown not in ours and not name.startswith(".nfs"):
                    plain = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1
                    self._check(hook, plain, f"left {shown!a}, which is no file of its own (a link, a device, a pipe)")
                    right = shown.isprintable() and not shown.startswith(names_on_disk.PREFIX)
                    right = right and shown.count("/") <= manifest.DEEPEST
                    self._check(hook, right, f"left {shown!a}: no name for a published file")
                    found[shown] = facts.st_size
        return dict(sorted(found.items()))

    def _check(self, hook: str, fine: bool, otherwise: str, hint: str = "nothing was published: mend the hook") -> None:
        if not fine:
            raise self._failed(hook, otherwise, hint)

    def _failed(self, hook: str, what: str, hint: str) -> errors.HookFailed:
        return errors.HookFailed(f"the hook {hook} {what}", path=str(self.facts["output"]), hint=errors.brief(hint))


class _Tail:
    """Reads what a command prints, and keeps the end of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._kept = stream, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while block := os.read(self._stream.fileno(), 1 << 16):
                self._kept = (self._kept + block)[-hook_command.LAST_BYTES :]

    def read(self) -> bytes:
        """All there is of it; whoever escaped the group and holds the pipe open is not waited for."""
        self._thread.join(1.0)
        if not self._thread.is_alive():
            self._stream.close()
        return self._kept


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Ends a command and all that it started and left."""
    with interrupts.held():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(GRACE)
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _stamp(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _entry(path: Path) -> FileEntry:
    with os.fdopen(open_regular(path)[0], "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(file.tell(), digest)
