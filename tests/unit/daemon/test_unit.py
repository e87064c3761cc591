"""The systemd files: accepted without a word, hardened, and the example config valid."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.config import load

SYSTEMD = Path(__file__).parents[3] / "systemd"
pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


UNITS = ("dcp2hfd.service", "dcp2hfd@.service")


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit with an interpreter that exists here, as `verify` wants it, and its drop-in; of the template, an instance."""
    text = (SYSTEMD / request.param).read_text()
    made = tmp_path / request.param.replace("@", "@train")
    made.write_text(text.replace("/opt/dcp2hf/bin/dcp2hfd", sys.executable).replace("%i", "train"))
    drop_in = tmp_path / f"{made.name}.d/site.conf"
    drop_in.parent.mkdir()
    shutil.copy(SYSTEMD / "site.conf", drop_in)
    return made


def test_the_units_and_their_drop_in_are_accepted_without_a_word(unit: Path) -> None:
    said = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)

    assert (said.returncode, said.stdout, said.stderr) == (0, "", ""), (
        "verify exits 0 on unknown keys, and only says so"
    )


def test_the_units_are_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", said.stdout)

    assert score
    assert float(score[1]) <= 1.5
    assert said.stderr == ""


def test_the_template_is_the_unit_but_for_whose_it_is() -> None:
    unit, template = (
        [line for line in (SYSTEMD / name).read_text().splitlines() if not line.startswith("#")] for name in UNITS
    )
    differing = [line for line in template if line not in unit]

    assert [line.partition("=")[0] for line in differing] == ["Description", "ExecStart", "User", "StateDirectory"]
    assert all("%i" in line for line in differing)
    assert [line.partition("=")[0] for line in unit if line not in template] == [
        *(line.partition("=")[0] for line in differing[:3]), "Group", "StateDirectory",
    ]  # fmt: skip


def test_the_example_config_is_valid() -> None:
    loaded = load.load(config=str(SYSTEMD / "dcp2hf.toml"), environ={})

    assert loaded.roots == ("/checkpoints",)


def test_the_sysusers_file_is_accepted(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("no systemd-sysusers here")
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", "--dry-run", str(SYSTEMD / "dcp2hf.sysusers")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)

    assert said.returncode == 0, said.stderr
