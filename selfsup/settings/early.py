"""Mistakes in the settings of a training, found before anything that takes seconds is imported.

The settings there are stand in dataclasses, next to code that needs torch. Here their names are read from the text of
the files. What passes here is looked at again, with types and ranges, when the configuration is composed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache

from selfsup.errors import UserError
from selfsup.registry import REGISTRIES
from selfsup.settings.catalog import GROUPS, PACKAGE, listed, name_choice
from selfsup.settings.ranges import key_of

ROOT = "TrainConfig"


def refuse_mistakes(words: Sequence[str]) -> None:
    """Refuse choices and settings of a training that there are not.

    Args:
        words: As ``load_config`` takes them, where no file of a user's own has registered anything.

    Raises:
        UserError: As ``load_config``.
    """
    if any(word.startswith("hydra.") for word in words):
        return  # its search path may hold choices of the user's own
    chosen = [name_choice(word) for word in words if _chooses(word)]
    names = dict(word.split("=", 1) for word in chosen)
    if any(names[group] not in listed(group) for group in REGISTRIES if group in names):
        return  # registered in this process, by code that is no file of the package
    # an experiment or a saved configuration may choose, too: then any choice may be meant
    open_ended = any(word.startswith(("experiment=", "resume=")) for word in words)
    sections = {
        group: {names[group]: listed(group)[names[group]].settings}
        if group in names and not open_ended
        else {name: entry.settings for name, entry in listed(group).items()}
        for group in REGISTRIES
    }
    keys = dict(settings(ROOT, {group: set(classes.values()) for group, classes in sections.items()}))
    for word in words:
        key = word.partition("=")[0]
        if "=" not in word or _chooses(word) or key.startswith(("++", "~", "hydra/")):
            continue
        if not _there(key.lstrip("+"), keys):
            from selfsup.settings.overrides import misspelt

            section = key.lstrip("+").rpartition(".")[0]
            others = {}
            if section in names and not open_ended:
                others = {n: {k for k, _ in settings(e.settings)} for n, e in listed(section).items()}
            grouped = [name for name, annotation in _fields(ROOT).items() if annotation in _files()]
            raise UserError(misspelt(key.lstrip("+"), list(keys), grouped, others))


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


def _chooses(word: str) -> bool:
    key, given, text = word.partition("=")
    return bool(given) and key in GROUPS["train"] and not text.startswith("{")


def _there(key: str, keys: dict[str, str]) -> bool:
    parts = key.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts)))
    entry = any("dict" in keys[name] or "Any" in keys[name] for name in above if name in keys)
    return key in keys or entry or any(name.startswith(f"{key}.") for name in keys)


@cache
def _files() -> dict[str, str]:
    """Return the text of the file that each dataclass of settings is in, by its name."""
    texts = (path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    return {name: text for text in texts for name in re.findall(r"^class (\w+Config)\b", text, re.MULTILINE)}


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
