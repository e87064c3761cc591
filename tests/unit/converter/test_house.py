"""The house holds: who imports what, said of a fresh process; and each module says what it owns."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import converter

_PACKAGE = Path(converter.__file__).parent
_TESTS = Path(__file__).parent
MODULES = sorted(_PACKAGE.rglob("*.py"))
HEAVY = {"torch", "torchtitan", "transformers", "safetensors", "tokenizers", "huggingface_hub", "pandas", "scipy"}


def imported_by(module: str) -> set[str]:
    """Names of the top-level modules that are there once a fresh process has imported `module`."""
    code = f"import json, sys; import {module}; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return set(json.loads(ran.stdout))


def test_what_moves_bytes_has_no_torch() -> None:
    assert not imported_by("converter.convert") & HEAVY
    assert not imported_by("converter.cli.main") & HEAVY


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint.probe",
        "common.errors",
        "common.names_on_disk",
        "publish.manifest",
        "publish.lock",
        "publish.swap",
        "run.run_config",
    ],
)
def test_what_both_sides_import_is_standard_library_only(name: str) -> None:
    ours = {"converter", "__main__", "sitecustomize", "__editable___dcp2hf_0_1_0_finder"}
    found = imported_by(f"converter.{name}") - set(sys.stdlib_module_names) - ours
    assert not {name for name in found if not name.startswith(("_", "__editable__"))}, found


def test_the_proving_side_is_told_what_to_do_without_torch() -> None:
    assert not imported_by("converter.proof.process") & HEAVY  # they are imported when it is asked to warm up


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted(_TESTS.rglob("[!_]*.py"))], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_each_module_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert len(docstring.splitlines()[0]) > 20
    if path.is_relative_to(_PACKAGE) and path.name not in ("__init__.py", "__main__.py"):
        assert docstring.startswith(("Owns ", "The "))


def test_no_test_of_the_converter_names_a_place_of_one_machine() -> None:
    for path in _TESTS.rglob("[!_]*.py"):
        for place in ("/work" + "/", "/tmp" + "/", "/root" + "/", "/home" + "/"):
            assert place not in path.read_text(), path.name
