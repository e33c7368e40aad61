"""What can be named: the choices of every group, without importing what they name.

Methods and data sources stand in one file each, which registers them. What help and messages need of it, the name, the
first line of the documentation and the settings, is read from the text of the file: to import them all takes seconds.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent

#: Groups whose choices register themselves: the registry's name, and the folder with a file for each.
REGISTERED = {"method": ("methods", PACKAGE / "methods"), "data": ("sources", PACKAGE / "data" / "sources")}


@dataclass(frozen=True)
class Listed:
    """A choice as its file has it.

    Attributes:
        name: What follows ``group=``.
        summary: First line of its documentation.
        settings: Name of the dataclass of its settings.
        also: Other names that it is known by.
    """

    name: str
    summary: str
    settings: str
    also: tuple[str, ...]


def choices(group: str) -> set[str]:
    """Return the names that ``group=`` takes: those of the files, of YAML files, and what a user's file registered."""
    return _yaml_names(files("selfsup.configs") / group) | set(summaries(group))


def summaries(group: str) -> dict[str, str]:
    """Return the names that register themselves in a group, each with the first line of its documentation."""
    if group not in REGISTERED:
        return {}
    found = {name: entry.summary for name, entry in listed(group).items()}
    registry = _registry(group)
    return found if registry is None else found | {name: registry[name].summary for name in registry}


def other_names(group: str) -> dict[str, str]:
    """Return what else choices of a group are known by, to their names."""
    if group not in REGISTERED:
        return {}
    found = {other: entry.name for entry in listed(group).values() for other in entry.also}
    registry = _registry(group)
    return found if registry is None else found | registry.other_names


@cache
def listed(group: str) -> dict[str, Listed]:
    """Return what the files of a group register."""
    variable, folder = REGISTERED[group]
    return {
        entry.name: entry
        for file in sorted(folder.glob("*.py"))
        for entry in _registered(ast.parse(file.read_text("utf-8")), variable)
    }


def _registered(tree: ast.Module, variable: str) -> Iterator[Listed]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{variable}.register":
                name, settings, *_ = call.args
                also = next((ast.literal_eval(word.value) for word in call.keywords if word.arg == "also"), ())
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                yield Listed(ast.literal_eval(name), summary, ast.unparse(settings), also)


def _registry(group: str) -> Any:
    """Return the registry of a group, if anything can be in it yet."""
    module = sys.modules.get("selfsup.registry")
    return None if module is None else getattr(module, REGISTERED[group][0])


def _yaml_names(folder: Traversable, prefix: str = "") -> set[str]:
    """Return the files of a group, those in folders as ``folder/name``."""
    names: set[str] = set()
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir():
            names |= _yaml_names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            names.add(f"{prefix}{Path(entry.name).stem}")
    return names
