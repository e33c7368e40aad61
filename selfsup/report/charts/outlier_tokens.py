"""Patches whose norm is far beyond that of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfsup.report.compared import Charted, Compared, by_place, page_chart
from selfsup.report.drawing import BLUE, ORANGE, Evaluated, chart, new_figure
from selfsup.report.estimates import is_number
from selfsup.report.plots import Axis, Series, line_figure


@page_chart("Outlier tokens", place=58)
def outlier_tokens_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the ``outlier_tokens`` records: the share of outliers after every block."""
    series: list[Series] = []
    rows: list[tuple[str, str, str]] = []
    for place, run in enumerate(runs.runs):
        found = by_place(run, "outlier_tokens", "outlier_share", "layer")
        known = {name: record for name, record in found.items() if is_number(record.value)}
        if known:
            points = [(float(record["depth"]), 100 * record.value) for record in known.values()]
            series.append(runs.series(place, points))
            rows += [(runs.names[place], name, record.text()) for name, record in known.items()]
    if not series:
        return []
    figure, words = line_figure(
        series, Axis("block", whole=True), Axis("outlier tokens, %", zero=True, least=1.0, within=(0.0, 100.0))
    )
    return [
        Charted(
            "outlier_tokens",
            figure,
            "Share of the patch tokens whose norm is far beyond that of the others, after every block.",
            "Share of outlier tokens by block; the data follow",
            ("run", "layer", "share"),
            rows,
            words,
            frozenset(one.style for one in series),
        )
    ]


@chart("outlier_tokens")
def outlier_tokens_of_one(evaluated: Evaluated) -> Any:
    """Draw the norms of the last block, the share of outliers by block, and the norms of some images as maps."""
    records = [record for record in evaluated.of("outlier_tokens") if record.metric == "outlier_share"]
    if not records or "outlier_tokens" not in evaluated.shown:
        return None
    shown, last = evaluated.shown["outlier_tokens"](), records[-1]
    columns = len(shown.images)
    figure = new_figure(max(7.5, 1.4 * columns), 5.8)
    above, below = figure.subfigures(2, 1)
    left, right = above.subplots(1, 2)
    edges, counts = last["histogram"]["edges"], last["histogram"]["counts"]
    left.stairs(counts, edges, fill=True, color=BLUE)
    left.set(yscale="log", ylim=(0.5, None), xlabel="norm of a patch, last block", ylabel="patches")
    left.axvline(last["threshold"], color=ORANGE)
    left.set_title(f"{last.text()} beyond {last['threshold']:.3g} ({last['rule']})", fontsize=9)
    right.plot([r["depth"] for r in records], [100 * r.value for r in records], marker="o", color=BLUE)
    right.set(xlabel="block", ylabel="outlier tokens, %", xticks=[r["depth"] for r in records])
    right.set_ylim(0, max(1.0, 108 * max(r.value for r in records)))
    right.set_title(f"{last['registers']} registers", fontsize=9)
    panels = below.subplots(2, columns, squeeze=False)
    ends = {"vmin": float(shown.norms.min()), "vmax": float(shown.norms.max())}
    for column, (image, norms) in enumerate(zip(shown.images, shown.norms, strict=True)):
        panels[0, column].imshow(image.permute(1, 2, 0).squeeze(-1).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
        drawn = panels[1, column].imshow(norms.numpy(), cmap="viridis", **ends)
        rows, places = (norms > shown.threshold).nonzero().T
        panels[1, column].plot(places.numpy(), rows.numpy(), "x", color=ORANGE, markersize=6, markeredgewidth=2)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    below.colorbar(drawn, ax=panels[1, :], shrink=0.8, label="norm (×: outlier)")
    return figure
