"""A map of the features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import Evaluated, chart, class_colour, class_name, new_figure

if TYPE_CHECKING:
    from selfsup.eval.shown import FeatureMap


@chart("feature_map")
def feature_map_chart(evaluated: Evaluated) -> Any:
    """Draw the scored features in the plane."""
    return feature_map_picture(evaluated.shown["feature_map"]()) if "feature_map" in evaluated.shown else None


def feature_map_picture(shown: FeatureMap) -> Any:
    """Draw features in the plane, coloured by their labels where they have them."""
    figure = new_figure(7.5, 5.6)
    axes = figure.add_subplot()
    size = 9 if len(shown.points) > 500 else 22
    if shown.labels is None:
        axes.scatter(shown.points[:, 0], shown.points[:, 1], s=size, linewidths=0, color="#3b6ea5")
    else:
        known = sorted(set(shown.labels.tolist()))
        for place, label in enumerate(known):
            members = shown.points[shown.labels == label]
            name = "no label" if label < 0 else class_name(label, shown.classes)
            axes.scatter(
                members[:, 0], members[:, 1], s=size, linewidths=0, label=name, color=class_colour(place, len(known))
            )
        if len(known) <= 40:
            columns = math.ceil(len(known) / 20)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.0, frameon=False, ncols=columns)
    axes.set_title(shown.title)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("t-SNE; distances between groups mean little", fontsize=8, color="#666666")
    return figure
