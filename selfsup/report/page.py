"""The page of a comparison: one HTML file with everything in it, that opens from disk and asks no network."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from selfsup import __version__
from selfsup.eval.record import Record
from selfsup.report.comparison import MISSING, Run, Table, pick
from selfsup.report.estimates import (
    Estimate,
    Group,
    accuracy_over_time,
    estimate,
    is_number,
    read_numbers,
    seed_groups,
)
from selfsup.report.svg import Bar, Series, bar_chart, line_chart, number_text, swatch

TEMPLATES = Environment(loader=PackageLoader("selfsup.report", "."), autoescape=True)
SHARED = ("method", "backbone", "data", "epochs", "split", "images seen")  # said once when all runs agree
#: Protocols of the columns that are no accuracies.
OTHERS = {"RankMe": "diagnostics", "seconds": "training", "memory MB": "training", "images seen": "training"}
TEXT = ("run", "method", "backbone", "data", "seed", "split")
ACCURACY_NOTE = (
    "The range of a single run is the binomial 95 % interval (Wilson) for the number of scored images: what other test "
    "images of the same kind would change, not other seeds. Runs that differ in nothing but the seed are one row, "
    "their mean ± the standard deviation over the seeds. The mean IoU of a single run has no such interval."
)
PICTURES = {
    "neighbours": ("Nearest neighbours", "Queries at the left, the nearest training images at their right."),
    "feature_map": ("Maps of the features", "t-SNE of the scored images; distances between groups mean little."),
    "segmentation": ("Segmentation", "Scored images, their true masks, and those of the linear probe."),
}


def write_report(table: Table, path: str | Path) -> Path:
    """Write the page of a comparison: table, charts, pictures and the protocol of every number.

    Nothing on it comes from elsewhere; text from the runs' files is escaped, and the page's security policy allows its
    one script alone. What a run lacks is left out of the section and, where it is surprising, said in the notes.

    Args:
        table: Of :func:`~selfsup.report.compare`, with its runs.
        path: The page.
    """
    page = _Page(table)
    script = files("selfsup.report").joinpath("page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = TEMPLATES.get_template("page.html").render(
        title=page.title,
        summary=page.summary,
        version=__version__,
        sections=[(key, title, Markup(body)) for key, title, body in page.sections()],
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


class _Page:
    """Everything that is shown of a table; the methods return pieces of HTML."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.names = [str(row["run"]) for row in table.rows]
        self.groups = seed_groups(table)
        self.group_of = {place: group for group in self.groups for place in group.places}
        self.notes = list(table.notes)
        rows = table.rows
        self.shared = {
            column: rows[0][column]
            for column in SHARED
            if column in table.columns and rows[0][column] is not None and len({str(r[column]) for r in rows}) == 1
        }
        count = f"{len(rows)} run" + "s" * (len(rows) != 1)
        if len(self.groups) < len(rows):
            count += f" of {len(self.groups)} configurations"
        self.title = f"Comparison of {count}" if len(rows) > 1 else f"Results of {self.names[0]}"
        said = ", ".join(f"{column} {self._plain(column, value)}" for column, value in self.shared.items())
        self.summary = (
            f"The same for all: {said}. " if said else ""
        ) + "Accuracies are those of frozen features. Every number leads to the protocol it was measured by."

    def sections(self) -> list[tuple[str, str, str]]:
        """Return key, title and body of every section that has something to show."""
        charts = [
            ("time", "Accuracy over wall time", self._time()),
            ("geometry", "Alignment and uniformity", self._geometry()),
            ("spectrum", "Singular values", self._spectrum()),
            ("layers", "Accuracy by layer", self._layers()),
            ("invariance", "Invariance", self._invariance()),
            *((key, title, self._pictures(key, caption)) for key, (title, caption) in PICTURES.items()),
        ]
        # last, as the charts add to the notes
        found = [("results", "Results", self._results()), *charts, ("protocols", "Protocols", self._protocols())]
        return [section for section in found if section[2]]

    def _results(self) -> str:
        grouped = len(self.groups) < len(self.names)
        parts = []
        if self.notes:
            listed = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
            parts.append(f'<div class="notes" role="note"><ul>{listed}</ul></div>')
        parts.append(self._table("Configurations" if grouped else "Runs", self.groups))
        if grouped:
            single = [Group(name, (place,), self.group_of[place].style) for place, name in enumerate(self.names)]
            parts.append(f"<details><summary>Every run</summary>{self._table('Runs', single)}</details>")
        parts.append(f'<p class="quiet">{ACCURACY_NOTE}</p>' if self._has_accuracies() else "")
        parts.append(self._accuracies())
        downloads = (
            ("comparison.csv", "the runs", self.table.csv()),
            ("uncertainty.csv", "accuracies with uncertainty", self._uncertainty_csv()),
            ("records.csv", "every number with its protocol", self._records_csv()),
            ("curves.csv", "accuracy over wall time", self._curves_csv()),
        )
        links = "".join(
            f'<li><a download="{name}" href="data:text/csv;charset=utf-8;base64,{_base64(text.encode())}">{name}</a>'
            f' <span class="quiet">{words}</span></li>'
            for name, words, text in downloads
        )
        parts.append(f'<div class="downloads"><h3>Download</h3><ul>{links}</ul></div>')
        return "".join(parts)

    def _table(self, caption: str, groups: Sequence[Group]) -> str:
        columns = [column for column in self.table.columns[1:] if column not in self.shared]
        heads = "".join(f'<th scope="col"{_numeric(column)}>{escape(_head(column))}</th>' for column in columns)
        lines = []
        for group in groups:
            cells = "".join(self._cell(group, column) for column in columns)
            lines.append(f'<tr><th scope="row">{escape(group.label)}</th>{cells}</tr>')
        head = f'<th scope="col">name</th>{heads}'
        table = f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        return _part("scrolled", caption, Markup(f'<table class="sortable">{table}</table>'))

    def _cell(self, group: Group, column: str) -> str:
        if column in TEXT:
            values = dict.fromkeys(self._plain(column, self.table.rows[place][column]) for place in group.places)
            return f"<td>{escape(', '.join(values))}</td>"
        found = estimate(self.table, group.places, column)
        if found is None:
            return f'<td class="number" data-value="">{MISSING}</td>'
        accuracy = column in self.table.accuracies
        text = f"{100 * found.value:.1f} %" if accuracy else self._plain(column, found.value)
        key = next(filter(None, (self._key(place, column) for place in group.places)), None)
        if key is not None:
            text = f'<a href="#{key}">{text}</a>'
        if accuracy:
            text += f" <small>{_range(found)}</small>"
        elif found.kind and found.low != found.high:
            text += f" <small>± {self._plain(column, found.value - (found.low or 0.0))}</small>"
        return f'<td class="number" data-value="{found.value!r}">{text}</td>'

    def _key(self, place: int, column: str) -> str | None:
        """Return where the protocol of a number is told, None where the run has no such number."""
        run = self.table.runs[place]
        used = run.used.get(column)
        protocol = str(used["protocol"]) if used is not None else OTHERS.get(column, "")
        return f"run{place}-{_slug(protocol)}" if any(r["protocol"] == protocol for r in run.records) else None

    def _plain(self, column: str, value: Any) -> str:
        if value is None:
            return MISSING
        if column in TEXT or not is_number(value):
            return str(value)
        return f"{value:,.1f}" if column in ("RankMe", "seconds") else f"{value:,.0f}"

    def _has_accuracies(self) -> bool:
        return any(run.used for run in self.table.runs)

    def _accuracies(self) -> str:
        groups = []
        rows = []
        for column in self.table.accuracies:
            bars = []
            for group in self.groups:
                found = estimate(self.table, group.places, column)
                if found is not None:
                    text = f"{100 * found.value:.1f} %"
                    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
                    bars.append(Bar(group.label, group.style, 100 * found.value, text, low, high))
                    rows.append((column, group.label, text, _range(found), found.kind or MISSING))
            if bars:
                groups.append((column, bars))
        if not groups:
            return ""
        chart = bar_chart(groups, "Accuracies of the configurations as bars", "accuracy or mean IoU, %", 100.0)
        return self._figure(chart, "The accuracies of the table; whiskers are its ranges.", "accuracies",
                            ("measure", "configuration", "value", "range", "kind"), rows, lines=False)  # fmt: skip

    def _time(self) -> str:
        curves = [accuracy_over_time(run) for run in self.table.runs]
        for name, run, curve in zip(self.names, self.table.runs, curves, strict=True):
            watched = any("online/knn" in row for row in read_numbers(run.folder / "metrics.csv"))
            if watched and not curve:
                self.notes.append(f"{name} is not in the accuracy over wall time: it was trained without times.csv")
        series, rows = [], []
        for place, curve in enumerate(curves):
            points = [(seconds, 100 * accuracy) for _, seconds, accuracy in curve]
            series.append(self._series(place, points, [f"step {step}" for step, _, _ in curve]))
            rows += [
                (self.names[place], step, f"{seconds:.1f}", f"{100 * value:.1f} %") for step, seconds, value in curve
            ]
        return self._lines(
            series,
            "Online kNN accuracy over the seconds of training, on some held-out images and with the run's own setting "
            "(online.k, online.bank): to watch a run, not to report. Seconds depend on the machine; see each run's "
            "environment.json.",
            "time",
            ("seconds of training", "online kNN accuracy, %"),
            ("run", "step", "seconds", "accuracy"),
            rows,
        )

    def _geometry(self) -> str:
        series, rows = [], []
        for place, run in enumerate(self.table.runs):
            alignment = pick(run.records, "invariance", "alignment")
            uniformity = pick(run.records, "diagnostics", "uniformity")
            if alignment is None or uniformity is None:
                continue
            point = (alignment["value"], uniformity["value"])
            if all(map(is_number, point)):
                series.append(self._series(place, [point]))
                rows.append((self.names[place], *map(number_text, point)))
        return self._lines(
            series,
            "Alignment is the mean squared distance of two views of one image, uniformity the logarithm of the mean "
            "Gaussian potential of all pairs, both of L2-normalised features (Wang and Isola, arXiv:2005.10242). Lower "
            "is better in both; the best features are at the lower left.",
            "alignment and uniformity",
            ("alignment (lower: views of an image are closer)", "uniformity (lower: spread more evenly)"),
            ("run", "alignment", "uniformity"),
            rows,
            join=False,
        )

    def _spectrum(self) -> str:
        series, rows = [], []
        for place, run in enumerate(self.table.runs):
            record = pick(run.records, "diagnostics", "rank_me")
            spectrum = (None if record is None else record.get("spectrum")) or {}
            pairs = list(zip(spectrum.get("rank", ()), spectrum.get("value", ()), strict=False))
            points = [(float(r), float(v)) for r, v in pairs if is_number(r) and is_number(v) and r > 0 and v > 0]
            series.append(self._series(place, points))
            rows += [(self.names[place], f"{rank:.0f}", number_text(value)) for rank, value in points]
        return self._lines(
            series,
            "Singular values of the training features as fractions of the largest, over their rank. A curve that drops "
            "early has few directions in use (dimensional collapse, arXiv:2110.09348).",
            "singular values",
            ("rank", "singular value / largest"),
            ("run", "rank", "value"),
            rows,
            log=True,
        )

    def _layers(self) -> str:
        series, rows, names = [], [], []
        splits = set()
        for place, run in enumerate(self.table.runs):
            own = _by_place(run, "layers", "top1", "layer").values()
            found = [r for r in own if is_number(r["value"]) and is_number(r.get("depth"))]
            found.sort(key=lambda record: float(record["depth"]))
            splits |= {str(record["split"]) for record in found}
            notes = [str(record["layer"]) for record in found]
            names.append(notes)
            series.append(self._series(place, [(r["depth"], 100 * r["value"]) for r in found], notes))
            rows += [(self.names[place], r["layer"], f"{100 * r['value']:.1f} %") for r in found]
        longest = max(names, key=len, default=[])
        alike = all(own == longest[: len(own)] for own in names) and len(longest) <= 16
        return self._lines(
            series,
            f"kNN accuracy ({', '.join(sorted(splits))} images) after every stage of the network and, where it is "
            "known, every layer of the head: a fall shows where information is lost.",
            "layers",
            ("" if alike else "layer, counted from the first", "kNN accuracy, %"),
            ("run", "layer", "accuracy"),
            rows,
            x_names=longest if alike else None,
        )

    def _invariance(self) -> str:
        meanings = {
            "invariance": "1: the operation moves no feature; 0: it moves them as far apart as other images are.",
            "equivariance": "1: the operation moves all features by one rotation; 0: each in its own way.",
        }
        return "".join(self._operations(metric, meaning) for metric, meaning in meanings.items())

    def _operations(self, metric: str, meaning: str) -> str:
        values: dict[tuple[str, int], float] = {}
        for place, run in enumerate(self.table.runs):
            for operation, record in _by_place(run, "invariance", metric, "operation").items():
                if is_number(record["value"]):
                    values[operation, place] = float(record["value"])
        groups = []
        for operation in dict.fromkeys(operation for operation, _ in values):
            bars = []
            for group in self.groups:
                found = [values[operation, place] for place in group.places if (operation, place) in values]
                if found:
                    mean, spread = statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None
                    ends = (None, None) if spread is None else (mean - spread, mean + spread)
                    bars.append(Bar(group.label, group.style, mean, f"{mean:.2f}", *ends))
            groups.append((operation, bars))
        if not groups:
            return ""
        rows = [(self.names[place], operation, f"{value:.3f}") for (operation, place), value in values.items()]
        chart = bar_chart(groups, f"{metric.capitalize()} of the features to each augmentation", metric, 1.0)
        caption = f"{metric.capitalize()} to one augmentation at a time. {meaning}"
        if any(bar.low is not None for _, bars in groups for bar in bars):
            caption += " Whiskers are the standard deviation over seeds."
        shown = {bar.style for _, bars in groups for bar in bars}
        return self._figure(chart, caption, metric, ("run", "operation", metric), rows, lines=False, styles=shown)

    def _pictures(self, key: str, caption: str) -> str:
        shown = []
        for name, run in zip(self.names, self.table.runs, strict=True):
            path = run.folder / "figures" / f"{key}.png"
            content = path.read_bytes() if path.is_file() else b""
            size = _png_size(content)
            if size is not None:
                shown.append((name, f"{PICTURES[key][0]} of {name}", size, _base64(content)))
            elif content:
                self.notes.append(f"{name}: figures/{key}.png is no PNG picture and is left out")
        return _part("pictures", caption, shown) if shown else ""

    def _protocols(self) -> str:
        parts = []
        for place, (name, run) in enumerate(zip(self.names, self.table.runs, strict=True)):
            if not run.records:
                continue
            parts.append(f"<h3>{escape(name)}</h3>")
            for protocol in dict.fromkeys(str(record["protocol"]) for record in run.records):
                own = [record for record in run.records if record["protocol"] == protocol]
                parts.append(_protocol(f"run{place}-{_slug(protocol)}", protocol, own))
        if not parts:
            return ""
        intro = "What every results.json says; the values of whole curves and grids are left to that file."
        return f'<p class="quiet">{intro}</p>{"".join(parts)}'

    def _series(self, place: int, points: Sequence[tuple[float, float]], notes: Sequence[str] = ()) -> Series:
        return Series(self.names[place], self.group_of[place].style, points, notes)

    def _lines(
        self,
        series: Sequence[Series],
        caption: str,
        name: str,
        axes: tuple[str, str],
        heads: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        log: bool = False,
        join: bool = True,
        x_names: Sequence[str] | None = None,
    ) -> str:
        drawn = [one for one in series if one.points]
        if not drawn:
            return ""
        label = f"Chart of {name}: {axes[1]} over {axes[0] or 'layers'}, {len(drawn)} runs; the data follow"
        chart = line_chart(drawn, label, *axes, log=log, lines=join, x_names=x_names)
        return self._figure(chart, caption, name, heads, rows, lines=join, styles={one.style for one in drawn})

    def _figure(
        self,
        chart: str,
        caption: str,
        name: str,
        heads: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        lines: bool,
        styles: set[int] | None = None,
    ) -> str:
        legend = [
            (Markup(swatch(group.style, line=lines)), group.label)
            for group in self.groups
            if styles is None or group.style in styles
        ]
        return _part("figure", caption, legend, Markup(chart), name, heads, rows)

    def _uncertainty_csv(self) -> str:
        rows = []
        for group in self.groups:
            for column in self.table.accuracies:
                found = estimate(self.table, group.places, column)
                if found is not None:
                    runs = " ".join(self.names[place] for place in group.places)
                    rows.append((group.label, runs, column, found.value, found.low, found.high, found.kind))
        return _csv(("configuration", "runs", "measure", "value", "low", "high", "kind"), rows)

    def _records_csv(self) -> str:
        main = ("protocol", "split", "metric", "value")
        rows = []
        for name, run in zip(self.names, self.table.runs, strict=True):
            for record in run.records:
                told = _told(record)
                rest = {key: value for key, value in told.items() if key not in main}
                rows.append((name, *(told[key] for key in main), json.dumps(rest, ensure_ascii=False)))
        return _csv(("run", *main, "details"), rows)

    def _curves_csv(self) -> str:
        rows = []
        for name, run in zip(self.names, self.table.runs, strict=True):
            rows += [(name, *point) for point in accuracy_over_time(run)]
        return _csv(("run", "step", "seconds", "online/knn"), rows)


