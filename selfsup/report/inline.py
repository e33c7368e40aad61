"""A figure as SVG that can stand in a page beside others, in the page's own colours and letters."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from selfsup.report.style import LIGHT

SPACE = re.compile(r"\{.*?\}")
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
FAMILY = re.compile(r"font-family: [^;]*;?\s*")
VARIABLES = {value: f"var(--{name})" for name, value in LIGHT.items()}


def inline_svg(figure: Any, key: str, label: str, words: Mapping[str, str | Sequence[str]] | None = None) -> str:
    """Return a figure as the text of an ``<svg>`` element, the same for the same figure.

    Text stays text, colours of :data:`~selfsup.report.style.LIGHT` become variables of the style sheet, and nothing in
    it touches what else is in the page: it has no style sheet of its own, and its ids begin with ``key``.

    Args:
        figure: Of matplotlib.
        key: Another one for each chart of a page.
        label: What a screen reader says of it.
        words: What is shown where the pointer is over the artist with a gid: of all of it, or of each of its markers.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314 which was just drawn
    for element in root.iter():
        element.tag = SPACE.sub("", element.tag)
        element.attrib = {SPACE.sub("", name): value for name, value in element.attrib.items()}
    _drop(root, {"metadata", "style"})
    for gid, said in (words or {}).items():
        _explain(root.find(f".//*[@id='{gid}']"), said)
    _own_names(root, key)
    for element in root.iter():
        element.text, element.tail = (_folded(text) for text in (element.text, element.tail))
        for name in ("style", "fill", "stroke"):
            if name in element.attrib:
                plain = FAMILY.sub("", element.attrib[name])
                element.attrib[name] = COLOUR.sub(lambda found: VARIABLES.get(found[0], found[0]), plain)
    view = root.attrib["viewBox"]
    root.attrib = {"class": "chart", "viewBox": view, "role": "img", "aria-label": label}
    return ElementTree.tostring(root, "unicode")


def _drop(element: ElementTree.Element, tags: set[str]) -> None:
    for child in list(element):
        if child.tag in tags:
            element.remove(child)
        else:
            _drop(child, tags)


def _explain(element: ElementTree.Element | None, said: str | Sequence[str]) -> None:
    """Give an artist a title, or each of its markers one."""
    if element is None:
        return
    targets = [element] if isinstance(said, str) else list(element.iter("use"))
    for target, text in zip(targets, [said] if isinstance(said, str) else said, strict=False):
        title = ElementTree.Element("title")
        title.text = text
        target.insert(0, title)


def _own_names(root: ElementTree.Element, key: str) -> None:
    """Keep the ids that are referred to, and make them those of this chart."""
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            found = re.fullmatch(r"#(.+)", value) if name == "href" else re.fullmatch(r"url\(#(.+)\)", value)
            if found:
                used.add(found[1])
                element.attrib[name] = value.replace(f"#{found[1]}", f"#{key}-{found[1]}")
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.attrib["id"] = f"{key}-{own}"


def _folded(text: str | None) -> str | None:
    """Return a text without the ends of lines that only indent the tags."""
    return None if text is None or not text.strip() else text
