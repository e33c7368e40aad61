"""Which places of two views a network takes for the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import RIGHT, WRONG, Evaluated, chart, new_figure

if TYPE_CHECKING:
    from selfsup.eval.shown import MatchedViews

LINES = 16  # for each pair of views; more hide one another


@chart("dense_alignment")
def dense_alignment_chart(evaluated: Evaluated) -> Any:
    """Draw some images' views with lines between the cells that are most alike."""
    return matched_picture(evaluated.shown["dense_alignment"]()) if "dense_alignment" in evaluated.shown else None


def matched_picture(shown: MatchedViews) -> Any:
    """Draw two views of each image side by side, and a line from cells of the first to the cell that is most alike.

    Cells that the second view does not show have no line. Lines are green where both cells show the same place, else
    red and dashed.
    """
    import torch

    count = len(shown.images)
    columns = min(2, count)
    figure = new_figure(5.2 * columns, 2.75 * -(-count // columns) + 0.2)
    panels = figure.subplots(-(-count // columns), columns, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    side = math.isqrt(shown.match.shape[1])
    for panel, images, match, same in zip(panels.flat, shown.images, shown.match, shown.same, strict=False):
        height, width = images.shape[2:]
        gap = width // 8
        white = torch.ones(images.shape[1], height, gap)
        together = torch.cat([images[0], white, images[1]], 2).permute(1, 2, 0)
        panel.imshow(together.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        paired = same.any(1).nonzero().flatten()
        chosen = paired[torch.linspace(0, len(paired) - 1, min(LINES, len(paired))).round().long()]
        right = [bool(same[cell, match[cell]]) for cell in chosen]
        for cell, found in zip(chosen.tolist(), right, strict=True):
            other = int(match[cell])
            xs = [(place % side + 0.5) * width / side - 0.5 for place in (cell, other)]
            ys = [(place // side + 0.5) * height / side - 0.5 for place in (cell, other)]
            panel.plot(
                [xs[0], xs[1] + width + gap],
                ys,
                color=RIGHT if found else WRONG,
                linestyle="-" if found else (0, (3, 2)),
                marker="o",
                markersize=2.5,
                linewidth=1.2,
            )
        panel.set_title(f"same place: {sum(right)} of {len(right)} lines", fontsize=9)
    return figure
