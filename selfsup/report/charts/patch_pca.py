"""Images and the principal components of their patches as colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import Evaluated, chart, new_figure

if TYPE_CHECKING:
    from selfsup.eval.protocols.patch_pca import ColouredPatches


@chart("patch_pca")
def patch_pca_chart(evaluated: Evaluated) -> Any:
    """Draw images of some classes above the colours of their patches."""
    return patch_pca_picture(evaluated.shown["patch_pca"]()) if "patch_pca" in evaluated.shown else None


def patch_pca_picture(groups: Sequence[ColouredPatches]) -> Any:
    """Draw three rows for each group: images, components of each alone, components of the objects of all together.

    What is not taken for the object is black in the last row.
    """
    columns = max(len(group.images) for group in groups)
    figure = new_figure(1.3 * columns + 0.6, 3.9 * len(groups) + 0.2)
    panels = figure.subplots(3 * len(groups), columns, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for place, group in enumerate(groups):
        rows = {
            group.title: group.images.permute(0, 2, 3, 1).clamp(0, 1),
            "each alone": group.own,
            "all together": group.joint * group.objects[..., None],
        }
        for row, (name, pictures) in enumerate(rows.items(), start=3 * place):
            for column, picture in enumerate(pictures):
                axes = panels[row, column]
                axes.axis("on")
                axes.imshow(picture.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
            panels[row, 0].set_ylabel(name, fontsize=9)
    return figure
