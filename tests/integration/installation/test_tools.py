"""pipx and uv install the wheel so that its commands are in PATH, and take it away again.

What it needs is not downloaded: they find it, by name and version only, in a folder of empty wheels, and its modules are
those of the environment that runs the tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.integration.installation.conftest import pip

pytestmark = pytest.mark.slow

TOOLS = ("pipx==1.18.4", "uv==0.13.8")
Run = Callable[..., str]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with pipx and uv."""
    prefix = tmp_path_factory.mktemp("tools") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    try:
        pip(prefix, "install", *TOOLS)
    except subprocess.CalledProcessError:
        pytest.skip(f"pip could not install {' '.join(TOOLS)}")
    return prefix / "bin"


@pytest.fixture(scope="module")
def shelf(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty wheel of each package that ours needs, in the version that constraints.txt names."""
    folder = tmp_path_factory.mktemp("shelf")
    pins = dict(re.findall(r"(?m)^([\w.-]+)==(.+)$", (wheel.parent / "constraints.txt").read_text()))
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needs = message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    for need in (need for need in needs if "extra ==" not in need):
        package = re.split(r"[^\w.-]", need)[0]
        info = f"{package}-{pins[package]}.dist-info"
        with zipfile.ZipFile(folder / f"{package}-{pins[package]}-py3-none-any.whl", "w") as made:
            made.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {pins[package]}\n")
            made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            made.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def run(tools: Path, wheel: Path, tmp_path: Path) -> Run:
    """Runs a tool beside the wheel, in a home of its own."""
    kept = {
        "PATH": f"{tmp_path}/.local/bin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    registry = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}

    def call(tool: str, *words: str) -> str:
        said = subprocess.run(
            [tools / tool, *words], env=registry | kept, cwd=wheel.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        assert said.returncode == 0, said.stdout
        return said.stdout

    return call


def assert_installed(home: Path, environment: Path) -> None:
    """Both commands run from `~/.local/bin`."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for command in ("dcp2hf", "dcp2hfd"):
        said = subprocess.run(
            [home / ".local/bin" / command, "--help"], cwd=home, capture_output=True, text=True, check=True
        )
        assert f"usage: {command} " in said.stdout.lower()


def left(home: Path) -> list[str]:
    return [str(path) for path in (home / ".local").rglob("dcp2hf*")]


def test_pipx_installs_it_with_its_man_pages_and_removes_it(run: Run, wheel: Path, shelf: Path, tmp_path: Path) -> None:
    words = f"--pip-args=-c constraints.txt --no-index --find-links {shelf}"
    run("pipx", "install", "--python", sys.executable, words, f"./{wheel.name}")
    home = Path(run("pipx", "environment", "--value", "PIPX_LOCAL_VENVS").strip())

    assert_installed(tmp_path, home / "dcp2hf")
    assert (tmp_path / ".local/share/man/man8/dcp2hfd.8").is_file()
    run("pipx", "uninstall", "dcp2hf")
    assert left(tmp_path) == []


def test_uv_installs_it_and_removes_it(run: Run, wheel: Path, shelf: Path, tmp_path: Path) -> None:
    words = ("--offline", "--no-index", "--find-links", str(shelf), "--python", sys.executable)
    run("uv", "tool", "install", "--constraints", "constraints.txt", *words, f"./{wheel.name}")

    assert_installed(tmp_path, Path(run("uv", "tool", "dir").strip()) / "dcp2hf")
    run("uv", "tool", "uninstall", "dcp2hf")
    assert left(tmp_path) == []
