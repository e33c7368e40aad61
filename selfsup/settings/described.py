"""The settings of a configuration with what they mean: each one's sentence stands in its dataclass's docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from selfsup.settings.ranges import key_of, range_of

#: ``name: what it means`` among the attributes of a docstring, or ``name, other: what they mean``.
_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)", re.DOTALL)


def settings(config: Any, key: str = "", nested: bool = True) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and meaning of every setting of a configuration; the meaning is "" where nothing says it.

    Args:
        config: A configuration, or a section of one.
        key: How the keys of the section begin, such as ``method``.
        nested: Go into the sections of it.
    """
    said = sentences(type(config))
    for field in dataclasses.fields(config):
        name = key_of(field.name)
        value, full = getattr(config, field.name), f"{key}.{name}" if key else name
        if dataclasses.is_dataclass(value):
            yield from settings(value, full) if nested else ()
        else:
            allowed = range_of(type(config), field.name)
            sentence = said.get(field.name, "")
            yield full, value, sentence if allowed is None else f"{sentence} Allowed: {allowed}.".strip()


def sentences(config: type[Any]) -> dict[str, str]:
    """Return what the docstrings of a dataclass, and of those that it builds on, say of each of its settings."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        _, _, listed = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        attributes = re.match(r"(?: .*\n?|\n)*", listed)  # up to the next line that is not indented
        entries = textwrap.dedent(attributes.group() if attributes else "")
        for entry in re.split(r"\n(?=\S)", entries):  # what an entry goes on with is indented
            if fitting := _ENTRY.fullmatch(entry.strip()):
                found |= dict.fromkeys(fitting.group(1).split(", "), " ".join(fitting.group(2).split()))
    return found
