"""Who may import whom, and that nothing at the root hides the standard library."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "selfsup"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
NEUTRAL = {"types", "errors", "registry", "imports", "settings", "distributed", "random", "tables", "writing"}
NEUTRAL |= {"bars", "offered", "ragged", "shortage", "unit_range", "wording"}

#: Parts of selfsup, and other packages, that a part may import. The standard library and itself always.
RULES = {
    "functional": (set(), {"torch"}),
    "nn": ({"functional"} | NEUTRAL, {"torch", "timm"}),
    "augment": ({"functional"} | NEUTRAL, {"torch", "kornia", "matplotlib"}),
    "methods": (
        {"functional", "nn", "augment", "objectives", "negatives", "checkpoint", "optimization", "first_layer"}
        | NEUTRAL,
        {"torch", "pytorch_lightning"},
    ),
    "objectives": ({"functional", "nn", "augment"} | NEUTRAL, {"torch"}),
    "negatives": ({"functional", "nn", "augment", "objectives"} | NEUTRAL, {"torch"}),
    "settings": ({"errors", "imports", "registry"}, {"hydra", "omegaconf", "timm", "yaml"}),
}
IMPORT_METHODS = {"commands", "config", "doctor", "engine", "opened"}


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
            yield from (full if (full := f"{base}.{alias.name}") in FILES else base for alias in node.names)


def part(module: str) -> str:
    """The part of selfsup that a module belongs to: its folder, or the module at the top."""
    return module.partition(".")[2].partition(".")[0]


@cache
def imports_of(module: str) -> set[str]:
    path = FILES[module]
    return set(imports(module, path.read_text(encoding="utf-8"), path.name == "__init__.py"))


def modules_of(module: str) -> set[str]:
    """The modules of selfsup that a module imports; the package itself imports its parts by name, when asked."""
    return imports_of(module) & FILES.keys() - {module, "selfsup"}


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
            waiting.extend(modules_of(module))
    assert "selfsup.functional.diagnostics" in reached
    assert not {module for module in reached if part(module) == "methods"}


#: Functions of more than seven arguments, and why.
MANY_ARGUMENTS = {
    "extract_features": "a fixed public name, whose settings are given by keyword",
    "linear_probe": "a fixed public name, whose settings are given by keyword",
    "logistic_probe": "public, beside linear_probe, with its keywords",
    "few_shot": "public; the settings of one measurement, by keyword",
    "train_classifiers": "the solver behind linear_probe, with its settings",
    "parts_of": "public: what a method takes that is built from a network, SimCLR(network, seed=1), by keyword",
    "whitening_mse": "a fixed public name; the randomness and the process group of a loss are arguments",
}


def test_evaluation_draws_nothing_and_the_report_computes_nothing():
    for module in FILES:
        imported = modules_of(module)
        if part(module) == "eval":
            assert not {name for name in imported if part(name) in ("report", "methods", "engine", "commands")}, module
        if part(module) == "report":
            known = ("eval", "report", *NEUTRAL, "data")
            assert not {name for name in imported if part(name) not in known}, module


def test_no_circles():
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for name in modules_of(module):
                follow(name, (*path, module))
            done.add(module)

    for module in FILES:
        if module != "selfsup":
            follow(module, ())


def private_names(module: str, tree: ast.AST) -> Iterator[str]:
    """Names with an underscore that a module takes from another one of selfsup, at an import or behind a dot."""
    taken: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            own = [name for name in imports(module, ast.unparse(node), False) if name.split(".")[0] == "selfsup"]
            taken |= {alias.asname or alias.name for alias in node.names if own}
    for name in taken:
        if any(one.startswith("_") and not one.endswith("__") for one in name.split(".")):
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            whole = ast.unparse(node.value)
            if whole in taken:
                yield f"{whole}.{node.attr}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from selfsup.engine.training import train", []),
        ("from selfsup import __version__", []),
        ("from torch import _dynamo", []),
        ("from selfsup.engine.training import _prepare", ["_prepare"]),
        ("def f():\n    from selfsup.engine import training\n    training._prepare()", ["training._prepare"]),
        ("import selfsup.engine.training as t\nt._prepare()", ["t._prepare"]),
        ("import selfsup.run\nselfsup.run._short(1)", ["selfsup.run._short"]),
        ("from selfsup.run import Run\nRun._json", ["Run._json"]),
    ],
)
def test_private_names_are_found(source, expected):
    assert list(private_names("selfsup.a", ast.parse(source))) == expected


@pytest.mark.parametrize("module", FILES)
def test_a_module_is_short_its_functions_too_and_it_takes_no_private_names(module):
    source = FILES[module].read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert list(private_names(module, tree)) == []
    assert source.count("\n") <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in MANY_ARGUMENTS:
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [one.arg for one in arguments if one.arg not in ("self", "cls")]
            assert len(own) <= 7, f"{node.name} has {len(own)} arguments"


def test_every_exception_is_needed():
    source = "\n".join(path.read_text(encoding="utf-8") for path in FILES.values())
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


@pytest.mark.parametrize("package", [name for name, path in FILES.items() if path.name == "__init__.py"])
def test_no_name_that_a_package_offers_is_that_of_a_module_in_it(package):
    """Importing the module would put it in the place of what is offered."""
    offered = set(getattr(import_module(package), "__all__", []))
    inside = {name.rpartition(".")[2] for name in FILES if name.rpartition(".")[0] == package}
    rooms = {name.partition(".")[2] for name, path in FILES.items() if path.name == "__init__.py"}
    assert offered & inside <= (rooms if package == "selfsup" else set())  # a room stands for itself
