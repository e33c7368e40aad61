"""docs/which_method.md names no number that the tables of methods have not for that method."""

from __future__ import annotations

import re

from page import DOCS


def test_its_numbers_are_those_of_the_tables() -> None:
    rows: dict[str, set[str]] = {}
    tables = "".join((DOCS / page).read_text("utf-8") for page in ("methods.md", "transformers.md"))
    for name, cells in re.findall(r"^\| `?([\w ]+?)`? +\|(.*)$", tables, re.MULTILINE):
        rows.setdefault(name, set()).update(re.findall(r"\d+(?:\.\d+)?", cells))
    table = re.findall(r"^\| .* \|$", (DOCS / "which_method.md").read_text("utf-8"), re.MULTILINE)[1:]
    assert len(table) > 4
    for row in table:
        method, first = "", row.split("|")[2].strip(" `")
        for word in re.findall(r"`(\w+)`|(untrained|raw pixels)|(\d+(?:\.\d+)?)", row.split("|", 3)[3]):
            name, baseline, number = word
            if name or baseline:
                method = name or baseline
            else:
                assert number in rows[method or first] | {"2"}, (method or first, number)
