"""Settings with a declared range, checked wherever a section of the configuration is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from selfsup.errors import UserError
from selfsup.registry import nearest


class TextOrList:
    """``Annotated[Any, TextOrList]`` is the type of a setting that is text, a list of it (``[a, b]``) or none."""


class OneOrTwo:
    """Marks a whole number, or two of them as a list: see ``Sides``."""


#: The type of a setting that is the side of squares, or height and width of rectangles (``[128, 256]``).
Sides = Annotated[Any, OneOrTwo]


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
        """Whether a value lies in it; no range of numbers holds one that is not finite."""
        if self.choices:
            return value in self.choices
        try:
            return (
                math.isfinite(value)
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
        value, name = getattr(config, f.name), f"{key}.{key_of(f.name)}" if key else f.name
        if dataclasses.is_dataclass(value):
            check(value, name)
        allowed = range_of(type(config), f.name)
        if allowed is None or value is None:
            continue
        several = isinstance(value, list | tuple)
        for item in _flat(value):
            if allowed.holds(item):
                continue
            infinite = isinstance(item, float) and not math.isfinite(item)
            hint = nearest(str(item), allowed.choices) if allowed.choices else ""
            raise UserError(
                f"{name} is {value!r}; {'each of them' if several else 'it'} must be {allowed}"
                f"{' and finite' if infinite else ''}.{hint if hint.startswith(' Did') else ''}"
            )


def _flat(value: Any) -> list[Any]:
    """Return the values in a list, those in the lists in it among them; of a single one itself."""
    return [inner for item in value for inner in _flat(item)] if isinstance(value, list | tuple) else [value]


def key_of(name: str) -> str:
    """Return what a field of a section is called as a setting: where that is a word of Python, the field ends in _."""
    return name.removesuffix("_")


def range_of(section: type[Any], name: str) -> Range | None:
    """Return the range of a setting, whose ``str`` describes it; None where any value of its type will do.

    A class that gives a setting another default keeps the range that the class above it declares.
    """
    for cls in section.__mro__:
        found = getattr(cls, "__dataclass_fields__", {}).get(name)
        if found is not None and "range" in found.metadata:
            allowed: Range = found.metadata["range"]
            return allowed
    return None
