"""docs/survival.md is of these suites: made again when a situation comes, goes or is called otherwise."""

from __future__ import annotations

from tests.robustness.calls.scenarios import SCENARIOS
from tests.robustness.calls.survival import DOCUMENT, SUITES


def test_the_summary_speaks_of_every_suite_and_situation() -> None:
    text = DOCUMENT.read_text()
    assert [title for title in SUITES if f"## {title}\n" not in text] == []
    assert [scenario.what for scenario in SCENARIOS.values() if f"| {scenario.what} |" not in text] == []
