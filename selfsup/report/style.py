"""How charts look: colours that suit light and dark pages, and a marker and dashes for every series.

Figures are drawn in the light colours. In a page each of them becomes the variable of its name, which the page's
style sheet sets for light and for dark. No two series differ by colour alone.
"""

from __future__ import annotations

LIGHT = {
    "page": "#ffffff",
    "panel": "#f6f8fa",
    "text": "#1b1f24",
    "quiet": "#57606a",
    "line": "#d0d7de",
    "link": "#0b57d0",
    "s0": "#1f5fbf",
    "s1": "#c2410c",
    "s2": "#0f766e",
    "s3": "#9333ea",
    "s4": "#4d7c0f",
    "s5": "#be185d",
    "s6": "#806000",
    "s7": "#525252",
}
DARK = {
    "page": "#10151b",
    "panel": "#1a212a",
    "text": "#e6edf3",
    "quiet": "#a3adb8",
    "line": "#3a444f",
    "link": "#8ab8ff",
    "s0": "#7fb2ff",
    "s1": "#ffa366",
    "s2": "#4fd1c5",
    "s3": "#d0a2ff",
    "s4": "#b4d96a",
    "s5": "#ff8fb8",
    "s6": "#f2d16b",
    "s7": "#c4c4c4",
}
PAGE, TEXT, QUIET, LINE = (LIGHT[name] for name in ("page", "text", "quiet", "line"))
COLOURS = 8
MARKERS = ("o", "s", "^", "D", "v", "P", "*")
SIGNS = ("●", "■", "▲", "◆", "▼", "✚", "★")  # the same, as letters of a legend
DASHES = ("-", (0, (5, 2.5)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)), (0, (10, 3)))


def colour(style: int) -> str:
    """Return the colour of a series."""
    return LIGHT[f"s{style % COLOURS}"]


def marker(style: int) -> str:
    """Return the marker of a series: one of seven, so that colour and marker together repeat after 56 series."""
    return MARKERS[style % len(MARKERS)]


def sign(style: int) -> str:
    """Return the letter that looks like the marker of a series."""
    return SIGNS[style % len(SIGNS)]


def variables(colours: dict[str, str]) -> str:
    """Return colours as variables of a style sheet."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
