"""Packages that import what they offer when it is first asked for: to import all of it takes seconds."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def offered(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package, to be called in its ``__init__.py``.

    What it offers, and where that is from, stands there once: in imports below ``if TYPE_CHECKING:``. No submodule may
    have the name of something that is offered, as importing it would hide that.

    Args:
        package: Its name, ``__name__`` there.
    """
    module = sys.modules[package]
    tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
    places = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        place, own = places[name], f"{package}.{name}"
        # a subpackage that is called like what it offers stands for that itself
        found = import_module(own) if place in (package, own) else getattr(import_module(place), name)
        setattr(module, name, found)
        return found

    return get, lambda: sorted({*places, "__version__"} & {*places, *vars(module)})
