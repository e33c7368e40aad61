"""Every message that docs/troubleshooting.md has as a heading is one that the package says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from page import DOCS

import selfsup

WORDS = 4  # that follow each other in a heading and in a message, or all of a shorter one
HEADINGS = re.findall(r"^#+ (.*\".*)$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)


def words(text: str) -> str:
    return " ".join(re.findall(r"[\w.=/'-]+", text))


@pytest.fixture(scope="module")
def said() -> str:
    """All text in the code, that of each literal in a line of its own, values that are filled in left out."""
    found = []
    for path in Path(selfsup.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(words(node.value))
    return "\n".join(found)


def runs_of_words(quote: str) -> list[str]:
    """Parts of a message without what is filled in: numbers, file names and dots that stand for anything."""
    parts = re.split(r"…|\d[\d.,%]*|\b\w/\S+|\bRUN\S*", quote)
    texts = [words(part) for part in parts]
    long = [text.split() for text in texts if len(text.split()) >= WORDS]
    if not long:
        return [max(texts, key=len)]
    return [" ".join(text[at : at + WORDS]) for text in long for at in range(len(text) - WORDS + 1)]


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_message_is_said(heading: str, said: str) -> None:
    for quote in re.findall(r'"([^"]+)"', heading):
        assert any(run in said for run in runs_of_words(quote)), quote


def test_there_are_messages() -> None:
    assert len(HEADINGS) > 25
