"""What checkpoints can be chosen by, over the epochs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfsup.eval.choosing import by_epoch, choices
from selfsup.report.compared import Charted, Compared, alone, page_chart
from selfsup.report.drawing import Evaluated, chart, new_figure
from selfsup.report.plots import HEIGHT, WIDTH, Axis, Series, draw_lines

#: Measures and their axes.
PANELS = {
    "top1": Axis("kNN accuracy, %", least=5.0, within=(0.0, 100.0)),
    "rank_me": Axis("RankMe", within=(0.0, float("inf"))),
    "lidar": Axis("LiDAR", within=(0.0, float("inf"))),
    "alpha_req": Axis("α-ReQ"),
}


@page_chart("Choice of a checkpoint", place=60)
def trajectory_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the ``trajectory`` records of runs with several checkpoints: each measure by epoch."""
    series: dict[str, list[Series]] = {}
    rows: list[tuple[str, str, str, str]] = []
    for place, run in enumerate(runs.runs):
        values = by_epoch(run.records)
        if len(values) < 2:
            continue
        chosen = {choice.metric: choice.epoch for choice in choices(values)}
        for metric in PANELS:
            scale = 100 if metric == "top1" else 1
            points = [(float(epoch), scale * own[metric]) for epoch, own in values.items() if metric in own]
            if points:
                notes = ["best" if epoch == chosen[metric] else "" for epoch, _ in points]
                series.setdefault(metric, []).append(runs.series(place, points, notes))
                rows += [(runs.names[place], metric, str(int(epoch)), f"{value:.4g}") for epoch, value in points]
    if not series:
        return []
    figure = new_figure(WIDTH, 0.75 * HEIGHT * len(series) + 0.4)
    words: dict[str, Sequence[str]] = {}
    for panel, (metric, own) in zip(
        figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0], series.items(), strict=True
    ):
        last = metric == list(series)[-1]
        words |= draw_lines(panel, own, Axis("epoch" if last else "", whole=True), PANELS[metric])
        for one in own:
            for (epoch, value), note in zip(one.points, one.notes, strict=True):
                if note:
                    panel.plot([epoch], [value], "o", markersize=12, markerfacecolor="none", markeredgecolor="#888888")
        panel.tick_params(labelbottom=last)
    return [
        Charted(
            "trajectory",
            figure,
            "Measures of every checkpoint; a ring marks what each would choose. All but kNN need no labels.",
            "Label-free measures and kNN accuracy by epoch; the data follow",
            ("run", "measure", "epoch", "value"),
            rows,
            words,
            frozenset(one.style for own in series.values() for one in own),
        )
    ]


@chart("trajectory")
def trajectory_of_one(evaluated: Evaluated) -> Any:
    """Draw the checkpoints of one run."""
    drawn = trajectory_chart(alone(evaluated.records))
    return drawn[0].figure if drawn else None
