"""docs/add_an_augmentation.md does what it says: its files are written out and its command runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from page import Page, run_tests
from PIL import Image
from tiny import TINY

from selfsup import imports
from selfsup.augment import OPERATIONS
from selfsup.cli import main

PAGE = Page("add_an_augmentation.md")
MAP = "test_each_pixel_is_from_where_the_map_says"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, in a folder outside the package, and a process that does not know them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(imports, "_executed", {})
    PAGE.write(tmp_path)
    yield tmp_path
    PAGE.forget()
    for name in ("vignette", "transpose"):
        OPERATIONS.pop(name, None)


@pytest.mark.pictures
def test_train_with_both_and_look_at_the_views(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = PAGE.commands
    assert test == "PYTHONPATH=. pytest test_augmentations.py"
    settings = [s for s in TINY if not s.startswith("trainer.max_epochs")]
    code = main([*shlex.split(train)[1:], *settings, "trainer.max_epochs=1"])
    assert code == 0, capsys.readouterr().err
    about = json.loads(Path("runs/own/environment.json").read_text("utf-8"))
    assert [entry["file"] for entry in about["imports"]] == ["vignette.py", "transpose.py"]
    with Image.open("runs/own/figures/views.png") as picture:
        assert picture.width > 300


def test_its_tests_pass(folder: Path) -> None:
    passed, failed = run_tests(folder / "test_augmentations.py")
    assert failed == []
    assert len(passed) == 5


@pytest.mark.parametrize(
    ("file", "right", "wrong", "test"),
    [
        ("transpose.py", "[0.0, 1.0, 0.0], [1.0", "[0.0, 1.0, 0.0], [-1.0", f"{MAP}[transpose-4]"),
        ("transpose.py", "images.mT", "images.mT.flip(-1)", f"{MAP}[transpose-4]"),
        ("vignette.py", "return images *", "return images.flip(-1) *", f"{MAP}[vignette-2]"),
        ("vignette.py", "x**2", "x", "test_the_corners_lose_what_was_drawn_and_the_centre_nothing"),
        ("vignette.py", "* u[:, 0]", "* u[:1, 0].expand(len(u))", "test_each_image_draws_its_own"),
        ("vignette.py", ", most=1", "", "test_what_is_refused_is_a_sentence"),
    ],
)
def test_its_tests_find_mistakes(file: str, right: str, wrong: str, test: str, folder: Path) -> None:
    text = PAGE.files[file]
    assert text.count(right) == 1
    (folder / file).write_text(text.replace(right, wrong), "utf-8")
    assert test in run_tests(folder / "test_augmentations.py")[1]


def test_the_mistake_that_no_message_finds_is_one(folder: Path) -> None:
    """A movement that says nothing of itself trains, and its own test finds it."""
    text = PAGE.files["transpose.py"].replace("def movement", "def moved")
    (folder / "transpose.py").write_text(text, "utf-8")
    assert run_tests(folder / "test_augmentations.py")[1] == [f"{MAP}[transpose-4]"]
