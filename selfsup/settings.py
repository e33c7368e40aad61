"""Settings with a declared range, checked wherever a section of the configuration is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

from selfsup.errors import UserError
from selfsup.registry import nearest


class TextOrList:
    """``Annotated[Any, TextOrList]`` is the type of a setting that is text, a list of it (``[a, b]``) or none."""


@dataclass(frozen=True)
class Range:
    """What a setting may be: a number between bounds, or one of some words. A list holds such values."""

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        bounds = (("above", self.above), ("at least", self.least), ("below", self.below), ("at most", self.most))
        return " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in it; no range holds NaN."""
        if self.choices:
            return value in self.choices
        try:
            return (
                value == value
                and (self.above is None or value > self.above)
                and (self.least is None or value >= self.least)
                and (self.below is None or value < self.below)
                and (self.most is None or value <= self.most)
            )
        except TypeError:
            return False


def setting(
    default: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    choices: Collection[str] = (),
) -> Any:
    """Return a dataclass field with a default and a range: ``momentum: float = setting(0.99, least=0, most=1)``.

    Args:
        default: A list is copied for every configuration.
        above, least, below, most: Bounds of the number, or of every number of a list; ``above`` and ``below``
            exclude the bound itself. None, where the type of the field allows it, is always allowed.
        choices: The words there are.
    """
    metadata = {"range": Range(above, least, below, most, tuple(choices))}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Section:
    """Base of a section of the configuration.

    Raises:
        UserError: A value is out of its range.
    """

    #: How its keys begin.
    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check(self, self.section)


def check(config: Any, key: str = "") -> None:
    """Hold the values of a configuration, and of the sections in it, against their ranges.

    Args:
        config: A configuration, or a section of one.
        key: How the keys of the section begin, such as ``method``.

    Raises:
        UserError: A value is out of its range; the message names both.
    """
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), f"{key}.{f.name}" if key else f.name
        if dataclasses.is_dataclass(value):
            check(value, name)
        allowed = range_of(f)
        if allowed is None or value is None:
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            if not allowed.holds(item):
                what = f"{name} is {value}" if item is value else f"{name} is {value}, and {item} is out of range"
                hint = nearest(str(item), allowed.choices) if allowed.choices else ""
                raise UserError(f"{what}; it must be {allowed}.{hint if hint.startswith(' Did') else ''}")


def key_of(name: str) -> str:
    """Return what a field of a section is called as a setting: where that is a word of Python, the field ends in _."""
    return name.removesuffix("_")


def range_of(f: dataclasses.Field[Any]) -> Range | None:
    """Return the range of a dataclass field, whose ``str`` describes it; None where any value of its type will do."""
    found: Range | None = f.metadata.get("range")
    return found
