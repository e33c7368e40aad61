"""Pictures of a run: training curves, nearest neighbours, a map of the features, a comparison of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet
from selfsup.eval.neighbours import search
from selfsup.metrics import read_metrics

if TYPE_CHECKING:
    from selfsup.eval.compare import Table

MAP_POINTS = 2000  # t-SNE takes seconds up to here, and more points hide one another
RIGHT, WRONG, PLAIN = "#2a9d4a", "#d1352b", "#888888"
FIRST_PANELS = ("train/", "lr", "online/", "health/")


def training_curves(metrics_csv: str | Path, path: str | Path) -> Path:
    """Draw every quantity of Lightning's ``metrics.csv`` over the training step, one panel each.

    Rows may have gaps: a row holds what was logged at that moment.

    Raises:
        UserError: The file is missing, or nothing was logged in it.
    """
    if not Path(metrics_csv).exists():
        raise UserError(f"'{metrics_csv}' does not exist; train first, or name the run's metrics.csv.")
    rows = read_metrics(metrics_csv).rows
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = _number(row["step"])
        for name, text in row.items():
            value = _number(text)
            if name not in ("step", "epoch") and step is not None and value is not None:
                curves.setdefault(name, []).append((step, value))
    if not curves:
        raise UserError(f"'{metrics_csv}' holds no logged values; train at least one step.")

    names = sorted(curves, key=_panel_order)
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = _figure(4.2 * columns, 2.9 * lines)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, columns, place)
        steps, values = zip(*sorted(curves[name]), strict=True)
        axes.plot(steps, values, linewidth=1.4, marker="o" if len(steps) <= 30 else None, markersize=3.5)
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    return _save(figure, path)


def neighbour_grid(
    queries: Tensor,
    neighbours: Tensor,
    path: str | Path,
    *,
    query_labels: Tensor | None = None,
    neighbour_labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
) -> Path:
    """Draw each query at the left and its nearest images, nearest first, at its right.

    Where the labels are known, a green frame is the class of the query and a red, dashed one another class.

    Args:
        queries: uint8 ``[Q,C,H,W]``.
        neighbours: uint8 ``[Q,k,C,H,W]``.
        path: The picture to write.
        query_labels: int64 ``[Q]``.
        neighbour_labels: int64 ``[Q,k]``.
        classes: Names of the labels.
    """
    count, k = neighbours.shape[:2]
    figure = _figure(1.0 * (k + 1) + 0.5, 1.12 * count + 0.3)
    grid = figure.add_gridspec(count, k + 2, width_ratios=[1.0, 0.15, *([1.0] * k)])
    for row in range(count):
        axes = figure.add_subplot(grid[row, 0])
        _show(axes, queries[row], None)
        if query_labels is not None and query_labels[row] >= 0:
            axes.set_title(_class_name(int(query_labels[row]), classes), fontsize=8, pad=2)
        elif row == 0:
            axes.set_title("query", fontsize=8, pad=2)
        for column in range(k):
            frame = PLAIN
            if query_labels is not None and neighbour_labels is not None and neighbour_labels[row, column] >= 0:
                frame = RIGHT if neighbour_labels[row, column] == query_labels[row] else WRONG
            _show(figure.add_subplot(grid[row, column + 2]), neighbours[row, column], frame)
    return _save(figure, path)


def nearest_images(
    bank: FeatureSet,
    bank_images: ImageDataset,
    queries: FeatureSet,
    query_images: ImageDataset,
    path: str | Path,
    *,
    rows: int = 8,
    k: int = 8,
    seed: int = 0,
) -> Path:
    """Draw the ``k`` nearest bank images of ``rows`` queries drawn with ``seed`` (see ``neighbour_grid``)."""
    chosen = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed))[:rows]
    k = min(k, len(bank))
    position = search(bank.features, queries.features[chosen], k)[1]
    found = bank_images.read(_positions(bank_images, bank.index[position.flatten()]))
    return neighbour_grid(
        query_images.read(_positions(query_images, queries.index[chosen])),
        found.view(len(chosen), k, *found.shape[1:]),
        path,
        query_labels=None if queries.labels is None else queries.labels[chosen],
        neighbour_labels=None if bank.labels is None else bank.labels[position],
        classes=query_images.classes,
    )


def feature_map(
    features: Tensor,
    labels: Tensor | None,
    classes: Sequence[str] | None,
    path: str | Path,
    *,
    title: str = "",
    seed: int = 0,
) -> Path:
    """Draw the features in the plane: L2-normalised, PCA to 50 dimensions, t-SNE of at most 2,000 of them.

    Args:
        features: float ``[N,D]``.
        labels: int64 ``[N]`` for the colours, or None for one colour.
        classes: Names of the labels, or None for their numbers.
        path: The picture to write.
        title: Title of the picture.
        seed: Choice of the points and start of t-SNE.

    Raises:
        UserError: Fewer than five features.
    """
    if len(features) < 5:
        raise UserError(f"A map of the features needs at least 5 images and there are {len(features)}.")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:MAP_POINTS]
    points = torch.nn.functional.normalize(features[chosen], dim=1).numpy()
    if min(points.shape) > 50:
        points = PCA(50, random_state=seed).fit_transform(points)
    perplexity = min(30.0, (len(points) - 1) / 3)
    plane = torch.from_numpy(TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(points))

    figure = _figure(7.5, 5.6)
    axes = figure.add_subplot()
    size = 9 if len(plane) > 500 else 22
    if labels is None:
        axes.scatter(plane[:, 0], plane[:, 1], s=size, linewidths=0, color="#3b6ea5")
    else:
        colours = labels[chosen]
        known = sorted(set(colours.tolist()))
        for place, label in enumerate(known):
            members = plane[colours == label]
            name = "no label" if label < 0 else _class_name(label, classes)
            axes.scatter(
                members[:, 0], members[:, 1], s=size, linewidths=0, label=name, color=_colour(place, len(known))
            )
        if len(known) <= 40:
            columns = math.ceil(len(known) / 20)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.0, frameon=False, ncols=columns)
    axes.set_title(title or f"{len(plane)} images")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("t-SNE; distances between groups mean little", fontsize=8, color="#666666")
    return _save(figure, path)


def segmentation_panels(
    images: Tensor, truth: Tensor, predicted: Tensor, path: str | Path, *, classes: Sequence[str] | None = None
) -> Path:
    """Draw image, true mask and predicted mask of each image, one column an image, with the classes that occur.

    Args:
        images: float ``[N,C,S,S]`` in [0, 1].
        truth, predicted: int64 ``[N,S,S]``; white where the truth is 255, unknown.
        path: The picture to write.
        classes: Names of the values of the masks.
    """
    import matplotlib
    from matplotlib.patches import Patch

    known = sorted({*truth.flatten().tolist(), *predicted.flatten().tolist()} - {255})
    last = max(1, max(known), len(classes or ()) - 1)
    # the background is dark and the same in every picture, whatever else occurs
    palette = torch.ones(256, 3)
    palette[: last + 1] = torch.tensor([(0.15, 0.15, 0.15), *(_colour(c, last)[:3] for c in range(last))])
    figure = _figure(1.5 * len(images) + 1.8, 4.8)
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
    patches = [Patch(color=matplotlib.colors.to_hex(palette[c].tolist()), label=_class_name(c, classes)) for c in known]
    figure.legend(handles=patches, loc="outside right center", frameon=False)
    return _save(figure, path)


def comparison_chart(table: Table, path: str | Path) -> Path:
    """Draw the accuracies of a comparison as bars, one group of bars a run."""
    measures = [name for name in table.accuracies if any(row[name] is not None for row in table.rows)]
    names = [str(row["run"]) for row in table.rows]
    figure = _figure(max(5.0, 1.6 + 1.3 * len(names)), 4.2)
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(measures))
    for place, measure in enumerate(measures):
        heights = [100 * float(row[measure]) if row[measure] is not None else math.nan for row in table.rows]
        left = [i - 0.4 + width * (place + 0.5) for i in range(len(names))]
        bars = axes.bar(left, heights, width * 0.94, label=measure)
        texts = ["–" if math.isnan(height) else f"{height:.1f}" for height in heights]
        axes.bar_label(bars, labels=texts, fontsize=8, padding=2)
    longest = max((len(name) for name in names), default=0)
    axes.set_xticks(
        range(len(names)), names, rotation=25 if longest > 12 else 0, ha="right" if longest > 12 else "center"
    )
    axes.set_ylabel("accuracy or mIoU, %" if "mIoU" in measures else "accuracy, %")
    axes.set_ylim(0, 109)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if measures:
        axes.legend(frameon=False, ncols=len(measures), loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return _save(figure, path)


def _figure(width: float, height: float) -> Any:
    # the object interface: no global state, no display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _show(axes: Any, image: Tensor, frame: str | None) -> None:
    pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame)
        spine.set_linewidth(2.5)
        spine.set_linestyle((0, (2, 1)) if frame == WRONG else "-")  # for eyes that see no red and green


def _positions(images: ImageDataset, index: Tensor) -> Tensor:
    """Return where the images with these stable indices are in the dataset; extraction may have left some out."""
    order = images.index.argsort()
    return order[torch.searchsorted(images.index[order], index)]


def _class_name(label: int, classes: Sequence[str] | None) -> str:
    return classes[label] if classes is not None and label < len(classes) else str(label)


def _colour(place: int, count: int) -> Any:
    import matplotlib

    if count <= 20:
        return matplotlib.colormaps["tab10" if count <= 10 else "tab20"](place)
    return matplotlib.colormaps["gist_rainbow"](place / count)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _panel_order(name: str) -> tuple[int, str]:
    group = next((i for i, prefix in enumerate(FIRST_PANELS) if name.startswith(prefix)), len(FIRST_PANELS))
    return group, name
