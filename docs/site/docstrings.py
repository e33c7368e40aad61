"""Docstrings of the package as mkdocstrings reads them."""

from __future__ import annotations

import re
from typing import Any

import griffe

#: An entry of a section for several names, `a, b: What they are.`, with the lines that go on with it.
_ENTRY = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)
_SECTION = re.compile(r"^(?:Args|Attributes):\n(?:(?: +.*)?\n?)*", re.MULTILINE)
_ROLE = re.compile(r":(?:func|class|meth|mod):`~?([\w.]+)`")
_MATH = re.compile(r":math:`([^`]+)`")
_EQUATION = re.compile(r"^\.\. math:: *(.*(?:\n +\S.*)*)", re.MULTILINE)


def rewrite(text: str) -> str:
    """Return a docstring with an entry for each name, links in place of roles, and formulas as Markdown has them."""
    text = _SECTION.sub(lambda section: _ENTRY.sub(_one_each, section[0]), text)
    text = _EQUATION.sub(lambda found: f"$$\n{found[1]}\n$$", text)
    return _MATH.sub(r"$\1$", _ROLE.sub(r"[`\1`][\1]", text))


def _one_each(entry: re.Match[str]) -> str:
    indent, names, what = entry.groups()
    return "\n".join(f"{indent}{name.strip()}: {what}" for name in names.split(","))


class Docstrings(griffe.Extension):
    """Rewrites the docstring of everything that is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one."""
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)
