"""Pictures of the probes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from selfsup.eval.figures import _class_name, _figure, _save
from selfsup.eval.results import Record

NUMBERED = 20  # most classes whose cells carry their percentages


def confusion_chart(record: Record, classes: Sequence[str] | None, path: str | Path) -> Path:
    """Draw how often each true class was taken for each class, and the accuracy of each class at the right.

    Args:
        record: A record with ``confusion``: ``{"labels": […], "counts": [[…], …]}``, true classes in rows.
        classes: Names of the labels, or None.
        path: The picture to write.
    """
    labels = record["confusion"]["labels"]
    counts = torch.tensor(record["confusion"]["counts"], dtype=torch.double)
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    names = [_class_name(label, classes) for label in labels]
    side = min(12.0, max(3.4, 0.42 * len(labels) + 1.6))
    figure = _figure(side + 2.2, side)
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
    bars.barh(list(ticks), own, color="#1f77b4")
    bars.set(xlim=(0, 100), xlabel="accuracy, %")
    bars.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{record['data']}, {record['split']}: {100 * record['value']:.1f} %", fontsize=11)
    return _save(figure, path)
