"""docs/add_a_command.md does what it says: its file is found by being in the folder, and its commands run."""

from __future__ import annotations

import ast
import csv
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from page import Page, run_tests

from selfsup import commands
from selfsup.cli import main
from selfsup.config import load_config, to_yaml

PAGE = Page("add_a_command.md")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is walked as that of the commands is, with the file of the page in it."""
    monkeypatch.chdir(tmp_path)
    PAGE.write(tmp_path)
    (tmp_path / "commands").mkdir()
    (tmp_path / "table.py").rename(tmp_path / "commands" / "table.py")
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path / "commands")])
    yield tmp_path
    sys.modules.pop("selfsup.commands.table", None)
    vars(commands).pop("table", None)


def test_it_is_used_as_the_page_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overview, explain, plain, chosen, test = PAGE.commands
    assert test == "pytest tests/commands/test_table.py"
    for method in ("moco", "byol"):
        (folder / "runs" / method).mkdir(parents=True)
        (folder / "runs" / method / "config.yaml").write_text(to_yaml(load_config([f"method={method}"])), "utf-8")

    def run(command: str) -> str:
        assert main(shlex.split(command)[1:]) == 0
        return capsys.readouterr().out

    first = (ast.get_docstring(ast.parse(PAGE.files["table.py"])) or "").partition("\n")[0]
    assert f"  table          {first}\n" in run(overview)
    told = run(explain)
    assert told.startswith(first)
    assert all(option in told for option in ("--method NAME", "--csv FILE", "--import FILE"))
    assert {"runs/moco", "runs/byol"} <= set(run(plain).split())
    out = run(chosen)
    assert "runs/byol" not in out
    assert "saved: moco.csv" in out
    with Path("moco.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["runs/moco"]


def test_its_tests_pass(folder: Path) -> None:
    passed, failed = run_tests(folder / "test_table.py")
    assert failed == []
    assert len(passed) == 6


@pytest.mark.parametrize(
    ("right", "wrong", "test"),
    [
        ("    refuse_settings(arguments)\n", "", "test_mistakes_are_one_line[words2-"),
        ("> 1:", "> 2:", "test_mistakes_are_one_line[words1-"),
        (", **wanted)", ")", "test_all_runs_and_those_of_a_method"),
    ],
)
def test_its_tests_find_mistakes(right: str, wrong: str, test: str, folder: Path) -> None:
    text = PAGE.files["table.py"]
    assert text.count(right) == 1
    (folder / "commands" / "table.py").write_text(text.replace(right, wrong), "utf-8")
    assert any(name.startswith(test) for name in run_tests(folder / "test_table.py")[1])
