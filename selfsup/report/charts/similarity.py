"""Which places the similarity of two images comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import Evaluated, chart, new_figure

if TYPE_CHECKING:
    from torch import Tensor

    from selfsup.eval.shown import SimilarityMaps

MAPS = ("image", "similarity", "partner", "similarity", "SmoothGrad", "masking")


@chart("similarity")
def similarity_chart(evaluated: Evaluated) -> Any:
    """Draw some scored images and the training image nearest to each."""
    return similarity_picture(evaluated.shown["similarity"]()) if "similarity" in evaluated.shown else None


def similarity_picture(maps: SimilarityMaps) -> Any:
    """Draw which places the similarity of pairs of images comes from: one pair a row.

    Beside each image the exact map of the cosine (red speaks for it, blue against), then SmoothGrad and the masking map
    of that cosine on the first image with the second one fixed.
    """
    figure = new_figure(1.75 * len(MAPS), 1.9 * len(maps.pictures) + 0.3)
    panels = figure.subplots(len(maps.pictures), len(MAPS), squeeze=False)
    for row in range(len(maps.pictures)):
        first, second = maps.pictures[row]
        columns = (
            (first, None),
            (first, maps.exact[row, 0]),
            (second, None),
            (second, maps.exact[row, 1]),
            (first, maps.smooth_grad[row]),
            (first, maps.masking[row]),
        )
        for column, (picture, overlay) in enumerate(columns):
            _overlay(panels[row, column], picture, overlay)
        panels[row, 0].set_ylabel(f"cosine {float(maps.exact[row, 0].sum()):.2f}", fontsize=9)
    for column, name in enumerate(MAPS):
        panels[0, column].set_title(name, fontsize=9)
    return figure


def _overlay(axes: Any, picture: Tensor, overlay: Tensor | None) -> None:
    axes.set(xticks=[], yticks=[])
    extent = (0, picture.shape[1], picture.shape[0], 0)
    if overlay is None:
        axes.imshow(picture.numpy(), extent=extent)
        return
    grey = picture.mean(2)
    axes.imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1, extent=extent)
    strongest = float(overlay.abs().max()) or 1.0
    axes.imshow(
        overlay.numpy(),
        cmap="seismic",
        vmin=-strongest,
        vmax=strongest,
        alpha=0.55,
        extent=extent,
        interpolation="nearest",
    )
