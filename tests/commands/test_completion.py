"""How a command line may go on, and the scripts that ask it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfsup.cli import main
from selfsup.commands.completion import BASH, completions

FOLDERS = ["my pictures/", "runs/", "runs/one", "runs/two"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs, and one of images."""
    for name in ("runs/one", "runs/two", "my pictures"):
        (tmp_path / name).mkdir(parents=True)
    for run in ("one", "two"):
        (tmp_path / "runs" / run / "config.yaml").touch()
    (tmp_path / ".hidden").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("selfsup tra", ["train", "trajectory", "transfer"]),
        ("selfsup help kn", ["knn"]),
        ("selfsup train method=moco", ["method=moco", "method=moco_v1", "method=moco_v3"]),
        ("selfsup train method=moco method.que", ["method.queue_size="]),
        ("selfsup train method=simclr method.que", []),
        ("selfsup train trai", ["trainer.", "trainer="]),
        ("selfsup train trainer.progress=", ["trainer.progress=false", "trainer.progress=true"]),
        ("selfsup train optimizer.scaling=s", ["optimizer.scaling=sqrt"]),
        ("selfsup train data=image_folder data.root=", [f"data.root={at}" for at in FOLDERS]),
        ("selfsup train 'data.root=my p", ["data.root=my pictures/"]),
        ("selfsup train resume=runs/t", ["resume=runs/two"]),
        ("selfsup train method=distill method.teacher=runs/t", ["method.teacher=runs/two"]),
        ("selfsup knn runs/", ["runs/one", "runs/two"]),
        ("selfsup knn r", ["run_dir=", "runs/"]),
        ("selfsup compare runs/one ", FOLDERS),
        ("selfsup knn eval.kn", ["eval.knn."]),
        ("selfsup knn eval.knn.t", ["eval.knn.temperatures="]),
        ("selfsup evaluate runs/one --on", ["--only"]),
        ("selfsup evaluate --only knn,linear_p", ["knn,linear_probe"]),
        ("selfsup evaluate --only=rid", ["--only=ridge"]),
        ("selfsup methods barlow", ["barlow_twins"]),
        ("selfsup data image_", ["image_folder"]),
        ("selfsup completion ", ["bash", "fish", "zsh"]),
        ("selfsup nothing ", []),
    ],
)
def test_a_line_goes_on(line: str, expected: list[str], folder: Path) -> None:
    assert completions(line) == expected


def test_bash_asks_it(folder: Path) -> None:
    (folder / "selfsup").write_text(f'#!/bin/sh\nexec {sys.executable} -m selfsup.cli "$@"\n')
    (folder / "selfsup").chmod(0o755)
    asked = {
        "./selfsup train method=barl": ["barlow_twins"],  # bash splits at = and replaces the last part
        "./selfsup train data.root=my": ["my\\ pictures/"],
        "./selfsup evaluate --only knn,linear_p": ["knn,linear_probe"],
    }
    for line, expected in asked.items():
        script = f'{BASH}COMP_LINE="$1" COMP_POINT=${{#1}}\n_selfsup ./selfsup\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", script, "bash", line], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_installed(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert main(["completion", shell, "--install"]) == 0
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert f"saved: {file}" in capsys.readouterr().out
    assert file.read_text("utf-8") == script
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(file)], check=True)


def test_another_shell_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "Did you mean 'bash'" in capsys.readouterr().err
    monkeypatch.setitem(os.environ, "SHELL", "/bin/csh")
    assert main(["completion"]) == 2
    assert "Name one shell" in capsys.readouterr().err
