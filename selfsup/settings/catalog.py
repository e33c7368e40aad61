"""What can be named: the choices of every group, without importing what they name.

Methods and data sources stand in one file each, which registers them. What help and messages need of it, the name, the
first line of the documentation and the settings, is read from the text of the file: to import them all takes seconds.
"""

from __future__ import annotations

import ast
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from selfsup.errors import UserError
from selfsup.imports import hint
from selfsup.registry import REGISTRIES, find, nearest

PACKAGE = Path(__file__).parents[1]

#: Groups of choices, each a folder of ``configs``, registered, or both; by what they configure.
GROUPS = {
    "train": ("experiment", "method", "objective", "negatives", "data", "backbone", "augment", "optimizer", "trainer"),
    "evaluate": ("data", "backbone"),
}

#: What registers itself: how its decorator is called, and the folder with a file for each.
REGISTERED = {
    "method": ("methods.register", PACKAGE / "methods"),
    "data": ("sources.register", PACKAGE / "data" / "sources"),
    "objective": ("objectives.register", PACKAGE / "objectives"),
    "negatives": ("negatives.register", PACKAGE / "negatives"),
    "protocol": ("protocol", PACKAGE / "eval" / "protocols"),
    "format": ("export_format", PACKAGE / "exporting" / "formats"),
}

#: What people write in place of a choice, and what it means.
_FURTHER = {
    **{f"data={name}": "data=image_folder data.root=DIR" for name in ("imagenet", "imagenette", "folder", "images")},
    **{f"trainer={name}": f"trainer.accelerator={name}" for name in ("cpu", "gpu")},
    "trainer=cuda": "trainer.accelerator=gpu",
    **{f"trainer={name}": f"trainer.strategy={name}" for name in ("ddp", "fsdp")},
}


@dataclass(frozen=True)
class Listed:
    """A choice as its file has it.

    Attributes:
        name: What follows ``group=``.
        summary: First line of its documentation.
        settings: Name of the dataclass of its settings, "" where it has none.
        also: Other names that it is known by.
        key: Of a protocol, where its settings are below ``eval``; else the name.
        module: Where it and the dataclass are.
        text: The documentation of its file; of a protocol that of its function.
        choices: Those of other groups that come with it.
        over: Over what it contrasts, see :func:`selfsup.registry.fits`.
    """

    name: str
    summary: str
    settings: str
    also: tuple[str, ...]
    key: str
    module: str
    text: str
    choices: dict[str, str]
    over: tuple[str, ...]


def choices(group: str) -> set[str]:
    """Return the names that ``group=`` takes: those of the files, of YAML files, and what a user's file registered."""
    return _yaml_names(files("selfsup.configs") / group) | set(summaries(group))


def summaries(group: str) -> dict[str, str]:
    """Return the names that register themselves in a group, each with the first line of its documentation."""
    if group not in REGISTERED:
        return {}
    found = {name: entry.summary for name, entry in listed(group).items()}
    registry = REGISTRIES.get(group)
    return found if registry is None else found | {name: registry[name].summary for name in registry}


def other_names(group: str) -> dict[str, str]:
    """Return what else choices of a group are known by, to their names."""
    if group not in REGISTRIES:
        return {}
    found = {other: entry.name for entry in listed(group).values() for other in entry.also}
    return found | REGISTRIES[group].other_names


def name_choice(word: str, *, refuse: bool = True) -> str:
    """Write ``group=name`` with the name that the choice is called by: ``method=SimCLR`` becomes ``method=simclr``.

    Args:
        word: The override; experiments may be a list.
        refuse: Raise where there is no such choice.

    Raises:
        UserError: There is none, and the nearest is named; or the name fits two.
    """
    group, _, text = word.partition("=")
    words, listed = [text], text.startswith("[")
    if listed:
        from selfsup.settings.values import split

        words = split(text[1:-1])
    names = [find(name, choices(group), other_names(group)) for name in words]
    for name in names:
        if refuse and name not in choices(group):
            meant = written(group, name)
            near = f" Did you mean '{meant}'?" if meant else nearest(name, choices(group))
            raise UserError(f"There is no {group}={name}.{hint() or near}")
    return f"{group}=[{','.join(names)}]" if listed else f"{group}={names[0]}"


def written(group: str, name: str) -> str | None:
    """Return how that is written which ``group=name`` means where it is not a choice: a network of timm's, a folder."""
    if group in ("backbone", "optimizer"):
        import timm.optim  # takes two seconds

        known = timm.is_model(name) if group == "backbone" else name in timm.optim.list_optimizers()
        return f"{group}.name={name}" if known else None
    if group == "data" and ("/" in name or os.path.isdir(name)):
        return shlex.join(["data=image_folder", f"data.root={name}"])
    return _FURTHER.get(f"{group}={name.lower()}")


def is_choice(word: str, kind: str) -> bool:
    """Whether an override chooses a file of a group, or is one of Hydra's own, and does not set a value."""
    key, given, text = word.partition("=")
    chooses = bool(given) and key in GROUPS[kind] and not text.startswith("{")
    return chooses or key.startswith(("hydra.", "hydra/"))


@cache
def listed(group: str) -> dict[str, Listed]:
    """Return what the files of a group register."""
    decorator, folder = REGISTERED[group]
    found = {entry.name: entry for file in folder.glob("*.py") for entry in _registered(file, decorator)}
    return dict(sorted(found.items()))


def _registered(file: Path, decorator: str) -> Iterator[Listed]:
    tree = ast.parse(file.read_text("utf-8"))
    module = ".".join((PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts))
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator:
                named, *settings = call.args
                name = ast.literal_eval(named)
                given = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
                own = ast.get_docstring(node) or ""
                text = own if decorator == "protocol" else ast.get_docstring(tree) or ""
                also, over = given.pop("also", ()), given.pop("over", ())
                comes = {} if decorator == "protocol" else given
                summary = own.partition("\n")[0]
                settings_name = "".join(map(ast.unparse, settings))
                yield Listed(name, summary, settings_name, also, given.get("key", name), module, text, comes, over)


def _yaml_names(folder: Traversable, prefix: str = "") -> set[str]:
    """Return the files of a group, those in folders as ``folder/name``."""
    names: set[str] = set()
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir():
            names |= _yaml_names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            names.add(f"{prefix}{Path(entry.name).stem}")
    return names
