"""The real processes, stopped (SIGSTOP) at one call while another takes over, or signalled there: only whole exports appear."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from converter.publish import manifest
from tests.robustness.calls.family import REPOSITORY
from tests.robustness.calls.scenarios import Place, lay_out
from tests.robustness.calls.seam import Kind, Mode, Plan, environment

IMPATIENT = "from converter.cli import main as cli; from converter.publish import lock; lock.STALE = 2.0; lock.POLL = 0.1; cli.main()"
"""The command, which takes an owner that does nothing for 2 s for dead."""


@dataclass
class Scene:
    """One step's folder and the converters that are started in it."""

    place: Place
    library: Path

    @property
    def published(self) -> Path:
        return self.place.step.with_name(self.place.step.name + "-hf")

    @contextlib.contextmanager
    def converter(self, plan: Plan | None = None, *, exchanges: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        """A converter that meets `plan`; killed at the end if it did not end."""
        assets, tokenizer = self.place.out / "base-assets", self.place.out / "tokenizer"
        process = subprocess.Popen(
            [
                sys.executable, "-c", IMPATIENT, "convert", "--dcp-path", self.place.step, "--hf-assets", assets,
                "--tokenizer", tokenizer, "--forward-check", "off",
            ],
            cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=os.environ | environment(self.library, self.place.out, plan, exchanges=exchanges),
        )  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()

    def check(self, *, is_there: bool) -> None:
        """What is published is a whole export of ours, or nothing is; some is if `is_there`."""
        if not is_there and not self.published.exists():
            return
        made = manifest.read(self.published)
        assert made is not None, list(self.published.iterdir())
        assert manifest.foreign_files(self.published) == []
        for name, entry in made.files.items():
            payload = (self.published / name).read_bytes()
            assert (len(payload), hashlib.sha256(payload).hexdigest()) == (entry.size, entry.sha256)


@pytest.fixture
def scene(library: Path, checkpoints: Path, tmp_path: Path) -> Scene:
    return Scene(lay_out(checkpoints, tmp_path / "case"), library)


def wait_stopped(process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 120
    while True:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return
        assert state != "Z", process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.02)


def go_on(process: subprocess.Popen[bytes], *, within: float = 120) -> tuple[int, str]:
    """(exit code, what it printed) of a process that was stopped."""
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=within)
    return process.returncode, said.decode()


def older_export(published: Path) -> None:
    published.mkdir()
    (published / "config.json").write_text("{}")


def test_an_owner_that_wakes_before_it_clears_takes_nothing_from_the_one_that_took_over(scene: Scene) -> None:
    its_lock_is_written = Plan((Kind.WRITE,), 1, mode=Mode.STOP_AFTER)
    about_to_publish = Plan((Kind.RENAME,), 2, mode=Mode.STOP_BEFORE)  # the first takes the lock over
    with scene.converter(its_lock_is_written) as one:
        wait_stopped(one)
        with scene.converter(about_to_publish) as other:
            wait_stopped(other)
            code, said = go_on(one)
            assert (code, "LockLost" in said) == (1, True), said
            scene.check(is_there=False)
            code, said = go_on(other)
            assert code == 0, said
    scene.check(is_there=True)
    assert not scene.place.ours()


def test_an_owner_that_wakes_while_another_clears_its_staging_directory_publishes_nothing_of_it(scene: Scene) -> None:
    about_to_publish = Plan((Kind.RENAME,), 1, mode=Mode.STOP_BEFORE)
    half_cleared = Plan((Kind.UNLINK,), 3, mode=Mode.STOP_BEFORE)  # the first is of the lock
    with scene.converter(about_to_publish) as one:
        wait_stopped(one)
        with scene.converter(half_cleared) as other:
            wait_stopped(other)
            code, said = go_on(one)
            assert (code, "LockLost" in said) == (1, True), said
            scene.check(is_there=False)
            code, said = go_on(other)
            assert code == 0, said
    scene.check(is_there=True)
    assert not scene.place.ours()


@pytest.mark.slow
@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("mode", [Mode.STOP_BEFORE, Mode.STOP_AFTER], ids=["before", "after"])
@pytest.mark.parametrize("nth", [1, 2])
def test_an_owner_that_wakes_during_its_swap_harms_nothing_of_the_one_that_took_over(
    nth: int, mode: Mode, exchanges: bool, scene: Scene
) -> None:
    if exchanges and nth == 2:
        pytest.skip("there is one exchange")
    older_export(scene.published)
    swap = Plan((Kind.EXCHANGE if exchanges else Kind.RENAME,), nth, mode=mode)
    with scene.converter(swap, exchanges=exchanges) as one:
        wait_stopped(one)
        with scene.converter(exchanges=exchanges) as other:
            _, said = other.communicate(timeout=120)
            assert other.returncode == 0, said
            scene.check(is_there=True)
            go_on(one)
    scene.check(is_there=True)
    assert not scene.place.ours()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_the_two_renames_waits_until_something_is_published_again(
    number: signal.Signals, scene: Scene
) -> None:
    older_export(scene.published)
    with scene.converter(Plan((Kind.RENAME,), 1, mode=Mode.STOP_AFTER), exchanges=False) as one:
        wait_stopped(one)
        assert not scene.published.exists()
        one.send_signal(number)
        code, said = go_on(one, within=10)
        assert code == 130, said
    scene.check(is_there=True)
    assert not scene.place.ours()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_during_the_clean_up_leaves_nothing(second: signal.Signals, scene: Scene) -> None:
    with scene.converter(Plan((Kind.UNLINK, Kind.RMDIR), 1, mode=Mode.STOP_BEFORE)) as one:
        ends = time.monotonic() + 120
        while not any(path.name.endswith(".safetensors") for path in scene.place.step.parent.rglob(".dcp2hf-*/*")):
            assert time.monotonic() < ends
            time.sleep(0.002)
        one.send_signal(signal.SIGTERM)
        wait_stopped(one)
        assert scene.place.ours()
        one.send_signal(second)
        code, said = go_on(one, within=10)
        assert (code, "Traceback" in said) == (130, False), said
    assert not scene.published.exists()
    assert not scene.place.ours()


def test_a_signal_after_the_work_changes_no_exit_code(scene: Scene) -> None:
    lock_is_removed = Plan((Kind.UNLINK,), 1, mode=Mode.STOP_AFTER)
    with scene.converter(lock_is_removed) as one:
        wait_stopped(one)
        one.send_signal(signal.SIGTERM)
        one.send_signal(signal.SIGCONT)
        while one.poll() is None:  # also as the interpreter ends
            one.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        _, said = one.communicate()
        assert one.returncode == 130, said
        assert b"interrupted" in said
        assert b"Traceback" not in said
    scene.check(is_there=True)
