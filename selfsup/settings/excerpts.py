"""Dataclasses of settings, without what the code beside them imports.

Settings stand next to code that needs torch, which takes seconds to import. A help text needs the dataclass alone: of
its file just the statements are executed that the dataclass needs, and of the files that these import from the same.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from selfsup.settings.catalog import PACKAGE, listed

#: The dataclasses of ``selfsup.config``.
_CONFIGURATIONS = {"train": "TrainConfig", "evaluate": "EvaluateConfig"}


def configuration(kind: str) -> type[Any]:
    """Return the dataclass of a whole configuration, as an excerpt.

    Args:
        kind: As of ``load_config``.
    """
    # the settings of the protocols, without walking them
    vars(_part("selfsup.eval.config"))["protocol_settings"] = _protocol_settings
    found: type[Any] = excerpt("selfsup.config", _CONFIGURATIONS[kind])
    return found


def _protocol_settings() -> dict[str, type[Any]]:
    return {entry.key: excerpt(entry.module, entry.settings) for entry in listed("protocol").values() if entry.settings}


#: Statements that are executed, or are being so: what is met again while its own needs are met is a circle.
_begun: set[tuple[str, str]] = set()


def excerpt(module: str, name: str) -> Any:
    """Return what a module of this package binds to a name; the module itself is not imported.

    Args:
        module: Its full name; one that is imported already is asked itself.
        name: Of a class, a function, a constant, or something that it imports.

    Raises:
        ImportError: There is no such name.
    """
    if module in sys.modules and hasattr(sys.modules[module], name):
        return getattr(sys.modules[module], name)
    part = _part(module)
    if name not in vars(part):
        statement = _statements(module).get(name)
        if statement is None:
            raise ImportError(f"{module} binds no {name}.")
        if isinstance(statement, ast.ImportFrom | ast.Import):
            setattr(part, name, _imported(statement, name))
        else:
            _begun.add((module, name))
            for needed in _needed(statement):
                # functions that call each other find each other in the module when they are called
                if needed in _statements(module) and (module, needed) not in _begun:
                    setattr(part, needed, excerpt(module, needed))
            code = compile(
                ast.Module([statement], []), str(_file(module)), "exec", __future__.annotations.compiler_flag, True
            )
            exec(code, vars(part))  # noqa: S102 statements of the package's own files
    return getattr(part, name)


def _imported(statement: ast.ImportFrom | ast.Import, name: str) -> Any:
    alias = next(alias for alias in statement.names if (alias.asname or alias.name.partition(".")[0]) == name)
    if isinstance(statement, ast.Import):
        return import_module(alias.name if alias.asname else name)
    module = str(statement.module)
    if module.partition(".")[0] == PACKAGE.name and alias.name in _statements(module):
        return excerpt(module, alias.name)
    return getattr(import_module(module), alias.name)


def _needed(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement reads; annotations of functions are text and are not evaluated.

    Of the methods of a class only those count that making one of it calls: others are of the work, not of the settings.
    """
    nodes: list[ast.AST] = [statement]
    if isinstance(statement, ast.ClassDef):
        methods = {part.name: part for part in statement.body if isinstance(part, ast.FunctionDef)}
        called = [part for name, part in methods.items() if name.startswith("__")]
        for part in called:
            read = {node.attr for node in ast.walk(part) if isinstance(node, ast.Attribute)}
            called += [methods[name] for name in read & methods.keys() if methods[name] not in called]
        own = [part for part in statement.body if part not in methods.values()]
        nodes = [*statement.bases, *statement.keywords, *statement.decorator_list, *own, *called]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Name) and not hasattr(builtins, node.id):
            yield node.id
        if isinstance(node, ast.FunctionDef):
            nodes += [*node.body, *node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
        elif not isinstance(node, ast.ImportFrom | ast.Import):
            nodes += ast.iter_child_nodes(node)


@cache
def _part(module: str) -> ModuleType:
    """Return an empty module, for what is executed of a file; dataclasses look their names up in it."""
    part = ModuleType(f"{__name__}:{module}")
    sys.modules[part.__name__] = part
    return part


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _statements(module: str) -> dict[str, ast.stmt]:
    """Return the statements at the top of a file, by the names that they bind."""
    found: dict[str, ast.stmt] = {}
    tree = ast.parse(_file(module).read_text("utf-8"))
    blocks = [statement.body for statement in tree.body if isinstance(statement, ast.If)]  # TYPE_CHECKING's
    for statement in [*tree.body, *(inner for block in blocks for inner in block)]:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name.partition(".")[0]: statement for alias in statement.names}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found |= {
                node.id: statement for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)
            }
    return found
