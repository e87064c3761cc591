"""A root that strangers write into: the real service and scanners run nothing of it, say it in plain characters, and go on."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.ledger.ledger import Ledger
from tests.unit.daemon.conftest import add_step
from tests.unit.daemon.running import Daemon, clean, daemons

SERVE = Path(__file__).with_name("serve.py")
NAME = 'a\n<3>{"event": "forged"}\x1b]0;owned\x07'
"""A folder's name that is a line of our log, and drives a terminal."""
MakeRun = Callable[..., Path]


class Runs:
    """Pickles as a call of `os.system`."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    with daemons() as begin:
        yield lambda *arguments, **environ: begin(SERVE, tmp_path / "state", *arguments, **environ)


def states(tmp_path: Path) -> dict[str, str]:
    """Run and step -> state."""
    ledger = Ledger.read(tmp_path / "state")
    assert ledger is not None
    return {f"{row.run_name}/{row.step}": str(row.state) for row in ledger.rows()}


def spoil(run: Path, payload: bytes | None) -> None:
    """Another `.metadata` for step 10: these bytes, or a pipe."""
    (run / "step-10/.metadata").unlink()
    if payload is None:
        os.mkfifo(run / "step-10/.metadata")
    else:
        (run / "step-10/.metadata").write_bytes(payload)


@pytest.fixture
def root(make_run: MakeRun, tmp_path: Path) -> Path:
    """Runs of strangers, and an honest one."""
    make_run("honest", 10)
    spoil(make_run("evil", 10), pickle.dumps(Runs(f"touch {tmp_path}/ran")))
    spoil(make_run("bomb", 10), b"\x80\x04Nr" + (200_000_000).to_bytes(4, "little") + b".")
    spoil(make_run("pipe", 10), None)
    make_run(NAME, 10)
    foreign = make_run("foreign", 10)
    (foreign / "step-10-hf").mkdir()
    Path(os.fsdecode(os.fsencode(foreign / "step-10-hf") + b"/\xff\x1b[2J\n")).write_text("x")
    (foreign / "step-20-hf").mkdir()
    os.mkfifo(foreign / "step-20-hf/conversion.json")
    return tmp_path / "root"


def test_of_a_root_of_strangers_the_honest_runs_are_converted_and_nothing_is_run(
    root: Path, tmp_path: Path, start: Callable[..., Daemon]
) -> None:
    begun = time.monotonic()
    daemon = start("--once", str(root))
    daemon.end(150.0)

    assert states(tmp_path) == {
        "honest/10": "done", f"{NAME}/10": "done", "foreign/10": "foreign",
        "evil/10": "quarantined", "bomb/10": "quarantined", "pipe/10": "quarantined",
    }  # fmt: skip
    assert not (tmp_path / "ran").exists()
    assert not daemon.events("forged")
    (evil,) = daemon.events("conversion_failed", run="evil")
    assert evil["error"] == "HostileCheckpoint"
    assert "posix.system" in evil["message"]
    assert time.monotonic() - begun < 100, "no deadline was waited for"


def test_status_says_other_peoples_names_in_printable_characters(
    root: Path, tmp_path: Path, start: Callable[..., Daemon]
) -> None:
    start("--once", str(root)).end(150.0)
    command = [sys.executable, "-P", "-m", "daemon", "status"]
    environ = clean({"DCP2HF_STATE_DIR": str(tmp_path / "state")})
    for arguments in ([], ["--json"]):
        out = subprocess.run([*command, *arguments], env=environ, check=True, capture_output=True, text=True).stdout
        assert all(line.isprintable() for line in out.splitlines())
        assert not [line for line in out.splitlines() if line.startswith("<3>")]


@pytest.mark.parametrize("keep", [10**30, -(2**63) - 1, "many", [[]]], ids=str)
def test_a_run_config_that_no_message_holds_ends_no_scanner(
    keep: object, make_run: MakeRun, tmp_path: Path, start: Callable[..., Daemon]
) -> None:
    run = make_run("a", 10)
    config = json.loads((run / "config.json").read_text())
    config["checkpoint"]["keep_latest_k"] = keep
    (run / "config.json").write_text(json.dumps(config))

    assert start("--once", str(tmp_path / "root")).end() == 0
    assert states(tmp_path) == {"a/10": "done"}


@pytest.mark.parametrize("name", ["pipe", "link", "folder"])
def test_a_run_config_that_is_no_file_holds_up_its_run_alone(
    name: str, make_run: MakeRun, tmp_path: Path, start: Callable[..., Daemon]
) -> None:
    make_run("honest", 10)
    config = make_run("a", 10) / "config.json"
    shutil.move(config, tmp_path / "aside")
    {"pipe": os.mkfifo, "link": lambda path: path.symlink_to(tmp_path / "aside"), "folder": Path.mkdir}[name](config)
    daemon = start("--once", str(tmp_path / "root"))
    daemon.end()

    assert states(tmp_path)["honest/10"] == "done"
    assert not daemon.events("root_unreachable")


def test_what_a_stranger_calls_staging_leads_no_sweep_away(
    make_run: MakeRun, tmp_path: Path, start: Callable[..., Daemon]
) -> None:
    run, victim = make_run("a", 10), tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("mine")
    (run / ".dcp2hf-99.0123456789abcdef.staging").symlink_to(victim)
    os.mkfifo(run / ".dcp2hf-98.lock")

    assert start("--once", str(tmp_path / "root")).end() == 0
    assert (victim / "thesis.tex").exists()
    assert states(tmp_path) == {"a/10": "done"}


def test_a_step_swapped_for_a_link_while_it_is_watched_is_not_followed(
    make_run: MakeRun, tmp_path: Path, saved: Path, start: Callable[..., Daemon]
) -> None:
    run = make_run("a", 10)
    elsewhere = add_step(saved, tmp_path / "root", 30)
    os.rename(elsewhere, tmp_path / "elsewhere")
    (run / "step-30").symlink_to(tmp_path / "elsewhere")
    daemon = start("--once", str(tmp_path / "root"))
    daemon.end()

    assert states(tmp_path) == {"a/10": "done"}
    assert [said["path"] for said in daemon.events("link_not_followed")] == [str(run / "step-30")]
