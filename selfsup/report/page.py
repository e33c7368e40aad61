"""The page of runs: one HTML file with everything in it, that opens from disk and asks no network."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

import selfsup.report.charts  # noqa: F401 - fills PAGE_CHARTS
from selfsup import __version__
from selfsup.report.compared import PAGE_CHARTS, Charted, Compared, compared
from selfsup.report.comparison import Table
from selfsup.report.downloads import downloads
from selfsup.report.estimates import Group
from selfsup.report.inline import inline_svg
from selfsup.report.mapping import map_data
from selfsup.report.results import protocols, results_grid, settings_rows, shared, written
from selfsup.report.style import COLOURS, DARK, LIGHT, sign, variables
from selfsup.writing import replace_text

TEMPLATES = Environment(loader=PackageLoader("selfsup.report", "."), autoescape=True)
ACCURACY_NOTE = (
    "The range of a single run is the binomial 95 % interval (Wilson) for the number of scored images: what other test "
    "images of the same kind would change, not other seeds. Runs that differ in nothing but the seed are one row, "
    "their mean ± the standard deviation over the seeds. The mean IoU of a single run has no such interval."
)
PROTOCOL_NOTE = "What every results.json says; the values of whole curves and grids are left to that file."
#: Pictures of the folder ``figures`` that the page shows: heading and caption.
PICTURES = {
    "neighbours": ("Nearest neighbours", "Queries at the left, the nearest training images at their right."),
    "feature_map": ("Maps of the features", "t-SNE of the scored images; distances between groups mean little."),
    "segmentation": ("Segmentation", "Scored images, their true masks, and those of the linear probe."),
}
SCRIPTS = ("page.js", "map.js")
Section = tuple[str, str, Markup]  # key, heading, body


def write_report(table: Table, path: str | Path) -> Path:
    """Write the page of a comparison, or of one run: table, charts, pictures and the protocol of every number.

    Args:
        table: Of :func:`~selfsup.report.compare`, with its runs.
        path: The page.
    """
    path = Path(path)
    links = [_link(run.folder, path.parent) for run in table.runs]
    replace_text(path, page_text(table, links))
    return path


def page_text(table: Table, links: Sequence[str], *, home: str = "", refresh: int = 0) -> str:
    """Return the page of a comparison.

    Nothing on it comes from elsewhere; text from the runs' files is escaped, and the page's security policy allows its
    one script alone. What a run lacks is left out of the section and, where it is surprising, said in the notes.

    Args:
        table: As for :func:`write_report`.
        links: Where the folder of each run is.
        home: Where the list of runs is, or nothing.
        refresh: Seconds after which the page is to be read again; 0 is never.
    """
    runs = compared(table)
    return render(
        "page.html",
        title=_title(runs),
        summary=_summary(runs),
        sections=_sections(runs, links),
        home=home,
        refresh=refresh,
    )


def render(template: str, **values: Any) -> str:
    """Return a page with style sheet, script and the policy that allows this script alone."""
    script = "".join(files("selfsup.report").joinpath(name).read_text("utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return TEMPLATES.get_template(template).render(
        version=__version__,
        light=Markup(variables(LIGHT)),  # noqa: S704 constants of the package
        dark=Markup(variables(DARK)),  # noqa: S704 constants of the package
        colours=range(COLOURS),
        script=Markup(script),  # noqa: S704 files of the package
        script_hash=f"sha256-{digest}",
        **values,
    )


def _title(runs: Compared) -> str:
    count = len(runs.names)
    if count == 1:
        return f"Results of {runs.names[0]}"
    configurations = f" of {len(runs.groups)} configurations" if len(runs.groups) < count else ""
    return f"Comparison of {count} runs{configurations}"


def _summary(runs: Compared) -> str:
    said = ", ".join(f"{column} {written(column, value)}" for column, value in shared(runs).items())
    same = "" if not said else f"The same for all: {said}. " if len(runs.names) > 1 else f"It is {said}. "
    return f"{same}Accuracies are those of frozen features. Every number leads to the protocol it was measured by."


def _sections(runs: Compared, links: Sequence[str]) -> list[Section]:
    """Return every section that has something to show."""
    charts = []
    for key, listed in sorted(PAGE_CHARTS.items(), key=lambda item: item[1].place):
        drawn = listed.draw(runs)
        if drawn:
            shown = [_figure(runs, chart, f"{key}-{number}") for number, chart in enumerate(drawn)]
            charts.append((key, listed.title, _part("charts", shown)))
    atlas = map_data(runs)
    pictures = [(key, title, _pictures(runs, key)) for key, (title, _) in PICTURES.items()]
    tables = [(f"protocols-{place}", *own) for place, own in enumerate(protocols(runs))]
    settings = settings_rows(runs)
    # first, and made last, as the charts add to the notes
    found = [
        ("results", "Results", _results(runs, links)),
        ("settings", "Settings that differ", _part("settings", ["setting", *runs.names], settings) if settings else ""),
        *charts,
        ("map", "Explore the features", _part("map", *atlas) if atlas else ""),
        *pictures,
        ("protocols", "Protocols", _part("protocols", PROTOCOL_NOTE, tables) if tables else ""),
    ]
    return [(key, title, Markup(body)) for key, title, body in found if body]  # noqa: S704 templates escape what they take


def _results(runs: Compared, links: Sequence[str]) -> str:
    grids = [results_grid(runs, runs.groups, links)]
    if len(runs.groups) < len(runs.names):
        single = [Group(name, (place,), runs.styles[place]) for place, name in enumerate(runs.names)]
        grids.append(results_grid(runs, single, links))
    note = ACCURACY_NOTE if any(run.used for run in runs.runs) else ""
    tables = [(name, words, _base64(text.encode())) for name, words, text in downloads(runs)]
    return _part("results", runs.notes, grids, note, tables)


def _figure(runs: Compared, chart: Charted, key: str) -> Markup:
    legend = [(g.style % COLOURS, sign(g.style), g.label) for g in runs.groups if g.style in chart.styles]
    drawing = Markup(inline_svg(chart.figure, key, chart.label, chart.words))  # noqa: S704 the tree is escaped when it is written
    return Markup(_part("figure", chart.caption, legend, drawing, chart.name, chart.heads, chart.rows))  # noqa: S704 the template escapes it


def _pictures(runs: Compared, key: str) -> str:
    title, caption = PICTURES[key]
    shown = []
    for name, run in zip(runs.names, runs.runs, strict=True):
        path = run.folder / "figures" / f"{key}.png"
        content = path.read_bytes() if path.is_file() else b""
        size = _png_size(content)
        if size is not None:
            shown.append((name, f"{title} of {name}", size, _base64(content)))
        elif content:
            runs.notes.append(f"{name}: figures/{key}.png is not a PNG picture and is left out")
    return _part("pictures", caption, shown) if shown else ""


def _part(macro: str, *arguments: Any) -> str:
    """Return a piece of the page; see ``parts.html``."""
    return str(getattr(TEMPLATES.get_template("parts.html").module, macro)(*arguments))


def _link(folder: Path, page: Path) -> str:
    """Return a link from the folder of the page to another folder."""
    return quote(Path(os.path.relpath(folder, page)).as_posix()) + "/"


def _png_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG picture, or None when it is none."""
    if len(content) < 24 or not content.startswith(b"\x89PNG\r\n\x1a\n") or content[12:16] != b"IHDR":
        return None
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
