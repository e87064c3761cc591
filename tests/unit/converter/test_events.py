"""The events of `dcp2hf convert --events` are those that docs/events.md lists, with their levels and fields."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from converter.cli import progress
from tests.unit.converter.editing import make_newer

REPOSITORY = Path(__file__).parents[3]
ALWAYS = {"event", "level", "timestamp", "step", "path"}


def documented() -> dict[str, tuple[str, set[str]]]:
    """By event, its level and its fields."""
    page = (REPOSITORY / "docs/events.md").read_text()
    table = page.partition("| event of `convert` | level and fields | when |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+): ([^|]*) \| [^|]+ \|$", table, re.M)
    return {event: (level, set(re.findall(r"`(\w+)`", fields))) for event, level, fields in rows}


def reported() -> set[str]:
    """Every event that the converter's code reports."""
    names = (
        name
        for path in (REPOSITORY / "converter").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "report"
        for name in ([node.args[0].body, node.args[0].orelse] if isinstance(node.args[0], ast.IfExp) else node.args[:1])
    )
    return {name.value for name in names if isinstance(name, ast.Constant) and isinstance(name.value, str)}


def test_every_event_is_documented_with_its_level() -> None:
    assert {event: level for event, (level, _) in documented().items()} == {
        event: progress._LEVELS.get(event, "info") for event in reported()
    }


def test_every_field_that_is_printed_is_documented(
    run: Path, tmp_path: Path, dcp2hf: Callable[..., tuple[int, str, str]]
) -> None:
    shutil.copytree(run / "step-4", run / "step-6")
    (run / "step-6" / ".metadata").unlink()
    shutil.copytree(run / "step-4", run / "step-8")
    make_newer(run / "step-8", 60)
    (run / "step-010").mkdir()
    (run / "step-2-hf").mkdir()
    (run / "step-2-hf" / "config.json").write_text("{}")
    (run.parent / "config.json").write_bytes((run / "config.json").read_bytes().replace(b"float32", b"bfloat16"))
    out = dcp2hf("convert", run, "--events", "--dry-run")[1]
    rehearsed = [json.loads(line)["event"] for line in out.splitlines()]
    assert {"would_convert", "conversion_skipped", "conversion_failed"} == {*rehearsed}
    assert rehearsed.count("conversion_failed") == 1  # suspect; an incomplete step that nobody named is no failure
    out += dcp2hf("convert", run, "--events", "--statistics", tmp_path / "kept")[1]
    out += dcp2hf("convert", run / "step-2", "--events", "--if-exists", "skip")[1]
    lines = [json.loads(line) for line in out.splitlines()]

    assert {line["event"] for line in lines} == documented().keys() - {"waiting_for_lock"}
    for line in lines:
        level, fields = documented()[line["event"]]
        assert line["level"] == level
        assert line.keys() - ALWAYS <= fields, line["event"]
