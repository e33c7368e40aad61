"""A file of one's own: on every command, kept in the run, found again, and never run because a folder is opened."""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import shutil
import sys
from pathlib import Path

import pytest
from tiny import TINY

from selfsup import commands, imports
from selfsup.cli import main
from selfsup.eval import read_results

MINE = '''
"""A source, a network, an augmentation and a method."""
from dataclasses import dataclass
from pathlib import Path

from kornia.augmentation import RandomHorizontalFlip
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet

from selfsup.data.sources.shapes import ShapesConfig, shapes
from selfsup.methods.simclr import SimCLR, SimCLRConfig
from selfsup.registry import methods, sources

with Path("ran").open("a") as file:
    file.write("once\\n")


@dataclass
class OwnImagesConfig(ShapesConfig):
    name: str = "own_images"


@sources.register("own_images", OwnImagesConfig)
def own_images(config):
    """Images of one's own."""
    return shapes(config)


@register_model
def own_network(pretrained=False, **more):
    more.pop("pretrained_cfg", None), more.pop("pretrained_cfg_overlay", None), more.pop("cache_dir", None)
    return ResNet(BasicBlock, (1, 1, 1, 1), channels=(4, 8, 16, 32), **more)


class OwnFlip(RandomHorizontalFlip):
    pass


@dataclass
class OwnMethodConfig(SimCLRConfig):
    name: str = "own_method"


@methods.register("own_method", OwnMethodConfig, augment="simclr")
class OwnMethod(SimCLR):
    """A method of one's own."""
'''

OWN = ["method=own_method", "data=own_images", "backbone.name=own_network", "augment.extra=[{name: OwnFlip}]"]


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one that has not imported the file."""
    from timm.models import _registry

    from selfsup.registry import methods, sources

    monkeypatch.setattr(imports, "_executed", {})
    monkeypatch.setattr(imports, "_wanted", {})
    sys.modules.pop("mine", None)
    methods._entries.pop("own_method", None)
    sources._entries.pop("own_images", None)
    _registry._model_entrypoints.pop("own_network", None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was made with a file of one's own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        forget(patch)  # other tests of this process have imported files, too
        settings = [word for word in TINY if not word.startswith(("backbone", "trainer.max_epochs"))]
        assert main(["train", "--import", "mine.py", *OWN, *settings, "trainer.max_epochs=1", "run_dir=r"]) == 0
        forget(patch)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in a process that does not know the file."""
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / "ran").unlink()
    monkeypatch.chdir(tmp_path / "copy")
    forget(monkeypatch)
    return tmp_path / "copy"


KNN = ["knn", "r", "eval.knn.k=[3]"]


def test_a_run_keeps_it(folder: Path, made: Path) -> None:
    assert (folder / "r" / "imports" / "mine.py").read_text() == MINE
    (entry,) = json.loads((folder / "r" / "environment.json").read_text())["imports"]
    digest = hashlib.sha256(MINE.encode()).hexdigest()
    assert entry == {"file": "mine.py", "path": str(made / "mine.py"), "sha256": digest}


def test_a_run_that_goes_on_with_another_version_keeps_that_one(folder: Path) -> None:
    changed = MINE.replace(
        "class OwnFlip(RandomHorizontalFlip):\n    pass", "class OwnFlip(RandomHorizontalFlip):\n    own = 1"
    )
    assert changed != MINE
    (folder / "mine.py").write_text(changed)
    assert main(["train", "--import", "mine.py", "resume=r", "trainer.max_epochs=2"]) == 0
    assert (folder / "r" / "imports" / "mine.py").read_text() == changed
    about = json.loads((folder / "r" / "environment.json").read_text())
    digest = hashlib.sha256(changed.encode()).hexdigest()
    assert about["imports"] == [{"file": "mine.py", "path": str(folder / "mine.py"), "sha256": digest}]
    assert about["versions"]


@pytest.mark.parametrize(
    "words",
    [
        KNN,
        ["train", "resume=r", "trainer.max_epochs=2"],
        ["export", "r", "--format", "torchscript", "--out", "n.pt"],
        ["train", "--config", "r/config.yaml", "run_dir=again"],
    ],
    ids=["evaluate", "resume", "export", "config"],
)
def test_what_this_user_has_imported_before_is_found_again(words: list[str], folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('another file by now')")
    with pytest.warns(UserWarning, match="mine.py is imported, as"):
        assert main(words) == 0
    assert (folder / "ran").read_text() == "once\n"


def test_a_run_of_somebody_else_runs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    copy = folder / "r" / "imports" / "mine.py"
    for words in (
        KNN,
        ["train", "resume=r", "trainer.max_epochs=2"],
        ["export", "r", "--format", "onnx", "--out", "n"],
    ):
        assert main(words) == 2
        assert f"--import {copy.relative_to(folder)}" in capsys.readouterr().err
    assert not (folder / "ran").exists()
    assert main([*KNN, "--import", str(copy)]) == 0
    assert {record["protocol"] for record in read_results("r")} >= {"knn"}
    forget(monkeypatch)
    with pytest.warns(UserWarning, match="is imported, as"):
        assert main(KNN) == 0  # having been told once


def test_a_file_that_was_changed_is_not_the_one_that_was_imported(folder: Path) -> None:
    for file in (folder / "r" / "imports" / "mine.py", folder / "mine.py"):
        file.write_text(MINE + "\n")
    entries = json.loads((folder / "r" / "environment.json").read_text())
    entries["imports"][0]["path"] = str(folder / "mine.py")
    (folder / "r" / "environment.json").write_text(json.dumps(entries))
    assert main(KNN) == 2
    entries["imports"][0]["sha256"] = hashlib.sha256((MINE + "\n").encode()).hexdigest()
    (folder / "r" / "environment.json").write_text(json.dumps(entries))
    assert main(KNN) == 2
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("command", [module.name for module in pkgutil.iter_modules(commands.__path__)])
def test_every_command_takes_it(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken_file.py").write_text("import math\n\nmath.nothing()\n")
    assert main([command, "--import", str(tmp_path / "broken_file.py")]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / 'broken_file.py'}, line 3: AttributeError" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("half.py", "x = (1,\n", "half.py, line 1: SyntaxError"),
        ("taken.py", "\nfrom selfsup.registry import methods\nmethods.register('moco', object)(print)\n", "line 3"),
        ("json.py", "", "would hide the module json"),
        ("exits.py", "import sys\nsys.exit(3)\n", "exits.py, line 2: SystemExit: 3"),
        ("notes.txt", "", "not a Python file"),
    ],
)
def test_what_cannot_be_imported(
    name: str, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import selfsup.methods  # noqa: F401 - so that moco is taken

    (tmp_path / name).write_text(text)
    assert main(["methods", "--import", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_a_pipe_in_the_place_of_the_environment_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "environment.json")
    assert imports.recorded(tmp_path) == []
