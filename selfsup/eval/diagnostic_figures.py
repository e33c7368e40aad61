"""Pictures of the diagnostics: spectrum, layers, augmentations, attention, CKA, and what a similarity comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet, frozen, input_channels, prepare_images
from selfsup.eval.figures import _figure, _positions, _save
from selfsup.eval.neighbours import search
from selfsup.eval.results import Record
from selfsup.functional.saliency import masking_map, similarity_maps, smooth_grad

if TYPE_CHECKING:
    from selfsup.eval.diagnostics import CkaTable

BLUE, ORANGE, GREEN = "#1f77b4", "#ff7f0e", "#2a9d4a"
MAPS = ("image", "similarity", "partner", "similarity", "SmoothGrad", "masking")


def spectrum_curve(records: Sequence[Record], path: str | Path) -> Path:
    """Draw the singular values in the ``diagnostics`` records of one evaluation over their rank, both logarithmic."""
    (record,) = (r for r in records if "spectrum" in r)
    shown = [(rank, v) for rank, v in zip(*record["spectrum"].values(), strict=True) if v > 0]
    figure = _figure(5.2, 3.8)
    axes = figure.add_subplot()
    if shown:
        axes.loglog(*zip(*shown, strict=True), color=BLUE, linewidth=1.6, marker=".")
    title = f"{record['data']}, RankMe {record['value']:.1f} of {record['dim']}"
    axes.set(xlabel="rank", ylabel="singular value / largest", title=title)
    axes.grid(alpha=0.3, which="both")
    return _save(figure, path)


def layers_chart(records: Sequence[Record], path: str | Path) -> Path:
    """Draw the ``layers`` records of one evaluation: kNN accuracy (where there is one) and effective rank by layer."""
    ranks = sorted((r for r in records if r["metric"] == "rank_me"), key=_depth)
    accuracies = sorted((r for r in records if r["metric"] == "top1"), key=_depth)
    figure = _figure(max(5.0, 0.75 * len(ranks) + 1.5), 5.6 if accuracies else 3.4)
    panels = figure.subplots(2 if accuracies else 1, 1, sharex=True, squeeze=False)[:, 0]
    if accuracies:
        values = [100 * record["value"] for record in accuracies]
        panels[0].plot([r["depth"] for r in accuracies], values, marker="o", color=BLUE)
        panels[0].set_ylabel(f"kNN accuracy, % ({accuracies[0]['split']})")
        panels[0].set_ylim(0, 100)
    panels[-1].plot([r["depth"] for r in ranks], [r["value"] for r in ranks], marker="o", color=ORANGE, label="RankMe")
    widths = [min(r["dim"], r["train_images"]) for r in ranks]
    panels[-1].plot([r["depth"] for r in ranks], widths, "--", color="#888888", label="at most")
    panels[-1].set_yscale("log")
    panels[-1].set_ylabel("effective rank")
    panels[-1].legend(frameon=False)
    panels[-1].set_xticks([r["depth"] for r in ranks], [r["layer"] for r in ranks], rotation=30, ha="right")
    for panel in panels:
        panel.grid(alpha=0.3)
    return _save(figure, path)


def invariance_chart(records: Sequence[Record], path: str | Path) -> Path:
    """Draw the ``invariance`` records of one evaluation: invariance and equivariance to each operation."""
    operations = list(dict.fromkeys(record["operation"] for record in records))
    values = {(record["operation"], record["metric"]): record["value"] for record in records}
    figure = _figure(6.4, 0.42 * len(operations) + 1.3)
    axes = figure.add_subplot()
    for offset, metric, colour in ((-0.2, "invariance", BLUE), (0.2, "equivariance", ORANGE)):
        places = [number + offset for number in range(len(operations))]
        axes.barh(places, [values[name, metric] for name in operations], height=0.38, color=colour, label=metric)
    axes.set_yticks(range(len(operations)), operations)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(min(0.0, *values.values()) if values else 0.0, 1.02)
    axes.set_xlabel("0: as far as another image; 1: does not move (invariance), moves alike (equivariance)", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return _save(figure, path)


def attention_chart(records: Sequence[Record], path: str | Path) -> Path:
    """Draw the ``attention`` records of one evaluation: distance and NMI of every head, and the Fourier curves."""
    import matplotlib

    figure = _figure(12.0, 3.7)
    panels = figure.subplots(1, 3)
    labels = {"attention_distance": "attention distance, pixels", "attention_nmi": "attention NMI"}
    for panel, (metric, label) in zip(panels, labels.items(), strict=False):
        found = sorted((r for r in records if r["metric"] == metric), key=_depth)
        for record in found:
            heads = record["per_head"]
            panel.scatter([record["depth"]] * len(heads), heads, s=12, color="#aaaaaa")
        panel.plot([r["depth"] for r in found], [r["value"] for r in found], marker="o", color=BLUE, label="mean")
        panel.set(xlabel="block", ylabel=label)
        panel.set_ylim(0, 1.08 * max((max(r["per_head"]) for r in found), default=1.0))
        panel.set_xticks([r["depth"] for r in found])
    curves = sorted((r for r in records if r["metric"] == "high_frequency"), key=_depth)
    for record in curves:
        curve = record["amplitude"]
        frequency = [step / max(1, len(curve) - 1) for step in range(len(curve))]
        colour = matplotlib.colormaps["viridis"](record["depth"] / max(1, len(curves) - 1))
        panels[2].plot(frequency, curve, color=colour, linewidth=1.4)
    panels[2].set(xlabel="frequency / highest (dark: first block)", ylabel="relative log amplitude")
    for panel in panels:
        panel.grid(alpha=0.3)
    return _save(figure, path)


def cka_picture(table: CkaTable, path: str | Path) -> Path:
    """Draw a table of CKA values, with the numbers where there is room."""
    count = len(table.names)
    side = max(4.0, 0.36 * count + 2.0)
    figure = _figure(side + 1.0, side)
    axes = figure.add_subplot()
    picture = axes.imshow(table.values.numpy(), vmin=0, vmax=1, cmap="magma")
    axes.set_xticks(range(count), table.names, rotation=90, fontsize=8)
    axes.set_yticks(range(count), table.names, fontsize=8)
    if count <= 12:
        for i in range(count):
            for j in range(count):
                value = float(table.values[i, j])
                colour = "black" if value > 0.6 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(f"linear CKA, {table.images} images", fontsize=10)
    figure.colorbar(picture, shrink=0.8)
    return _save(figure, path)


def similarity_picture(
    backbone: nn.Module,
    dataset: ImageDataset,
    pairs: Tensor,
    path: str | Path,
    *,
    partners: ImageDataset | None = None,
    noisy: int = 25,
    masks: int = 400,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Path:
    """Draw, for pairs of images, which places their similarity comes from: one pair a row.

    Beside each image the exact map of the cosine of the mean-pooled features (red speaks for it, blue against), then
    SmoothGrad and the masking map of that cosine on the first image with the second one fixed.

    Args:
        backbone: A network with ``forward_dense``.
        dataset: Where the first image of each pair comes from.
        pairs: int64 ``[P,2]``: positions of the images.
        path: The picture to write.
        partners: Where the second image of each pair comes from; None is ``dataset``.
        noisy, masks: Samples of SmoothGrad and of the masking map.
        seed: Of the noise and the masks.
        device: Where to compute; None is where the backbone is.
        progress: Show a progress bar.

    Raises:
        UserError: The backbone has no ``forward_dense``.
    """
    if not hasattr(backbone, "forward_dense"):
        raise UserError("backbone: maps of the similarity need a network with forward_dense.")
    dense: Any = backbone.forward_dense
    second_set = dataset if partners is None else partners
    shown = [dataset.read(pairs[:, 0]), second_set.read(pairs[:, 1])]
    channels = input_channels(backbone, dataset)
    size = dataset.image_size
    normalization = getattr(backbone, "normalization", None) or dataset.normalization
    with (
        frozen(backbone, device) as (where, dtype),
        tqdm(total=noisy + masks, desc="similarity", unit="pass", disable=not progress) as bar,
    ):
        first, second = (prepare_images(i.to(where), size, channels, normalization).to(dtype) for i in shown)
        maps1, maps2 = dense(first), dense(second)
        exact = similarity_maps(maps1, maps2)
        target = maps2.mean((2, 3))

        def score(images: Tensor) -> Tensor:
            bar.update()
            return F.cosine_similarity(dense(images).mean((2, 3)), target)

        masked = masking_map(score, first, masks, generator=torch.Generator().manual_seed(seed))
        # tensors made in inference mode cannot take part in a gradient
        with torch.inference_mode(False):
            target = target.clone()
            random = torch.Generator(where).manual_seed(seed)
            gradient = smooth_grad(score, first.clone(), noisy, generator=random).sum(1).sqrt()
    cosines = exact[0].sum((1, 2)).tolist()
    pictures = [prepare_images(i, size, channels).permute(0, 2, 3, 1).clamp(0, 1) for i in shown]
    figure = _figure(1.75 * len(MAPS), 1.9 * len(pairs) + 0.3)
    panels = figure.subplots(len(pairs), len(MAPS), squeeze=False)
    for row in range(len(pairs)):
        columns = (
            (pictures[0], None),
            (pictures[0], exact[0]),
            (pictures[1], None),
            (pictures[1], exact[1]),
            (pictures[0], gradient),
            (pictures[0], masked),
        )
        for column, (picture, overlay) in enumerate(columns):
            _overlay(panels[row, column], picture[row], None if overlay is None else overlay[row].float().cpu())
        panels[row, 0].set_ylabel(f"cosine {cosines[row]:.2f}", fontsize=9)
    for column, name in enumerate(MAPS):
        panels[0, column].set_title(name, fontsize=9)
    return _save(figure, path)


def nearest_similarities(
    backbone: nn.Module,
    bank: FeatureSet,
    bank_images: ImageDataset,
    queries: FeatureSet,
    query_images: ImageDataset,
    path: str | Path,
    *,
    rows: int = 4,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Path:
    """Draw :func:`similarity_picture` of some queries, spaced evenly, and the bank image nearest to each."""
    chosen = torch.linspace(0, len(queries) - 1, min(rows, len(queries))).round().long()
    nearest = search(bank.features, queries.features[chosen], 1)[1][:, 0]
    first = _positions(query_images, queries.index[chosen])
    pairs = torch.stack([first, _positions(bank_images, bank.index[nearest])], 1)
    return similarity_picture(
        backbone, query_images, pairs, path, partners=bank_images, device=device, progress=progress
    )


def _overlay(axes: Any, picture: Tensor, overlay: Tensor | None) -> None:
    axes.set(xticks=[], yticks=[])
    extent = (0, picture.shape[1], picture.shape[0], 0)
    if overlay is None:
        axes.imshow(picture.numpy(), extent=extent)
        return
    grey = picture.mean(2)
    axes.imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1, extent=extent)
    strongest = max(float(overlay.abs().max()), torch.finfo(overlay.dtype).tiny)
    axes.imshow(
        overlay.numpy(),
        cmap="seismic",
        vmin=-strongest,
        vmax=strongest,
        alpha=0.55,
        extent=extent,
        interpolation="nearest",
    )


def _depth(record: Record) -> int:
    return cast(int, record["depth"])
