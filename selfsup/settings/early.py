"""Mistakes in settings, found before anything that takes seconds is imported.

The settings there are stand in dataclasses, next to code that needs torch. Here their names are read from the text of
the files. What passes here is looked at again, with types and ranges, when the configuration is composed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from selfsup.errors import UserError
from selfsup.registry import REGISTRIES
from selfsup.settings.catalog import PACKAGE, is_choice, listed, name_choice
from selfsup.settings.meanings import Known, misspelt, of_section
from selfsup.settings.moved import MOVED
from selfsup.settings.ranges import key_of

_ROOTS = {"train": "TrainConfig", "evaluate": "EvaluateConfig"}


def refuse_mistakes(words: Sequence[str], kind: str = "train") -> None:
    """Refuse choices and settings that there are not.

    Args:
        words: As ``load_config`` takes them, where no file of a user's own has registered anything.
        kind: As of ``load_config``.

    Raises:
        UserError: As ``load_config``.
    """
    if any(word.startswith("hydra.") for word in words):
        return  # its search path may hold choices of the user's own
    choices = [word for word in words if is_choice(word, kind) and not word.startswith("hydra/")]
    names: dict[str, str] = {}
    for group, _, text in (word.partition("=") for word in choices):
        for name in text.split(",") if kind == "evaluate" else [text]:  # a transfer takes several sources
            names[group] = name_choice(f"{group}={name}").partition("=")[2]
    if any(names[group] not in listed(group) for group in REGISTRIES if group in names):
        return  # registered in this process, by code outside the package
    if any(word.startswith(("experiment=", "resume=")) for word in words):
        names = {}  # an experiment or a saved configuration may choose, too: then any choice may be meant
    saved = kind == "evaluate" or any(word.startswith("resume=") for word in words)
    there = known(kind, names)
    for word in words:
        key, given, text = word.partition("=")
        name = key.lstrip("+")
        if not given or word in choices or key.startswith(("++", "~", "hydra/")):
            continue
        section = name.partition(".")[0]
        if name in MOVED or (saved and section in REGISTRIES.keys() & set(there.sections) - names.keys()):
            continue  # the run's own method or source may be one of the user's
        if not there.holds(name):
            raise UserError(misspelt(name, text, there))
        if name in there.sections and not text.startswith("{"):
            raise UserError(of_section(name, text, there))


def known(kind: str = "train", names: Mapping[str, str] | None = None) -> Known:
    """Return the settings that there are.

    Args:
        kind: As of ``load_config``.
        names: What is chosen of ``REGISTRIES``; where it is not known, the settings of every choice count.
    """
    chosen = {group: name for group, name in (names or {}).items() if group in REGISTRIES}
    sections = {
        group: {entry.settings for name, entry in listed(group).items() if chosen.get(group, name) == name}
        for group in REGISTRIES
    }
    keys = dict(settings(_ROOTS[kind], sections))
    if kind == "evaluate":
        for entry in listed("protocol").values():
            keys |= dict(settings(entry.settings, key=f"eval.{entry.key}")) if entry.settings else {}
    others = {
        group: {name: {key for key, _ in settings(entry.settings)} for name, entry in listed(group).items()}
        for group in chosen
    }
    grouped = [name for name, annotation in _fields(_ROOTS[kind]).items() if annotation in _files()]
    return Known(kind, keys, grouped, others)


def settings(name: str, sections: dict[str, set[str]] | None = None, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield key and type of the settings of a dataclass, those of its sections included.

    Args:
        name: The dataclass's.
        sections: Keys of sections with choices, and the dataclasses of these, in place of the one that is named.
        key: How the keys of the dataclass begin.
    """
    for field, annotation in _fields(name).items():
        full = f"{key}.{field}" if key else field
        if annotation in _files():
            for section in sorted((sections or {}).get(full, {annotation})):
                yield from settings(section, sections, full)
        else:
            yield full, annotation


@cache
def _files() -> dict[str, str]:
    """Return the text of the file that each dataclass of settings is in, by its name."""
    texts = (path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    return {
        name: text for text in texts for name in re.findall(r"^class (\w+(?:Config|Settings))\b", text, re.MULTILINE)
    }


@cache
def _fields(name: str) -> dict[str, str]:
    """Return the fields of a dataclass and what it builds on, each with its type as it is written."""
    tree = ast.parse(_files()[name])
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found: dict[str, str] = {}
    for base in node.bases:
        if (above := ast.unparse(base)) in _files():
            found |= _fields(above)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and not ast.unparse(statement.annotation).startswith("ClassVar"):
            found[key_of(ast.unparse(statement.target))] = ast.unparse(statement.annotation)
    return found
