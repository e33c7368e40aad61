"""What a similarity comes from, by several ways side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import Evaluated, chart, class_colour, new_figure

if TYPE_CHECKING:
    from selfsup.eval.shown import SaliencyMaps

ROWS = 8
SCORES = {"information_area": "area", "infidelity": "infid.", "sensitivity": "sens.", "separation": "separ."}


@chart("saliency")
def saliency_chart(evaluated: Evaluated) -> Any:
    """Draw the maps of all ways on the same images, their scores above them."""
    if "saliency" not in evaluated.shown:
        return None
    scores: dict[str, list[str]] = {}
    for record in evaluated.of("saliency"):
        if record.metric in SCORES:
            scores.setdefault(record["way"], []).append(f"{SCORES[record.metric]} {record['value']:.2f}")
    return saliency_picture(evaluated.shown["saliency"](), scores)


def saliency_picture(shown: SaliencyMaps, scores: dict[str, list[str]]) -> Any:
    """Draw image, nearest training image and the map of every way, one image a row.

    Maps with values of both signs are red where a place speaks for the similarity and blue where it speaks against it;
    others run from their least value (dark) to their largest.
    """
    rows = min(ROWS, len(shown.pictures))
    names = ["image", "nearest", *shown.maps]
    figure = new_figure(1.45 * len(names), 1.45 * rows + 1.0)
    panels = figure.subplots(rows, len(names), squeeze=False)
    for row in range(rows):
        for column, name in enumerate(names):
            panel = panels[row, column]
            panel.set(xticks=[], yticks=[])
            if column < 2:
                picture = shown.pictures[row, column].permute(1, 2, 0).squeeze(-1)
                panel.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
                continue
            found = shown.maps[name][row]
            low, high = float(found.min()), float(found.max())
            grey = shown.pictures[row, 0].mean(0)
            panel.imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1)
            signed = low < 0 < high
            most = max(-low, high)
            limits = (-most, most) if signed else (low, high)
            colours = "seismic" if signed else "inferno"
            panel.imshow(found.numpy(), cmap=colours, vmin=limits[0], vmax=limits[1] or 1.0, alpha=0.7)
        panels[row, 0].set_ylabel(f"cosine {float(shown.similarity[row]):.2f}", fontsize=8)
    for column, name in enumerate(names):
        panels[0, column].set_title("\n".join([name, *scores.get(name, [])]), fontsize=7.5)
    return figure


@chart("information_curves")
def information_chart(evaluated: Evaluated) -> Any:
    """Draw the similarity over the information that is shown, for every way."""
    if "saliency" not in evaluated.shown:
        return None
    curves = {name: curve for name, curve in evaluated.shown["saliency"]().curves.items() if curve.isfinite().all()}
    if not curves:
        return None
    areas = {r["way"]: r["value"] for r in evaluated.of("saliency") if r.metric == "information_area"}
    figure = new_figure(7.6, 4.4)
    axes = figure.subplots()
    for place, (name, curve) in enumerate(sorted(curves.items(), key=lambda item: -areas.get(item[0], 0.0))):
        at = [step / (len(curve) - 1) for step in range(len(curve))]
        label = f"{name}, area {areas[name]:.3f}" if name in areas else name
        style = "--" if name == "random" else "-"
        axes.plot(at, curve.tolist(), color=class_colour(place, len(curves)), linestyle=style, label=label)
    axes.set(xlabel="information shown (blurred 0, image 1)", ylabel="similarity (blurred 0, image 1)")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    return figure
