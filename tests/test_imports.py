"""Who may import whom, and that nothing at the root hides the standard library."""

import ast
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
NEUTRAL = {"types", "errors", "registry", "imports", "settings", "distributed", "random"}

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
IMPORT_METHODS = {"commands", "config", "diagnosis", "engine", "opened", "phases", "sweeps"}


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
