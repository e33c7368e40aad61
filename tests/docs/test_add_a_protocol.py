"""docs/add_a_protocol.md does what it says: its files are written out and its commands run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from page import Page, run_tests

from selfsup.cli import main
from selfsup.eval import PROTOCOLS, read_results

PAGE = Page("add_a_protocol.md")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, in a folder outside the package."""
    PAGE.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path
    PROTOCOLS.pop("class_mean", None)
    PAGE.forget()


def test_evaluate_by_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [command for command in PAGE.commands if command.startswith("selfsup")]
    assert len(commands) == 2
    for command in commands:
        code = main([*shlex.split(command)[1:], "data.limit=200", "eval.knn.k=[5]", "eval.figures=false"])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert re.search(r"^class_mean +\d+\.\d\d %  test +center=(True|False)$", out, re.MULTILINE)
    records = read_results("runs/digits")
    own = [record for record in records if record.protocol == "class_mean"]
    assert [record["center"] for record in own] == [True, False]
    assert all(record.value > 0.7 and record.found["wrong"] > 0 for record in own)
    assert {record.protocol for record in records} == {"class_mean", "knn"}


def test_its_tests_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PAGE.commands[-1] == "PYTHONPATH=. pytest test_class_mean.py"
    monkeypatch.syspath_prepend(str(folder))
    passed, failed = run_tests(folder / "test_class_mean.py")
    assert failed == []
    assert len(passed) == 2
