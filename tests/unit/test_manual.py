"""Man pages and completion: made from the parsers as they are now, clean, and of use in a real shell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from converter.cli import main
from daemon.config import schema
from manual import prose, schemas
from manual.__main__ import SHARE, files
from manual.commands import Program, dcp2hf, dcp2hfd

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(SHARE.glob("man/*/*"))
_ASK = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
compopt() { :; }  # bash has it only while it completes
_"$1"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(*words: str, folder: Path = REPOSITORY) -> set[str]:
    """What bash offers for the last of these words."""
    script = SHARE / "bash-completion/completions" / words[0]
    command = ["bash", "--norc", "-c", _ASK, "bash", str(script), *words]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert said.stderr == ""
    return set(said.stdout.split())


def test_what_is_committed_is_what_the_parsers_say() -> None:
    found = {str(path.relative_to(SHARE)): path.read_text() for path in SHARE.rglob("*") if path.is_file()}

    assert found == files(), "make manual"


def test_the_schemas_are_what_the_code_says() -> None:
    found = {path.name: path.read_text() for path in (REPOSITORY / "docs/schemas").glob("*.json")}

    assert found == schemas.files(), "make manual"
    for text in found.values():
        Draft202012Validator.check_schema(json.loads(text))


@pytest.mark.parametrize("program", [dcp2hf(), dcp2hfd()], ids=lambda program: program.name)
def test_every_command_and_option_is_in_page_and_completions(program: Program) -> None:
    made = files()
    section = prose.PAGES[program.name].section
    page = made[f"man/man{section}/{program.name}.{section}"].replace("\\-", "-")
    assert len(program.commands) > 2
    for command in program.commands:
        names = {name for option in command.options for name in option.names}
        assert f'"{program.name} {command.name}"' in page
        assert names <= set(re.findall(r"\\fB(-[\w-]+)\\fR", page))
        assert completed(program.name, command.name, "-") == names
        assert all(f"'{name}[" in made[f"zsh/site-functions/_{program.name}"].replace("'*-", "'-") for name in names)
    assert completed(program.name, "") == {command.name for command in program.commands}


def test_each_page_says_what_its_hooks_may_do() -> None:
    made = {name.rpartition("/")[2]: text.replace("\\-", "-") for name, text in files().items()}
    said = {name: made[name].partition('.SH "HOOKS"')[2].partition(".SH")[0] for name in ("dcp2hf.1", "dcp2hfd.8")}

    assert all(name in said["dcp2hf.1"] for name in ("--before-publish", "--sign", "--hook-timeout"))
    assert all(key in said["dcp2hfd.8"] for key in schema.HOOKS)


def test_bash_completes_choices_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "file.toml").touch()

    assert completed("dcp2hf", "convert", "--dtype", "") == {"auto", "float32", "bfloat16", "float16"}
    assert completed("dcp2hf", "convert", "--dtype", "=", "b") == {"bfloat16"}
    assert completed("dcp2hf", "convert", "--output", "", folder=tmp_path) == {"a", "folder"}
    assert completed("dcp2hfd", "check", "--config", "f", folder=tmp_path) == {"file.toml"}
    assert completed("dcp2hf", "inspect", "", folder=tmp_path) == {"a", "folder", "file.toml"}
    assert completed("dcp2hf", "convert", "--threads", "") == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_reads_its_completion(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    folder = {"bash": "bash-completion/completions", "zsh": "zsh/site-functions", "fish": "fish/vendor_completions.d"}
    scripts = list((SHARE / folder[shell]).iterdir())
    assert len(scripts) == 2
    for script in scripts:
        said = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=True)
        assert (said.stdout, said.stderr) == ("", "")


@pytest.mark.parametrize("checker", ["mandoc -T lint", "groff -man -ww -z -Tutf8"])
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_are_clean(page: Path, checker: str) -> None:
    command = checker.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    said = subprocess.run([*command, page], capture_output=True, text=True, check=False)

    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_exit_statuses_of_the_page_are_those_of_the_code() -> None:
    codes = {getattr(main, name) for name in vars(main) if name.startswith("EXIT_")}

    assert set(prose.PAGES["dcp2hf"].exits) == set(map(str, codes))