def _protocol(key: str, protocol: str, records: Sequence[Record]) -> str:
    """Return what records of one protocol have in common, and a table of what they differ in and found."""
    flat = [_told(record) for record in records]
    names = [name for name in dict.fromkeys(n for r in flat for n in r) if name != "protocol"]
    always = ("split", "metric", "value")
    common = [n for n in names if n not in always and len({json.dumps(r.get(n, "")) for r in flat}) == 1]
    differing = [*always, *(name for name in names if name not in always and name not in common)]
    terms = [(name, _detail(flat[0].get(name))) for name in common]
    rows = [[_detail(record[name]) if name in record else MISSING for name in differing] for record in flat]
    return _part("protocol", key, protocol, len(records), terms, differing, rows)


def _part(macro: str, *arguments: Any) -> str:
    """Return a piece of the page; see ``parts.html``."""
    return str(getattr(TEMPLATES.get_template("parts.html").module, macro)(*arguments))


def _told(record: Record) -> dict[str, Any]:
    """Return what the page says of a record: all of it but what was found and holds lists, such as curves."""

    def holds_lists(value: Any) -> bool:
        inside = value.values() if isinstance(value, dict) else ()
        return isinstance(value, list) or any(isinstance(part, dict | list) for part in inside)

    left = {name for name, value in record.found.items() if holds_lists(value)}
    return {name: value for name, value in record.flat().items() if name not in left}


