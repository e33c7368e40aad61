"""A wheel, built and installed away from the checkout, is the whole package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from tiny import TINY

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "selfsup").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
BUILD = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
#: In one process, as each would import torch anew.
COMMANDS = """
import sys, selfsup
from selfsup.cli import main
print(selfsup.__file__)
for line in sys.argv[1:]:
    if main(line.split()):
        sys.exit(line)
"""


def run(folder: Path, *words: str) -> str:
    """Run in a folder, without what leads Python to the checkout; return what was said."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "selfsup", source / "selfsup", ignore=shutil.ignore_patterns("__pycache__"))
    run(source, sys.executable, "-c", BUILD, str(source))
    (built,) = source.glob("*.whl")
    return built


def test_every_file_of_the_package_is_in_it(wheel: Path) -> None:
    """Configurations, templates, styles and py.typed too, which setup.cfg has to name."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {path.relative_to(ROOT).as_posix() for path in FILES} <= names
    assert "selfsup/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


@pytest.mark.slow
def test_what_is_installed_trains_evaluates_and_reports(wheel: Path, tmp_path: Path) -> None:
    made = tmp_path / "venv"
    venv.create(made, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(made), "platbase": str(made)}))
    # the dependencies are those of this environment; a package of the new one comes before them
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(made / "bin" / "python"), "install"]
    run(tmp_path, *pip, "--quiet", "--no-deps", "--no-index", "--no-cache-dir", "--ignore-installed", str(wheel))
    script = str(made / "bin" / "selfsup")
    assert "Judge a checkpoint" in run(tmp_path, script, "--help")
    assert "barlow_twins" in run(tmp_path, script, "methods")
    training = " ".join(["train", "method=simclr", *TINY, "data.train_size=36", "trainer.max_epochs=1", "run_dir=run"])
    lines = [training, "evaluate run --only knn", "report run"]
    said = run(tmp_path, str(made / "bin" / "python"), "-c", COMMANDS, *lines)
    assert Path(said.splitlines()[0]).is_relative_to(packages), said.splitlines()[0]
    assert {"knn", "training"} <= {
        r["protocol"] for r in json.loads((tmp_path / "run/results.json").read_text())["results"]
    }
    assert "</html>" in (tmp_path / "run" / "report.html").read_text("utf-8")
