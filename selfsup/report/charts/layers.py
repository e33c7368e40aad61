"""Accuracy and effective rank by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfsup.eval.record import Record
from selfsup.report.compared import Charted, Compared, alone, by_place, page_chart
from selfsup.report.drawing import Evaluated, chart, new_figure
from selfsup.report.estimates import is_number
from selfsup.report.plots import HEIGHT, WIDTH, Axis, Series, draw_lines

#: Measures, how they are written, and their axes.
PANELS = {
    "top1": ("accuracy", Axis("kNN accuracy, %", least=10.0, within=(0.0, 100.0))),
    "rank_me": ("effective rank", Axis("effective rank (RankMe)", log=True, least=1.0)),
}
NAMED = 16  # most layers whose names have room


@page_chart("Accuracy by layer", place=54)
def layers_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the ``layers`` records: kNN accuracy, where there is one, and effective rank after every layer."""
    series: dict[str, list[Series]] = {}
    rows: list[tuple[str, str, str, str]] = []
    names: list[list[str]] = []
    splits = set()
    for metric, (what, _) in PANELS.items():
        for place, run in enumerate(runs.runs):
            found = _by_depth(by_place(run, "layers", metric, "layer").values())
            if not found:
                continue
            layers = [str(record["layer"]) for record in found]
            names.append(layers)
            scale = 100 if metric == "top1" else 1
            points = [(record["depth"], scale * record.value) for record in found]
            series.setdefault(metric, []).append(runs.series(place, points, layers))
            splits |= {str(record.split) for record in found if metric == "top1"}
            rows += [(runs.names[place], str(record["layer"]), what, record.text(1)) for record in found]
    if not series:
        return []
    longest = max(names, key=len)
    alike = all(own == longest[: len(own)] for own in names) and len(longest) <= NAMED
    figure = new_figure(WIDTH, HEIGHT * (1.6 if len(series) > 1 else 1) + 0.5)
    panels = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    words: dict[str, Sequence[str]] = {}
    for panel, (metric, own) in zip(panels, series.items(), strict=True):
        last = panel is panels[-1]
        across = Axis("layer, counted from the first" if last and not alike else "")
        words |= draw_lines(panel, own, across, PANELS[metric][1], names=longest if alike else None)
        panel.tick_params(labelbottom=last)
    scored = f"kNN accuracy ({', '.join(sorted(splits))} images) and effective rank" if splits else "Effective rank"
    return [
        Charted(
            "layers",
            figure,
            f"{scored} after every stage of the network and, where it is known, every layer of the head: a fall shows "
            "where information is lost.",
            f"{' and '.join(PANELS[metric][0] for metric in series)} by layer; the data follow",
            ("run", "layer", "measure", "value"),
            rows,
            words,
            frozenset(one.style for own in series.values() for one in own),
        )
    ]


@chart("layers")
def layers_of_one(evaluated: Evaluated) -> Any:
    """Draw the layers of one evaluation."""
    drawn = layers_chart(alone(evaluated.records))
    return drawn[0].figure if drawn else None


def _by_depth(records: Any) -> list[Record]:
    found = [record for record in records if is_number(record.value) and is_number(record.get("depth"))]
    return sorted(found, key=lambda record: float(record["depth"]))
