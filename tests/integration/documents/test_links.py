"""Every link of the documents leads to a file of this repository, and to a heading that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.documents.blocks import REPOSITORY

DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md") for path in REPOSITORY.glob(pattern)
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(document: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```$", "", document.read_text())


def anchors(document: Path) -> set[str]:
    """The headings of a document as GitHub names them."""
    headings = re.findall(r"(?m)^#+ (.+)$", text_of(document))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for link in _LINK.findall(text_of(document)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        assert target.is_relative_to(REPOSITORY), link
        assert not anchor or anchor in anchors(target), link


def test_every_document_can_be_reached_from_the_readme() -> None:
    seen, open_ = set(), [REPOSITORY / "README.md"]
    while open_:
        document = open_.pop()
        if document in seen or document.suffix != ".md":
            continue
        seen.add(document)
        for link in _LINK.findall(text_of(document)):
            if "://" not in link and link.partition("#")[0]:
                open_.append((document.parent / link.partition("#")[0]).resolve())

    assert [path for path in DOCUMENTS if path not in seen and path.name != "CHANGELOG.md"] == []
