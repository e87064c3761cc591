"""The wheel holds all that an installation needs, and installed it works without the checkout, and goes without a trace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.integration.installation.conftest import environment, pip
from tests.support.labs.wheel import REPOSITORY

pytestmark = pytest.mark.slow


def files(*folders: str) -> set[str]:
    """Every file below these folders of the checkout, but what Python makes."""
    return {
        str(path.relative_to(REPOSITORY))
        for folder in folders
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_every_module_and_data_file_of_both_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name and ".data/" not in name}

    assert found == files("converter", "daemon")


def test_the_wheel_has_what_lies_below_the_prefix(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name.partition(".data/data/")[2] for name in archive.namelist() if ".data/data/" in name}
    documents = {"README.md", "CHANGELOG.md", "SECURITY.md"} | files("docs", "examples/hooks")
    shown = {name for name in documents if not name.endswith((".png", ".svg"))}

    assert found == (
        files("share")
        | {f"share/doc/dcp2hf/{name}" for name in shown}
        | {f"share/dcp2hf/{path.name}" for path in (REPOSITORY / "systemd").iterdir()}
    )


def test_installed_both_commands_run_without_the_checkout(prefix: Path, tmp_path: Path) -> None:
    for command in ("dcp2hf", "dcp2hfd"):
        said = subprocess.run(
            [prefix / "bin" / command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert f"usage: {command} " in said.stdout.lower()
    code = "import converter, daemon; print(converter.__file__, daemon.__file__)"
    said = subprocess.run([prefix / "bin/python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(path.startswith(str(prefix)) for path in said.stdout.split())


def test_the_shipped_unit_starts_what_is_installed(prefix: Path) -> None:
    unit = (prefix / "share/dcp2hf/dcp2hfd.service").read_text()
    (command,) = (line.partition("=")[2].split()[0] for line in unit.splitlines() if line.startswith("ExecStart="))
    (documents,) = (line.partition("file://")[2] for line in unit.splitlines() if line.startswith("Documentation="))

    assert (prefix / Path(command).relative_to("/opt/dcp2hf")).is_file()
    assert (prefix / Path(documents).relative_to("/opt/dcp2hf")).is_file()


@pytest.mark.parametrize("page", ["dcp2hf", "dcp2hfd"])
def test_man_finds_the_pages_of_what_is_in_path(prefix: Path, page: str) -> None:
    if shutil.which("manpath") is None:
        pytest.skip("no man-db here")
    path = f"{prefix}/bin:{os.environ['PATH']}"
    environ = {name: value for name, value in os.environ.items() if name != "MANPATH"} | {"PATH": path}
    said = subprocess.run(["man", "--where", page], env=environ, capture_output=True, text=True, check=True)

    assert said.stdout.startswith(str(prefix / "share/man"))


def test_bash_completion_finds_what_lies_below_a_data_folder(prefix: Path) -> None:
    loader = Path("/usr/share/bash-completion/bash_completion")
    if not loader.exists():
        pytest.skip("no bash-completion here")
    script = f"source {loader}; declare -F _comp_load >&2 && _comp_load dcp2hfd || __load_completion dcp2hfd; complete -p dcp2hfd"
    environ = os.environ | {"XDG_DATA_DIRS": f"{prefix}/share"}
    said = subprocess.run(["bash", "--norc", "-c", script], env=environ, capture_output=True, text=True, check=True)

    assert "-F _dcp2hfd dcp2hfd" in said.stdout


def test_the_commands_for_an_upgrade_install_another_build_of_the_same_version(wheel: Path, tmp_path: Path) -> None:
    prefix = environment(tmp_path / "dcp2hf")
    pip(prefix, "install", "--no-deps", "--no-index", str(wheel))

    def version() -> str:
        return subprocess.run([prefix / "bin/dcp2hfd", "--version"], capture_output=True, text=True, check=True).stdout

    before, other = version(), tmp_path / "release" / wheel.name
    other.parent.mkdir()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            more = b"# another build\n" if name == "daemon/runners/local_process.py" else b""
            new.writestr(old.getinfo(name), old.read(name) + more)
    _, _, upgrade = (REPOSITORY / "docs/operators.md").read_text().partition("## Upgrade")
    commands = re.findall(r"(?m)^/opt/dcp2hf/bin/pip (.+)$", upgrade.partition("```\n\n")[0])
    assert commands
    for command in commands:
        arguments = command.replace("dcp2hf-*.whl", str(other)).replace(
            "constraints.txt", str(REPOSITORY / "constraints.txt")
        )
        pip(prefix, *arguments.split(), "--no-index", "--no-deps")
    after = version()

    assert after != before
    assert after.partition(" (")[0] == before.partition(" (")[0]


def test_uninstalled_nothing_of_it_is_left(wheel: Path, tmp_path: Path) -> None:
    prefix = environment(tmp_path / "dcp2hf")

    def present() -> set[Path]:
        return {path for path in prefix.rglob("*") if path.is_file() and "__pycache__" not in path.parts}

    before = present()
    pip(prefix, "install", "--no-deps", "--no-index", str(wheel))
    assert {path.name for path in present() - before} > {"dcp2hf", "dcp2hfd", "dcp2hf.1", "dcp2hfd.service"}
    pip(prefix, "uninstall", "--yes", "dcp2hf")

    assert present() == before
