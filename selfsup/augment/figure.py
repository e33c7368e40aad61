"""A picture of what the network is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from selfsup.types import Normalization, View
from selfsup.unit_range import shown_channels, unit_range
from selfsup.writing import replacing


def save_views_figure(
    images: Tensor | Sequence[Tensor],
    views: Sequence[View],
    path: str | Path,
    normalization: Normalization,
    count: int = 8,
) -> None:
    """Save a PNG with one row per image: the original with the crops drawn on it, then every view.

    A dot marks the corner of the crop that is the view's upper left, so that mirrored views show.

    Args:
        images: uint8, uint16 or float in [0, 1], ``[B,C,H,W]`` or one ``[C,h,w]`` each: what the views were made of.
            Of more channels than three the first three are drawn, of two the first.
        views: Of these images.
        path: The file to write; its folder is made.
        normalization: What the views were normalised with.
        count: Draw at most this many images.

    Raises:
        UserError: The file cannot be written.
    """
    rows = min(count, len(images))
    columns = 1 + len(views)
    figure = Figure(figsize=(1.6 * columns, 1.6 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    colors = [colormaps["tab10"](number % 10) for number in range(len(views))]
    for row in range(rows):
        original = unit_range(images[row])
        _show(axes[row, 0], original)
        for number, view in enumerate(views):
            _draw_crop(axes[row, 0], view.to_source[row], original.shape[-2], original.shape[-1], colors[number])
            _show(axes[row, 1 + number], _denormalize(view.image[row].float(), normalization))
            for spine in axes[row, 1 + number].spines.values():
                spine.set(visible=True, color=colors[number], linewidth=2)
    axes[0, 0].set_title("original", fontsize=10)
    for number, view in enumerate(views):
        size = f"{view.image.shape[-2]}×{view.image.shape[-1]}"
        axes[0, 1 + number].set_title(f"view {number + 1}, {size}", fontsize=10, color=colors[number])
    with replacing(path) as draft:
        figure.savefig(draft, dpi=120, format="png")


def _denormalize(image: Tensor, normalization: Normalization) -> Tensor:
    mean = image.new_tensor(normalization.mean).view(-1, 1, 1)
    std = image.new_tensor(normalization.std).view(-1, 1, 1)
    if len(image) == 1:
        mean, std = mean.mean(dim=0, keepdim=True), std.mean(dim=0, keepdim=True)
    return image * std + mean


def _show(axis: Axes, image: Tensor) -> None:
    pixels = shown_channels(image).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.autoscale(False)  # a rotated crop may reach beyond the image


def _draw_crop(axis: Axes, to_source: Tensor, height: int, width: int, color: tuple[float, ...]) -> None:
    corners = to_source.new_tensor([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1]])
    # imshow puts the centre of the first pixel at 0; a NaN map draws nothing
    x, y = ((corners @ to_source.T) * to_source.new_tensor([width, height]) - 0.5).T.cpu().numpy()
    axis.plot(x, y, color=color, linewidth=1.5)
    axis.plot(x[:1], y[:1], "o", color=color, markersize=4)
