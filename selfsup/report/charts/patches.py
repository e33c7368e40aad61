"""Places of images, and the places of other images most like them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import new_figure

if TYPE_CHECKING:
    from torch import Tensor

    from selfsup.data.base import ImageDataset
    from selfsup.eval.patches import PatchMatches

FRAME = "#ff7f0e"


def patches_picture(found: PatchMatches, queries: ImageDataset, *, gallery: ImageDataset | None = None) -> Any:
    """Draw each image with its cell framed, and beside it the matches with theirs: one cell a row.

    Args:
        found: What ``retrieve_patches`` gave for these ``queries`` and this ``gallery``.
        queries: Images the cells are of.
        gallery: Where the matches are; None is ``queries``.
    """
    gallery = queries if gallery is None else gallery
    rows, columns = found.similarity.shape
    figure = new_figure(1.35 * (columns + 1), 1.5 * rows + 0.25)
    panels = figure.subplots(rows, columns + 1, squeeze=False)
    for row in range(rows):
        _framed(panels[row, 0], queries, found.cells[row], found.map_size)
        for column in range(columns):
            _framed(panels[row, column + 1], gallery, found.matches[row, column], found.map_size)
            panels[row, column + 1].set_title(f"{found.similarity[row, column]:.2f}", fontsize=8, pad=2)
    panels[0, 0].set_title("cell", fontsize=9, pad=2)
    return figure


def _framed(axes: Any, dataset: ImageDataset, cell: Tensor, map_size: tuple[int, int]) -> None:
    import torch
    from matplotlib.patches import Rectangle

    from selfsup.eval.encoder import prepare_images
    from selfsup.unit_range import shown_channels

    position, row, column = cell.tolist()
    image = prepare_images(dataset.read(torch.tensor([position])), dataset.image_size, dataset.channels)[0]
    # edges of the image are 0 and 1, so that the frame needs no pixels
    axes.imshow(
        shown_channels(image).permute(1, 2, 0).squeeze(-1).clamp(0, 1).numpy(),
        cmap="gray",
        vmin=0,
        vmax=1,
        extent=(0, 1, 1, 0),
    )
    corner = (column / map_size[1], row / map_size[0])
    axes.add_patch(Rectangle(corner, 1 / map_size[1], 1 / map_size[0], fill=False, edgecolor=FRAME, linewidth=2))
    axes.set(xticks=[], yticks=[])
