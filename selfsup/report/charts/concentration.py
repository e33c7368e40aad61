"""How augmentation gathers the images of a class, and how far the classes' centres are apart."""

from __future__ import annotations

from typing import Any

from selfsup.report.drawing import BLUE, ORANGE, Evaluated, chart, class_name, new_figure


@chart("concentration")
def concentration_chart(evaluated: Evaluated) -> Any:
    """Draw the ``concentration`` records: pairs within a distance, by class, and the products of class centres."""
    records = evaluated.of("concentration")
    curves = [record for record in records if record.metric == "concentration"]
    tables = [record for record in records if record.metric == "overlap"]
    if not curves or not tables:
        return None
    figure = new_figure(13.5, 4.0)
    panels = figure.subplots(1, 3)
    for panel, record in zip(panels, curves, strict=False):
        curve = record["curve"]
        panel.plot(curve["distance"], curve["same"], color=BLUE, label="same class")
        panel.plot(curve["distance"], curve["other"], color=ORANGE, linestyle="--", label="two classes")
        panel.set(xlabel="distance of the nearest views", ylabel="share of pairs within it", ylim=(0, 1.02))
        panel.set_title(f"{record['space']}: nearest of the same class {record.text(0)}", fontsize=9)
        panel.legend(frameon=False, fontsize=8)
        panel.grid(alpha=0.3)
    record = tables[-1]
    picture = panels[2].imshow(record["centres"], cmap="viridis", interpolation="nearest")
    figure.colorbar(picture, ax=panels[2], fraction=0.046)
    panels[2].set_title(f"products of class centres, mean of two classes {record['value']:.2f}", fontsize=9)
    places = range(len(record["classes"]))
    if len(places) <= 20:
        names = [class_name(label, evaluated.classes) for label in record["classes"]]
        panels[2].set_xticks(places, names, rotation=90, fontsize=7)
        panels[2].set_yticks(places, names, fontsize=7)
    return figure
