"""The nearest neighbours of some images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import PLAIN, RIGHT, WRONG, Evaluated, chart, class_name, new_figure, show_image

if TYPE_CHECKING:
    from selfsup.eval.shown import NeighbourImages


@chart("neighbours")
def neighbours_chart(evaluated: Evaluated) -> Any:
    """Draw some scored images and their nearest training images."""
    return neighbour_grid(evaluated.shown["neighbours"]()) if "neighbours" in evaluated.shown else None


def neighbour_grid(shown: NeighbourImages) -> Any:
    """Draw each query at the left and its nearest images, nearest first, at its right.

    Where the labels are known, a green frame is the class of the query and a red, dashed one another class.
    """
    queries, neighbours = shown.queries, shown.neighbours
    query_labels, neighbour_labels = shown.query_labels, shown.neighbour_labels
    count, k = neighbours.shape[:2]
    figure = new_figure(1.0 * (k + 1) + 0.5, 1.12 * count + 0.3)
    grid = figure.add_gridspec(count, k + 2, width_ratios=[1.0, 0.15, *([1.0] * k)])
    for row in range(count):
        axes = figure.add_subplot(grid[row, 0])
        show_image(axes, queries[row], None)
        if query_labels is not None and query_labels[row] >= 0:
            axes.set_title(class_name(int(query_labels[row]), shown.classes), fontsize=8, pad=2)
        elif row == 0:
            axes.set_title("query", fontsize=8, pad=2)
        for column in range(k):
            frame = PLAIN
            if query_labels is not None and neighbour_labels is not None and neighbour_labels[row, column] >= 0:
                frame = RIGHT if neighbour_labels[row, column] == query_labels[row] else WRONG
            show_image(figure.add_subplot(grid[row, column + 2]), neighbours[row, column], frame)
    return figure
