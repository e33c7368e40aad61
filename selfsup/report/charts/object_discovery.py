"""Images, their objects, and what LOST and TokenCut take for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import BLUE, ORANGE, Evaluated, chart, new_figure

if TYPE_CHECKING:
    from selfsup.eval.protocols.object_discovery import FoundObjects


@chart("object_discovery")
def object_discovery_chart(evaluated: Evaluated) -> Any:
    """Draw some scored images with the object that was found in each."""
    return found_objects(evaluated.shown["object_discovery"]()) if "object_discovery" in evaluated.shown else None


def found_objects(shown: FoundObjects) -> Any:
    """Draw a row for each method: what was found is bright and has its box, and true objects have an outline."""
    import torch
    from matplotlib.patches import Rectangle

    columns = len(shown.images)
    figure = new_figure(1.5 * columns + 0.5, 1.55 * len(shown.found) + 0.2)
    panels = figure.subplots(len(shown.found), columns, squeeze=False)
    for row, (name, masks) in enumerate(shown.found.items()):
        for axes, image, mask, truth in zip(panels[row], shown.images, masks, shown.truth, strict=True):
            picture = image.permute(1, 2, 0).squeeze(-1).clamp(0, 1)
            weight = torch.where(mask, 1.0, 0.35)
            axes.imshow(
                (picture * (weight if picture.ndim == 2 else weight[..., None])).numpy(), "gray", vmin=0, vmax=1
            )
            axes.contour(truth.float().numpy(), levels=[0.5], colors=ORANGE, linewidths=1.2)
            if bool(mask.any()):
                rows, places = (mask.any(side).nonzero().flatten().tolist() for side in (1, 0))
                corner = (places[0] - 0.5, rows[0] - 0.5)
                sides = (places[-1] - places[0] + 1, rows[-1] - rows[0] + 1)
                axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=BLUE, linewidth=2))
            axes.set(xticks=[], yticks=[])
        panels[row, 0].set_ylabel(name)
    return figure
