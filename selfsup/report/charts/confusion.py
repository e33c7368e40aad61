"""Which classes the linear probe takes for which."""

from __future__ import annotations

from typing import Any

import torch

from selfsup.report.drawing import BLUE, Evaluated, chart, class_name, new_figure

NUMBERED = 20  # most classes whose cells carry their percentages


@chart("confusion")
def confusion_chart(evaluated: Evaluated) -> Any:
    """Draw how often each true class was taken for each class, and the accuracy of each class at the right."""
    record = next((r for r in reversed(evaluated.of("linear_probe")) if "confusion" in r.found), None)
    if record is None:
        return None
    labels = record["confusion"]["labels"]
    counts = torch.tensor(record["confusion"]["counts"], dtype=torch.double)
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    names = [class_name(label, evaluated.classes) for label in labels]
    side = min(12.0, max(3.4, 0.42 * len(labels) + 1.6))
    figure = new_figure(side + 2.2, side)
    axes, bars = figure.subplots(1, 2, width_ratios=[4, 1], sharey=True)
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    ticks = range(len(labels))
    size = 9 if len(labels) <= NUMBERED else 5
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    if len(labels) <= NUMBERED:
        for row, line in enumerate(shares.tolist()):
            for column, share in enumerate(line):
                if round(share):
                    colour = "white" if share > 55 else "black"
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(picture, ax=axes, location="left", label="% of the true class", fraction=0.05)
    scored = counts.sum(1) > 0
    own = [float(share) if known else 0.0 for share, known in zip(shares.diagonal(), scored, strict=True)]
    bars.barh(list(ticks), own, color=BLUE)
    bars.set(xlim=(0, 100), xlabel="accuracy, %")
    bars.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{record['data']}, {record['split']}: {100 * record['value']:.1f} %", fontsize=11)
    return figure
