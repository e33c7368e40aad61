"""Online accuracy over the time of training."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.report.compared import Charted, Compared, page_chart
from selfsup.report.estimates import accuracy_over_time, read_numbers
from selfsup.report.plots import Axis, line_figure


@page_chart("Accuracy over wall time", place=22)
def time_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the online kNN accuracy over the seconds of training."""
    series, rows = [], []
    for place, (name, run) in enumerate(zip(runs.names, runs.runs, strict=True)):
        curve = accuracy_over_time(run)
        if not curve:
            if any("online/knn" in row for row in read_numbers(run.folder / "metrics.csv")):
                runs.notes.append(f"{name} is not in the accuracy over wall time: it was trained without times.csv")
            continue
        points = [(seconds, 100 * accuracy) for _, seconds, accuracy in curve]
        series.append(runs.series(place, points, [f"step {step}" for step, _, _ in curve]))
        rows += [(name, step, f"{seconds:.1f}", f"{100 * value:.1f} %") for step, seconds, value in curve]
    if not series:
        return []
    figure, words = line_figure(
        series,
        Axis("seconds of training", zero=True),
        Axis("online kNN accuracy, %", least=10.0, within=(0.0, 100.0)),
    )
    return [
        Charted(
            "time",
            figure,
            "Online kNN accuracy over the seconds of training, on some held-out images and with the run's own setting "
            "(online.k, online.bank): to watch a run, not to report. Seconds depend on the machine; see each run's "
            "environment.json.",
            f"Online kNN accuracy of {len(series)} runs over the seconds of training; the data follow",
            ("run", "step", "seconds", "accuracy"),
            rows,
            words,
            frozenset(one.style for one in series),
        )
    ]
