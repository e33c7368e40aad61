"""README.md: its first lines of Python run, and its way to install without CUDA leaves nothing out."""

from __future__ import annotations

import configparser
import re
from importlib import metadata
from pathlib import Path

import pytest
from tiny import TINY

import selfsup

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return found[0].lower().replace("_", "-")


def with_what_they_need(names: list[str]) -> set[str]:
    found: set[str] = set()
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            try:
                needs = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue  # faiss-cpu, where faiss-gpu is installed
            names += [name_of(need) for need in needs if "extra ==" not in need]
    return found


def test_the_way_without_cuda_brings_all_that_is_needed() -> None:
    lines = re.findall(r"^pip install (?!\.|--no-deps)(.*)$", README, re.MULTILINE)
    named = [word for line in lines for word in line.split() if re.fullmatch(r"[\w-]+", word) and word[0] != "-"]
    assert {"torch", "torchvision", "faiss-cpu"} <= set(named)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = {name_of(line) for line in setup["options"]["install_requires"].split("\n") if line}
    assert needed - with_what_they_need(named) == {"faiss-gpu"}


def test_the_first_lines_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = README.split("```python\n")[1].split("```")[0]
    written = 'data="fashion_mnist", trainer={"max_epochs": 20}'
    assert written in text
    names = {"TINY": TINY}
    exec(text.replace(written, 'config=TINY, trainer={"max_epochs": 1}, online={"every_epochs": 0}'), names)
    (run,) = selfsup.runs("runs")
    assert names["run"] == run
    assert {"knn", "linear_probe"} <= set(run.results["protocol"])
