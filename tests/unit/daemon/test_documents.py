"""What the documents say of keys, events and states is what the code has."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from daemon.config import schema
from daemon.config.load import load
from daemon.config.settings import Settings
from daemon.ledger.records import State

REPOSITORY = Path(__file__).parents[3]
KEYS_OF_PART_A = [
    "roots",
    "max_depth",
    "poll_interval",
    "observer",
    "rescan_interval",
    "workers",
    "threads",
    "dtype",
    "max_shard_size",
    "forward_check",
    "architecture",
    "allow_routing_drift",
    "output",
    "max_attempts",
    "backoff_initial",
    "backoff_max",
    "config_grace",
    "deadline",
    "min_free_space",
    "state_dir",
    "logs_roots",
    "run_config_names",
    "hf_assets",
    "tokenizer",
    "assets_roots",
    "path_map",
    "restrict_assets",
    "min_step",
    "every",
    "order",
    "nice",
    "memory_limit",
    "metrics_address",
    "before_publish",
    "on_success",
    "on_failure",
]
"""What the contract promises (shared/contract.md), but for keys that later parts build."""
EVENTS_OF_THE_CONTRACT = [
    "daemon_started",
    "daemon_stopped",
    "root_unreachable",
    "root_recovered",
    "step_discovered",
    "step_complete",
    "conversion_started",
    "conversion_progress",
    "conversion_succeeded",
    "conversion_failed",
    "conversion_skipped",
    "step_vanished",
    "retention_hazard",
    "run_config_conflict",
    "run_unsupported",
    "converter_output",
]
SAYING = {"debug", "info", "warning", "error", "say", "Said"}
ALWAYS = {"root", "run", "step", "path"}
"""Fields of every line about a step."""


def calls() -> Iterator[tuple[str, str, set[str]]]:
    """(event, level, fields named there) of every place in daemon/ that logs, or has something logged."""
    for path in sorted((REPOSITORY / "daemon").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            first = keywords.pop("event", None) or (node.args[0] if node.args else None)
            if name in SAYING and isinstance(first, ast.Constant) and isinstance(first.value, str):
                is_remark = name in ("say", "Said")
                yield first.value, "warning" if is_remark else name, {"message"} if is_remark else set(keywords)


def logged() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By event, the levels it is logged with and the fields that the code names."""
    levels, fields = defaultdict(set), defaultdict(set)
    for event, level, named in calls():
        levels[event].add(level)
        fields[event] |= named - ALWAYS
    return levels, fields


def documented() -> dict[str, tuple[set[str], set[str]]]:
    """By event, levels and fields in the tables of docs/events.md."""
    rows = re.findall(
        r"^\| `([a-z0-9_]+)` \| ([a-z, ]+) \| ([^|]*) \| [^|]+ \|$", (REPOSITORY / "docs/events.md").read_text(), re.M
    )
    assert len(rows) == len({event for event, _, _ in rows})
    return {event: (set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields))) for event, levels, fields in rows}


def test_the_documented_table_of_keys_is_made_from_the_keys() -> None:
    document = (REPOSITORY / "docs/configuration.md").read_text()
    (found,) = re.findall(r"<!-- table: .*? -->\n(.*?)<!-- end of table -->", document, re.S)

    assert found == schema.table()


def test_every_key_that_the_contract_promises_exists() -> None:
    assert set(KEYS_OF_PART_A) - set(Settings.__struct_fields__) == set()


def test_every_event_that_the_contract_promises_is_logged() -> None:
    assert set(EVENTS_OF_THE_CONTRACT) - set(logged()[0]) == set()


def test_every_event_is_documented_with_its_levels_and_fields() -> None:
    levels, fields = logged()
    events = documented()

    assert set(levels) == set(events)
    for event, (documented_levels, documented_fields) in events.items():
        assert documented_levels == levels[event], event
        assert fields[event] <= documented_fields, event


def test_every_state_is_documented() -> None:
    text = (REPOSITORY / "docs/events.md").read_text()

    assert set(re.findall(r"^\| \*\*(\w+)\*\* \|", text, re.M)) == {str(state) for state in State}


def test_the_configuration_that_the_documents_show_is_a_good_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", (REPOSITORY / "docs/configuration.md").read_text(), re.S)
    (tmp_path / "dcp2hf.toml").write_text(shown)

    settings = load(config=str(tmp_path / "dcp2hf.toml"))

    assert settings.for_root("/ablations").every == 1000