def _by_place(run: Run, protocol: str, metric: str, key: str) -> dict[str, Record]:
    """Return the record to report of every layer or operation, in the order they were measured in."""
    places: dict[str, list[Record]] = {}
    for record in run.records:
        if key in record:
            places.setdefault(str(record[key]), []).append(record)
    found = {place: pick(records, protocol, metric) for place, records in places.items()}
    return {place: record for place, record in found.items() if record is not None}


def _detail(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_detail(part)}" for name, part in value.items()) or MISSING
    if isinstance(value, list):
        return ", ".join(_detail(part) for part in value) or MISSING
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _range(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return ""
    if found.kind == "std over seeds":
        return f"± {100 * (found.high - found.value):.1f}"
    return f"({100 * found.low:.1f} to {100 * found.high:.1f})"


def _csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(heads)
    writer.writerows(rows)
    return file.getvalue()


def _png_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG picture, or None when it is none."""
    if len(content) < 24 or not content.startswith(b"\x89PNG\r\n\x1a\n") or content[12:16] != b"IHDR":
        return None
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _numeric(column: str) -> str:
    return "" if column in TEXT else ' class="number"'


def _head(column: str) -> str:
    return {"seconds": "training, s", "memory MB": "memory, MB"}.get(column, column)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", text.lower())
