"""docs/add_a_method.md does what it says: its files are written out and its commands run."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest
from page import Page
from tiny import TINY

from selfsup.checkpoint import read_checkpoint
from selfsup.cli import main
from selfsup.eval import read_results

ROOT = Path(__file__).parents[2]
PAGE = Page("add_a_method.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the page, in a folder outside the package; the tests of the repository beside them."""
    path = tmp_path_factory.mktemp("own")
    PAGE.write(path)
    (path / "tests").symlink_to(ROOT / "tests")
    (path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    yield path
    PAGE.forget()


def test_the_page_has_the_files_and_commands_that_are_run_here(folder: Path) -> None:
    assert {path.name for path in folder.glob("*.py")} == {"dcl.py", "test_dcl.py"}
    assert [command.split()[:2] for command in PAGE.commands if command.startswith("selfsup")] == [
        ["selfsup", "methods"],
        ["selfsup", "train"],
        ["selfsup", "train"],
        ["selfsup", "knn"],
    ]


def test_train_resume_evaluate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)

    def run(command: str, *settings: str) -> str:
        """Run a line of the page, with settings that make it short, and return what it printed."""
        code = main([*shlex.split(command)[1:], *settings])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    explain, train, resume, knn = (command for command in PAGE.commands if command.startswith("selfsup"))
    assert "method.temperature=0.1" in run(explain)
    # eight steps leave BatchNorm's running statistics near their start, and evaluation features near one point
    run(train, *(s for s in TINY if not s.startswith("backbone")), "online.stop_on_collapse=false")
    checkpoint = read_checkpoint("runs/dcl")
    assert checkpoint["selfsup"]["epochs_done"] == 2
    assert checkpoint["selfsup"]["config"]["method"] == {"name": "dcl", "temperature": 0.1, "output_dim": 128}
    run(resume, "trainer.max_epochs=3")
    assert read_checkpoint("runs/dcl")["selfsup"]["epochs_done"] == 3
    with Path("runs/dcl/metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 3 * 4
    assert "knn" in run(knn, "eval.knn.k=[3]")
    (record,) = [r for r in read_results("runs/dcl") if r["protocol"] == "knn"]
    assert (record["k"], record["epoch"], record["split"]) == (3, 3, "test")


def _pytest(words: list[str]) -> int:
    sys.path.insert(0, ".")  # PYTHONPATH
    return pytest.main(words)


@pytest.mark.parametrize("command", [command for command in PAGE.commands if "pytest" in command])
def test_its_tests_pass(command: str, folder: Path) -> None:
    assert command.startswith("PYTHONPATH=. pytest ")
    words = shlex.split(command)[2:]
    own = [*words, "-q", "-p", "no:cacheprovider"]
    done = processes.Running(_pytest, own, folder, f"pytest{len(words)}").wait()
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 5  # type: ignore[index]
    assert "skipped" not in done.stdout
