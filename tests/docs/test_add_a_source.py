"""docs/add_a_source.md does what it says: its files are written out and its commands run."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from page import DOCS, Page, run_tests
from tiny import TINY

import selfsup.data.sources as walked
from selfsup import imports
from selfsup.cli import main
from selfsup.data.membership import read_membership
from selfsup.eval import read_results
from selfsup.registry import import_files, sources
from selfsup.settings import catalog

PAGE = Page("add_a_source.md")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, in a folder outside the package, and a process that does not know them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(imports, "_executed", {})
    monkeypatch.setattr(sources, "_entries", dict(sources._entries))
    PAGE.write(tmp_path)
    yield tmp_path
    PAGE.forget()


def test_train_and_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, explain, train, knn, test = PAGE.commands
    assert (make, test) == ("python write_scans.py", "PYTHONPATH=. pytest test_npz.py")
    runpy.run_path("write_scans.py")

    def run(command: str, *settings: str) -> str:
        """Run a line of the page, with settings that make it short, and return what it printed."""
        code = main([*shlex.split(command)[1:], *settings])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    assert "data.test_fraction=0.2\n      Chance of each image to be set aside for testing." in run(explain)
    settings = [s for s in TINY if not s.startswith(("data.", "trainer.max_epochs", "batch_size"))]
    out = run(train, *settings, "trainer.max_epochs=1")
    said = re.search(r"```\n(data: .*?)```", (DOCS / "add_a_source.md").read_text("utf-8"), re.DOTALL)
    assert said is not None
    assert said[1] in out
    about = json.loads(Path("runs/scans/environment.json").read_text("utf-8"))
    assert about["data"]["classes"] == list("0123456789")
    assert about["membership"]["rule"] == "image"
    assert [entry["file"] for entry in about["imports"]] == ["npz.py"]
    membership = read_membership(Path("runs/scans"))
    assert membership is not None
    assert len(membership.keys) == 1797
    assert not membership.keyless
    assert "knn" in run(knn, "eval.knn.k=[3]", "eval.figures=false")

    with np.load("scans.npz") as archive:
        before = dict(archive)
    new = {name: values[:300] for name, values in before.items()} | {"names": [f"new-{n}" for n in range(300)]}
    np.savez("scans.npz", **{name: np.concatenate([new[name], values]) for name, values in before.items()})
    with pytest.warns(
        UserWarning, match="0 of the 1,310 .* 300 images are new; 0 of the .* test images were trained on"
    ):
        run(knn, "eval.knn.k=[3]", "eval.figures=false")
    first, second = (record for record in read_results("runs/scans") if record["protocol"] == "knn")
    assert (first["k"], first["split"], first["data"], first["test_images"]) == (3, "test", "npz", 348)
    assert 348 < second["test_images"] < 348 + 300


def test_its_tests_pass(folder: Path) -> None:
    passed, failed = run_tests(folder / "test_npz.py")
    assert failed == []
    assert len(passed) == 3


@pytest.mark.parametrize(
    ("right", "wrong", "test"),
    [
        (", keys=keys[rows]", "", "test_other_images_move_none"),
        ("keys=keys[rows]", "keys=keys[: len(rows)]", "test_image_label_and_key_stay_together"),
        ("numbers[rows]", "numbers[: len(rows)]", "test_image_label_and_key_stay_together"),
        ("name_keys(names)", "torch.arange(len(names))", "test_other_images_move_none"),
        ("not path.is_file()", "path.is_file() is None", "test_what_cannot_be_read_is_named"),
    ],
)
def test_its_tests_find_mistakes(right: str, wrong: str, test: str, folder: Path) -> None:
    text = PAGE.files["npz.py"]
    assert text.count(right) == 1
    (folder / "npz.py").write_text(text.replace(right, wrong), "utf-8")
    assert test in run_tests(folder / "test_npz.py")[1]


def test_in_the_package_it_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = folder / "selfsup" / "data" / "sources"
    there.mkdir(parents=True)
    (there / "npz.py").write_text(PAGE.files["npz.py"], "utf-8")
    monkeypatch.setattr(catalog, "PACKAGE", folder / "selfsup")
    monkeypatch.setitem(catalog.REGISTERED, "data", ("sources.register", there))
    monkeypatch.setattr(walked, "__path__", [*walked.__path__, str(there)])
    catalog.listed.cache_clear()
    try:
        (listed,) = catalog.listed("data").values()
        assert (listed.name, listed.settings) == ("npz", "NpzConfig")
        assert listed.summary == "A NumPy archive of grey images, names and labels: set data.root to the file."
        import_files(walked.__name__, walked.__path__)
        assert sources["npz"].target.__module__ == "selfsup.data.sources.npz"
    finally:
        catalog.listed.cache_clear()
        sys.modules.pop("selfsup.data.sources.npz", None)
