"""Whatever stands in a name, a table stays a table: no formula, no markup, nothing that moves a terminal's cursor."""

from __future__ import annotations

import csv
import io

import pytest

from selfsup.cli import main
from selfsup.tables import console_table, csv_table, markdown_table, printable

HOSTILE = [
    "=cmd|'/c calc'!A0",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\tx",
    "<script>",
    "a\x1b[2Jb",
    "one\ntwo",
    "\u202egpj",
]


def test_no_text_of_a_spreadsheet_is_a_formula_and_numbers_stay_numbers() -> None:
    rows = list(csv.reader(io.StringIO(csv_table(["=name", "value"], [[name, -0.5] for name in HOSTILE]))))
    assert all(row[0][0] not in "=+-@\t" for row in rows)
    assert {row[1] for row in rows[1:]} == {"-0.5"}
    assert rows[6][0] == HOSTILE[5]


def test_no_name_is_markup_or_a_line_of_its_own_in_markdown() -> None:
    text = markdown_table(["<b>"], [[name] for name in HOSTILE], ["<i>"])
    assert "<" not in text
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2 + len(HOSTILE) + 2  # an empty line, the note


def test_no_name_moves_the_cursor_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = console_table(["run"], [[name] for name in HOSTILE])
    assert len(text.splitlines()) == 2 + len(HOSTILE)
    assert text.isascii()
    assert printable("a\x1b[2Jb\u202e") == r"a\x1b[2Jb\u202e"
    assert main(["knn", "checkpoint=gone\x1b[2J"]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"gone\x1b[2J" in said
