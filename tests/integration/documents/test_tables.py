"""Tables of errors and exit codes are the code's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from converter.common import errors
from converter.common.errors import ConversionError, Retry
from manual import prose
from tests.integration.documents.blocks import REPOSITORY

PAGE = (REPOSITORY / "docs/errors.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of a table, found by the heading of its columns."""
    table = PAGE.partition(heading)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def every(of: type[ConversionError]) -> Iterator[type[ConversionError]]:
    for error in of.__subclasses__():
        if error.__module__ == errors.__name__:
            yield error
            yield from every(error)


def test_every_error_is_listed_with_its_meaning_and_what_follows_from_it() -> None:
    listed = rows("| error | it means | tried again | do |")

    assert [[name.strip("`"), meaning, retry] for name, meaning, retry, _ in listed] == [
        [error.__name__, inspect.getdoc(error), str(error.retry)] for error in every(ConversionError)
    ]
    assert all(do for *_, do in listed)


def test_every_way_to_try_again_is_explained() -> None:
    assert [name for name, *_ in rows("| tried again | which errors | the daemon |")] == [str(retry) for retry in Retry]


def test_exit_codes_are_those_of_the_man_pages() -> None:
    for program in ("dcp2hf", "dcp2hfd"):
        table = PAGE.partition(f"\nOf `{program}`:\n")[2]
        said = re.findall(r"(?m)^\| (\d+) \| (.+) \|$", table.partition("\nOf ")[0])
        words = {code: meaning.replace("`", "").lower().rstrip(".") for code, meaning in said}

        assert words == {code: text.lower().rstrip(".") for code, text in prose.PAGES[program].exits.items()}
