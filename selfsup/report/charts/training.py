"""What was logged while training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.metrics import read_metrics
from selfsup.report.drawing import new_figure

FIRST_PANELS = ("train/", "lr", "online/", "health/")


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
