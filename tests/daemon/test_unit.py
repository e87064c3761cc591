"""The systemd files: accepted without a word, hardened, and the example config valid."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon import config

SYSTEMD = Path(__file__).parents[2] / "systemd"
pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with an interpreter that exists here, as `verify` wants it."""
    text = (SYSTEMD / "dcp2hfd.service").read_text()
    (tmp_path / "dcp2hfd.service").write_text(text.replace("/opt/dcp2hf/bin/dcp2hfd", sys.executable))
    return tmp_path / "dcp2hfd.service"


def test_the_unit_is_accepted_without_a_word(unit: Path) -> None:
    said = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)

    assert (said.returncode, said.stdout, said.stderr) == (0, "", ""), (
        "verify exits 0 on unknown keys, and only says so"
    )


def test_the_unit_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", said.stdout)

    assert score
    assert float(score[1]) <= 1.5
    assert said.stderr == ""


def test_the_example_config_is_valid() -> None:
    loaded = config.load(config=str(SYSTEMD / "dcp2hf.toml"), environ={})

    assert loaded.roots == ("/checkpoints",)


def test_the_sysusers_file_is_accepted(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("no systemd-sysusers here")
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", "--dry-run", str(SYSTEMD / "dcp2hf.sysusers")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)

    assert said.returncode == 0, said.stderr
