"""What the daemon's operator reads names what an operator can change: keys, not the flags of a command that nobody typed."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from daemon.config import load
from daemon.config.flag_to_key import KEYS, in_keys
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import State
from daemon.rules import judge_step
from daemon.runners.converter_output import outcome_of
from daemon.scanner.messages import Step
from tests.unit.daemon.conftest import facts, row, run_facts
from tests.unit.daemon.running import REPOSITORY, clean

_CONVERTER = Path(__file__).resolve().parents[4] / "converter"
_OWN = {"main.py", "hook_command.py", "options.py", "verify.py", "inspect.py", "progress.py"}
"""Said to whom typed a command."""


def hints() -> list[tuple[str, str]]:
    """(module, hint) of every hint written in the converter."""
    found = []
    for path in sorted(_CONVERTER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())) if path.name not in _OWN else ():
            if isinstance(node, ast.keyword) and node.arg == "hint":
                texts = [
                    n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                ]
                found += [(path.name, text) for text in texts]
    return found


def test_every_flag_that_a_converters_hint_names_has_its_key() -> None:
    ours = (hint.replace("download_hf_assets.py --assets config", "") for _, hint in hints())
    named = {flag for hint in ours for flag in re.findall(r"--([a-z][a-z-]*)", hint)}

    assert len(named) > 5
    assert named <= KEYS.keys()


def test_every_key_that_is_named_instead_is_one() -> None:
    keys = {field.name for field in msgspec.structs.fields(Settings)}

    for said in KEYS.values():
        assert said.split()[0] in keys | {"dcp2hfd"}, said


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("name it with --run-config, or its folder with --logs-root", "name it with `run_config_names`, or its folder with `logs_roots`"),
        ("take the run's values with --architecture run", 'take the run\'s values with `architecture = "run"`'),
        ("add its folder to --restrict-assets, or name it with --hf-assets", "add its folder to `assets_roots`, or name it with `hf_assets`"),
        ("if it is a whole copy, say --accept-copy", "if it is a whole copy, say `dcp2hfd retry --accept-copy`"),
        ("look at the mount --and-its server", "look at the mount --and-its server"),
    ],
)  # fmt: skip
def test_a_hint_is_said_in_keys(hint: str, said: str) -> None:
    assert in_keys(hint) == said
    failed = {"event": "conversion_failed", "error": "AssetsMissing", "message": "", "hint": hint}
    outcome = outcome_of(failed, 1)
    assert outcome is not None
    assert outcome.hint == said


def test_the_command_in_a_hint_is_what_a_shell_takes_and_names_the_configuration_that_is_used(tmp_path: Path) -> None:
    file = tmp_path / "my config.toml"
    file.write_text(f'state_dir = "{tmp_path}/my state"\n')
    ledger = Ledger.open(tmp_path / "my state")
    run = tmp_path / "my run"
    (run / "step-10").mkdir(parents=True)
    path = str(run / "step-10")
    ledger.put(row(10, path=path, run=str(run), root=str(tmp_path), state=State.DONE, output=f"{path}-hf"))
    ledger.close()

    def ask(*command: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "daemon", *command], env=clean({}), cwd=REPOSITORY, check=True, capture_output=True, text=True
        ).stdout  # fmt: skip

    (found,) = json.loads(ask("status", "--json", "--config", str(file)))["runs"]
    name, *command = shlex.split(found["steps"][0]["hint"].partition("to have it again: ")[2])
    assert [name, *command] == ["dcp2hfd", "retry", path, "--config", str(file)]
    assert ask(*command).startswith("1 step at ")


@pytest.mark.parametrize("judged", [facts(state="suspect"), facts()])
def test_a_path_with_a_space_is_quoted_in_every_hint(judged: Step) -> None:
    judged = msgspec.structs.replace(judged, path="/my runs/step-10")
    said = judge_step.judge(judged, run_facts(), row(state=State.DONE), None, Settings(), now=0.0)

    assert "dcp2hfd retry '/my runs/step-10'" in said.hint


def test_a_configuration_that_commands_find_by_themselves_is_not_named() -> None:
    assert load.named(None, environ={}) is None
    assert load.named(load.DEFAULT_CONFIG, environ={}) is None
    assert load.named(None, environ={"DCP2HF_CONFIG": "/etc/other.toml"}) == "/etc/other.toml"
    assert load.named("/etc/mine.toml", environ={"DCP2HF_CONFIG": "/etc/other.toml"}) == "/etc/mine.toml"
