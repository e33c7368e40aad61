"""Images, their true masks, and those of the linear probe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import Evaluated, chart, class_colour, class_name, new_figure

if TYPE_CHECKING:
    from selfsup.eval.shown import Panels


@chart("segmentation")
def segmentation_chart(evaluated: Evaluated) -> Any:
    """Draw some scored images with their masks."""
    return segmentation_panels(evaluated.shown["segmentation"]()) if "segmentation" in evaluated.shown else None


def segmentation_panels(shown: Panels) -> Any:
    """Draw image, true mask and predicted mask of each image, one column an image, with the classes that occur."""
    import matplotlib
    import torch
    from matplotlib.patches import Patch

    images, truth, predicted, classes = shown.images, shown.truth, shown.predicted, shown.classes
    known = sorted({*truth.flatten().tolist(), *predicted.flatten().tolist()} - {255})
    last = max(1, max(known), len(classes or ()) - 1)
    # the background is dark and the same in every picture, whatever else occurs
    palette = torch.ones(256, 3)
    palette[: last + 1] = torch.tensor([(0.15, 0.15, 0.15), *(class_colour(c, last)[:3] for c in range(last))])
    figure = new_figure(1.5 * len(images) + 1.8, 4.8)
    for row, (name, pictures) in enumerate(
        (("image", images.permute(0, 2, 3, 1)), ("truth", palette[truth]), ("predicted", palette[predicted]))
    ):
        for column, picture in enumerate(pictures):
            axes = figure.add_subplot(3, len(images), row * len(images) + column + 1)
            axes.imshow(picture.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(name)
    patches = [Patch(color=matplotlib.colors.to_hex(palette[c].tolist()), label=class_name(c, classes)) for c in known]
    figure.legend(handles=patches, loc="outside right center", frameon=False)
    return figure
