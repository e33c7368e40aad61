"""What was logged while training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.report.compared import Charted, Compared, page_chart
from selfsup.report.drawing import new_figure
from selfsup.report.estimates import read_numbers
from selfsup.report.metrics import read_metrics
from selfsup.report.plots import Axis, line_figure, number_text

FIRST_PANELS = ("train/", "lr", "online/", "health/")

#: What the page shows of a training: names that the columns begin with, scale and axis. The smallest change that would
#: fill a chart is 10 points of accuracy, and 20 % of the largest loss.
QUANTITIES = {
    "loss": ("train/loss", 1.0, Axis("loss")),
    "learning rate": ("lr", 1.0, Axis("learning rate", zero=True)),
    "effective rank": ("health/rank", 1.0, Axis("effective rank (RankMe)", zero=True)),
    "online kNN accuracy": ("online/knn", 100.0, Axis("online kNN accuracy, %", least=10.0, within=(0.0, 100.0))),
}
LISTED = 50  # most points of a run that stand in the table beside a chart
CAPTIONS = {
    "loss": "Losses of different methods measure different things: compare their course, not their height.",
    "learning rate": "As the optimiser used it.",
    "effective rank": "Of the features of some held-out images; near 1 the features have collapsed.",
    "online kNN accuracy": "On some held-out images, with the run's own setting: to watch a run, not to report.",
}


@page_chart("Training", place=20)
def training_charts(runs: Compared) -> Sequence[Charted]:
    """Draw loss, learning rate, effective rank and online accuracy of every run over the step."""
    logged = [read_numbers(run.folder / "metrics.csv") for run in runs.runs]
    found = []
    for name, (column, scale, axis) in QUANTITIES.items():
        series, rows = [], []
        for place, lines in enumerate(logged):
            own = next((c for line in lines for c in line if c == column or c.startswith(f"{column}-")), column)
            points = sorted((line["step"], scale * line[own]) for line in lines if own in line and "step" in line)
            if points:
                series.append(runs.series(place, points))
                step = math.ceil(len(points) / LISTED)
                rows += [(runs.names[place], f"{x:.0f}", number_text(y)) for x, y in points[::step]]
        if not series:
            continue
        if name == "loss":
            axis = Axis(axis.title, least=0.2 * max(abs(y) for one in series for _, y in one.points))
        figure, words = line_figure(series, Axis("step", whole=True, least=2.0), axis)
        title = name[0].upper() + name[1:]
        label = f"{title} of {len(series)} runs over the step; the data follow"
        styles = frozenset(one.style for one in series)
        heads = ("run", "step", name)
        found.append(Charted(name, figure, f"{title}. {CAPTIONS[name]}", label, heads, rows, words, styles))
    return found


def training_curves(metrics_csv: str | Path) -> Any:
    """Draw every quantity of Lightning's ``metrics.csv`` over the training step, one panel each.

    Rows may have gaps: a row holds what was logged at that moment.

    Raises:
        UserError: The file is missing, or nothing was logged in it.
    """
    if not Path(metrics_csv).exists():
        raise UserError(f"'{metrics_csv}' does not exist; train first, or name the run's metrics.csv.")
    rows = read_metrics(metrics_csv).rows
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = _number(row["step"])
        for name, text in row.items():
            value = _number(text)
            if name not in ("step", "epoch") and step is not None and value is not None:
                curves.setdefault(name, []).append((step, value))
    if not curves:
        raise UserError(f"'{metrics_csv}' holds no logged values; train at least one step.")

    names = sorted(curves, key=_panel_order)
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = new_figure(4.2 * columns, 2.9 * lines)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, columns, place)
        steps, values = zip(*sorted(curves[name]), strict=True)
        axes.plot(steps, values, linewidth=1.4, marker="o" if len(steps) <= 30 else None, markersize=3.5)
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    return figure


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _panel_order(name: str) -> tuple[int, str]:
    group = next((i for i, prefix in enumerate(FIRST_PANELS) if name.startswith(prefix)), len(FIRST_PANELS))
    return group, name
