"""Who may import whom, and that nothing at the root hides the standard library."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "selfsup"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
NEUTRAL = {"types", "errors", "registry", "imports", "settings", "distributed", "random", "writing"}

#: Parts of selfsup, and other packages, that a part may import. The standard library and itself always.
RULES = {
    "functional": (set(), {"torch"}),
    "nn": ({"functional"} | NEUTRAL, {"torch", "timm"}),
    "augment": ({"functional"} | NEUTRAL, {"torch", "kornia", "matplotlib"}),
    "methods": (
        {"functional", "nn", "augment", "checkpoint", "optimization"} | NEUTRAL,
        {"torch", "pytorch_lightning"},
    ),
}
IMPORT_METHODS = {"commands", "config", "diagnosis", "engine", "opened", "phases"}


def imports(module: str, source: str, is_package: bool) -> Iterator[str]:
    """Full names of what a source file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parent = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parent, *([base] if base else [])])
            # `from selfsup import nn` names the module in the alias
            yield from ([f"{base}.{alias.name}" for alias in node.names] if base == "selfsup" else [base])


def part(module: str) -> str:
    """The part of selfsup that a module belongs to: its folder, or the module at the top."""
    return module.partition(".")[2].partition(".")[0]


def imports_of(module: str) -> set[str]:
    path = FILES[module]
    return set(imports(module, path.read_text(encoding="utf-8"), path.name == "__init__.py"))


def broken(importer: str, imported: set[str]) -> set[str]:
    """The imports that the rules forbid to a module."""
    own, others = RULES[part(importer)]
    inside = {name for name in imported if name.split(".")[0] == "selfsup" and part(name) not in own | {part(importer)}}
    outside = {
        name
        for name in imported
        if name.split(".")[0] not in others | {"selfsup", "__future__"} | sys.stdlib_module_names
    }
    return inside | outside


@pytest.mark.parametrize(
    ("module", "is_package", "source", "expected"),
    [
        ("selfsup.functional.a", False, "import torch.nn.functional as F\nimport math", set()),
        ("selfsup.functional.a", False, "def f():\n    import numpy as np", {"numpy"}),
        ("selfsup.functional.a", False, "from selfsup import nn", {"selfsup.nn"}),
        ("selfsup.functional.a", False, "from ..nn.heads import projection_head", {"selfsup.nn.heads"}),
        ("selfsup.functional", True, "from .geometry import location_grid", set()),
        ("selfsup.functional", True, "from ..errors import UserError", {"selfsup.errors"}),
        ("selfsup.nn.a", False, "from selfsup.augment import View", {"selfsup.augment"}),
        ("selfsup.nn.a", False, "from .. import errors, methods", {"selfsup.methods"}),
        ("selfsup.methods.a", False, "from selfsup.eval import knn", {"selfsup.eval"}),
    ],
)
def test_the_rule_finds_what_breaks_it(module, is_package, source, expected):
    assert broken(module, set(imports(module, source, is_package))) == expected


@pytest.mark.parametrize("module", [module for module in FILES if part(module) in RULES])
def test_a_module_imports_what_its_part_may(module):
    assert broken(module, imports_of(module)) == set()


def test_every_part_with_a_rule_is_there():
    assert set(RULES) <= {part(module) for module in FILES}


def test_only_the_entry_points_import_methods():
    importers = {part(module) for module in FILES if any(part(name) == "methods" for name in imports_of(module))}
    assert importers <= IMPORT_METHODS | {"methods", ""}  # the last is the package itself, which imports by name


def test_eval_does_not_reach_methods_through_anything_it_imports():
    reached, waiting = set(), [module for module in FILES if part(module) == "eval"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting.extend(name for name in imports_of(module) if name in FILES and name != "selfsup")
    assert "selfsup.functional.diagnostics" in reached
    assert not {module for module in reached if part(module) == "methods"}


#: Rooms that hold the rules of size and of names below; the others follow.
ROOMS = ("eval", "report")
#: Functions of more than seven arguments, and why.
MANY_ARGUMENTS = {
    "extract_features": "a fixed public name, whose settings are given by keyword",
    "linear_probe": "a fixed public name, whose settings are given by keyword",
    "logistic_probe": "public, beside linear_probe, with its keywords",
    "few_shot": "public; the settings of one measurement, by keyword",
    "train_classifiers": "the solver behind linear_probe, with its settings",
}
IN_ROOMS = [module for module in FILES if part(module) in ROOMS]


def names_of(module: str) -> set[str]:
    """Full names of the modules that a module imports; ``from package import module`` names the module."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & FILES.keys()


def test_evaluation_draws_nothing_and_the_report_computes_nothing():
    reached = {module: names_of(module) for module in IN_ROOMS}
    for module, imported in reached.items():
        if part(module) == "eval":
            assert not {name for name in imported if part(name) in ("report", "methods", "engine", "commands")}, module
        else:
            known = ("", "eval", "report", *NEUTRAL, "data", "metrics")
            assert not {name for name in imported if part(name) not in known}, module


def test_no_circles():
    following = {module: names_of(module) - {module} for module in IN_ROOMS}
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for name in following.get(module, set()):
                follow(name, (*path, module))
            done.add(module)

    for module in following:
        follow(module, ())


@pytest.mark.parametrize("module", IN_ROOMS)
def test_a_module_is_short_its_functions_too_and_it_takes_no_private_names(module):
    source = FILES[module].read_text(encoding="utf-8")
    assert source.count("\n") <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("selfsup"):
            assert not [alias.name for alias in node.names if re.match(r"_(?!_)", alias.name)]
        if isinstance(node, ast.FunctionDef) and node.name not in MANY_ARGUMENTS:
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [one.arg for one in arguments if one.arg not in ("self", "cls")]
            assert len(own) <= 7, f"{node.name} has {len(own)} arguments"


def test_every_function_with_many_arguments_is_there():
    source = "\n".join(FILES[module].read_text(encoding="utf-8") for module in IN_ROOMS)
    assert [name for name in MANY_ARGUMENTS if f"def {name}(" not in source] == []


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_standard_library_is_not_hidden_at_the_root():
    done = python("import ssl, asyncio; print(ssl.create_default_context().__class__.__name__)")
    assert done.stdout.strip() == "SSLContext", done.stderr
    names = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    # `test` is a name of the standard library that nobody imports
    assert not names & (sys.stdlib_module_names - {"test"})
    assert not list(PACKAGE.rglob("ssl"))


def test_importing_the_package_does_not_import_torch():
    done = python("import selfsup, sys; print(selfsup.__version__, 'torch' in sys.modules)")
    assert done.stdout.split()[1:] == ["False"], done.stderr
