"""How close a rotation brings the features of one network to those of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import BLUE, ORANGE, new_figure

if TYPE_CHECKING:
    from selfsup.eval.feature_alignment import Aligned


def aligned_picture(found: Sequence[Aligned]) -> Any:
    """Draw, for every pair of networks, the cosines with the same image and with another one."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = new_figure(4.2 * columns, 3.0 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(found) :]:
        panel.axis("off")
    for panel, one in zip(panels.flat, found, strict=False):
        bins = [step / 25 - 1 for step in range(51)]
        panel.hist(one.own_cosines.tolist(), bins, color=BLUE, alpha=0.7, label="same image")
        panel.hist(one.other_cosines.tolist(), bins, color=ORANGE, alpha=0.6, label="another image")
        panel.set_title(f"{one.source}\n→ {one.target}: {100 * one.matched:.0f} % found", fontsize=8)
        panel.set(xlabel="cosine after the rotation", xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1))
        panel.legend(frameon=False, fontsize=7)
    return figure
