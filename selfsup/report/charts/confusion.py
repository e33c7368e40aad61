"""Which classes the linear probe takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfsup.eval.record import Record
from selfsup.report.compared import Charted, Compared, page_chart
from selfsup.report.comparison import pick
from selfsup.report.drawing import Evaluated, chart, class_name, new_figure
from selfsup.report.plots import SMALL, plain
from selfsup.report.style import QUIET, TEXT, colour

NUMBERED = 20  # most classes whose cells carry their percentages
NAMED = 40  # most classes whose names can be read


@page_chart("Confusion", place=32)
def confusion_chart(runs: Compared) -> Sequence[Charted]:
    """Draw, for each run, how often each true class was taken for each class."""
    found = []
    for name, run in zip(runs.names, runs.runs, strict=True):
        record = pick([r for r in run.records if "confusion" in r.found], "linear_probe", "top1")
        if record is None:
            continue
        labels, shares = _shares(record)
        names = [class_name(label, run.classes) for label in labels]
        rows = [
            (names[row], names[column], f"{share:.1f} %")
            for row, line in enumerate(shares)
            for column, share in enumerate(line)
            if row != column and share > 0
        ]
        rows.sort(key=lambda row: -float(row[2][:-2]))
        figure = _table(shares, names)
        caption = (
            f"{name}: how many of each true class (a row) the linear probe took for each class, in percent of the row; "
            f"{record.text(1)} of the {record.split} images are on the diagonal."
        )
        label = f"Confusion of the linear probe of {name} as a table of shades; the data follow"
        found.append(Charted(f"confusion of {name}", figure, caption, label, ("true", "predicted", "share"), rows[:50]))
    return found


@chart("confusion")
def confusion_of_one(evaluated: Evaluated) -> Any:
    """Draw the confusion of one evaluation."""
    record = next((r for r in reversed(evaluated.of("linear_probe")) if "confusion" in r.found), None)
    if record is None:
        return None
    labels, shares = _shares(record)
    names = [class_name(label, evaluated.classes) for label in labels]
    figure = _table(shares, names)
    figure.suptitle(plain(f"{record['data']}, {record.split}: {record.text(1)}"), fontsize=SMALL, color=TEXT)
    return figure


def _shares(record: Record) -> tuple[list[int], list[list[float]]]:
    """Return the labels, and the percentages of each true class."""
    labels, counts = record["confusion"]["labels"], record["confusion"]["counts"]
    return labels, [[100 * count / max(1, sum(row)) for count in row] for row in counts]


def _table(shares: Sequence[Sequence[float]], names: Sequence[str]) -> Any:
    from matplotlib.colors import to_rgb

    count = len(names)
    side = min(7.0, max(3.0, 0.36 * count + 1.2))
    figure = new_figure(max(4.6, side + 0.6), side + 0.4)
    axes = figure.add_subplot()
    # one colour, more or less of it, so that the page shows through
    cells = [[(*to_rgb(colour(0)), 0.85 * share / 100) for share in line] for line in shares]
    axes.imshow(cells, aspect="auto", interpolation="none")
    if count <= NAMED:
        size = SMALL if count <= NUMBERED else 6
        written = [plain(name if len(name) <= 16 else f"{name[:15]}…") for name in names]
        axes.set_xticks(range(count), written, rotation=90 if max(map(len, written)) > 2 else 0, fontsize=size)
        axes.set_yticks(range(count), written, fontsize=size)
    if count <= NUMBERED:
        for row, line in enumerate(shares):
            for column, share in enumerate(line):
                if round(share):
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=TEXT, fontsize=8)
    axes.set_xlabel("predicted", fontsize=SMALL, color=TEXT)
    axes.set_ylabel("true", fontsize=SMALL, color=TEXT)
    axes.tick_params(color=QUIET, labelcolor=TEXT, length=2)
    for spine in axes.spines.values():
        spine.set_color(QUIET)
    return figure
