"""docs/extensions.md: its table is what is registered, its commands are taken, its example works."""

from __future__ import annotations

import re
import shlex
import sys
import types
from collections.abc import Iterator

import pytest
from page import DOCS

import selfsup.methods  # noqa: F401 - fills the registries
from selfsup.config import load_config
from selfsup.registry import fits, methods, negatives, objectives

PAGE = (DOCS / "extensions.md").read_text("utf-8")


def rows() -> Iterator[str]:
    """The table as the registries have it."""
    for registry in (objectives, negatives):
        for name in registry:
            entry = registry[name]
            if entry.over and entry.target.__module__.startswith("selfsup."):
                goes = [other for other in methods if fits(methods[other].over, entry.over)]
                own = [other for other in goes if methods[other].target.__module__.startswith("selfsup.")]
                first = "simclr" if "simclr" in own else own[0]
                command = f"selfsup train method={first} {registry.group}={name}"
                yield f"| `{name}` | {entry.summary} | {', '.join(f'`{o}`' for o in own)} | `{command}` |"


def test_the_table_is_what_is_registered() -> None:
    table = re.findall(r"^\| `.*\|$", PAGE, re.MULTILINE)
    assert table == list(rows())


@pytest.mark.parametrize("command", sorted(set(re.findall(r"selfsup train [^`\n]*", PAGE))))
def test_its_commands_are_taken(command: str) -> None:
    load_config(shlex.split(command)[2:])


def test_every_one_is_explained_beside_its_source() -> None:
    text = PAGE.partition("## Which one")[2].partition("## What is proved")[0]
    for registry in (objectives, negatives):
        for name in registry:
            entry = registry[name]
            if entry.over and entry.target.__module__.startswith("selfsup."):
                assert f"`{name}`" in text, name
    assert len(re.findall(r"arxiv.org/abs/\d{4}\.\d{5}", text)) >= 14


def test_the_example_of_one_s_own_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "_entries", dict(objectives._entries))
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Warm(" in block)
    module = types.ModuleType("warm")
    monkeypatch.setitem(sys.modules, "warm", module)
    exec(compile(code, "warm.py", "exec"), vars(module))
    assert load_config(["objective=warm", "objective.temperature=0.7"]).objective.temperature == 0.7
