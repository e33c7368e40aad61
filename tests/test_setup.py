"""``setup.cfg`` declares what the package imports, and nothing else."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
TREES = [ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "selfsup").rglob("*.py"))]
PROVIDED = packages_distributions()
#: What other libraries load by name (Lightning's loggers, Hydra's launcher), or people run.
NOT_IMPORTED = {"tensorboard", "wandb", "slurm", "notebooks", "docs", "dev"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(text: str) -> set[str]:
    """The distributions that a list of requirements names for this machine."""
    requirements = [Requirement(line) for line in text.strip().splitlines()]
    return {plain(one.name) for one in requirements if one.marker is None or one.marker.evaluate()}


def distributions(module: str) -> set[str]:
    return {plain(name) for name in PROVIDED.get(module.partition(".")[0], [module])}


def imported() -> Iterator[str]:
    """The modules of other packages that import statements name, at the top or inside functions."""
    for node in (node for tree in TREES for node in ast.walk(tree)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.partition(".")[0] not in {"selfsup", *sys.stdlib_module_names})


def test_what_is_imported_is_required_and_nothing_else():
    required = declared(SETUP["options"]["install_requires"])
    used = {module: distributions(module) for module in imported()}
    assert {module: found for module, found in used.items() if not found & required} == {}
    assert required - set().union(*used.values()) == set()


def test_what_an_extra_brings_is_in_it_and_nothing_else():
    # what is imported where it is there, and said to be missing where a file needs it
    brought = {"heif": {"pillow-heif"}, "tiff": {"tifffile", "imagecodecs"}, "dicom": {"pydicom"}}
    for node in (node for tree in TREES for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "packages":
            _, extra, *names = (ast.literal_eval(argument) for argument in node.args)
            brought.setdefault(extra, set()).update(*map(distributions, names))
    extras = {name: declared(text) for name, text in SETUP["options.extras_require"].items()}
    assert {name: found for name, found in extras.items() if name not in NOT_IMPORTED} == brought


def test_the_extra_of_developers_has_what_the_others_bring():
    extras = SETUP["options.extras_require"]
    of_features = set().union(*(declared(text) for name, text in extras.items() if name not in ("dev", "notebooks")))
    assert of_features - declared(extras["dev"]) <= {"wandb"}  # which no test logs in to


def test_no_two_files_of_tests_have_one_name() -> None:
    """Pytest imports them by their name alone."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
