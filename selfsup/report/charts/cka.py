"""How alike networks are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import new_figure

if TYPE_CHECKING:
    from selfsup.eval.kernel_alignment import CkaTable


def cka_picture(table: CkaTable) -> Any:
    """Draw a table of CKA values, with the numbers where there is room."""
    count = len(table.names)
    side = max(4.0, 0.36 * count + 2.0)
    figure = new_figure(side + 1.0, side)
    axes = figure.add_subplot()
    picture = axes.imshow(table.values.numpy(), vmin=0, vmax=1, cmap="magma")
    axes.set_xticks(range(count), table.names, rotation=90, fontsize=8)
    axes.set_yticks(range(count), table.names, fontsize=8)
    if count <= 12:
        for i in range(count):
            for j in range(count):
                value = float(table.values[i, j])
                colour = "black" if value > 0.6 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(f"linear CKA, {table.images} images", fontsize=10)
    figure.colorbar(picture, shrink=0.8)
    return figure
