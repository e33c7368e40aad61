"""Patch retrieval: for places of one image, the places of other images that a frozen network finds most alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.features import check_finite, prepare_images
from selfsup.eval.figures import _figure, _positions, _save
from selfsup.eval.segmentation import visit_maps

FRAME = "#ff7f0e"


@dataclass(frozen=True)
class PatchMatches:
    """The most similar cells, one of each image.

    Attributes:
        cells: int64 ``[Q,3]``: what was asked for: position of the image in the queries, row and column in the map.
        matches: int64 ``[Q,k,3]``: position of the image in the gallery, row and column; most similar first.
        similarity: float32 ``[Q,k]``, cosine.
        map_size: (height, width) of the feature map.
    """

    cells: Tensor
    matches: Tensor
    similarity: Tensor
    map_size: tuple[int, int]


def retrieve_patches(
    backbone: nn.Module,
    queries: ImageDataset,
    cells: Tensor,
    gallery: ImageDataset | None = None,
    *,
    k: int = 5,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> PatchMatches:
    """Find, for cells of some images, the ``k`` other images with the most similar cell, and that cell.

    Similarity is the cosine of the features of two cells. Of each image only its best cell counts, as the places beside
    it would otherwise take up the answer. An image is no match of itself. The gallery passes batch by batch: memory
    holds the maps of a batch, whatever its size. Equal ones are in the order of the gallery.

    Args:
        backbone: A network with ``forward_dense``.
        queries: Images the cells are of.
        cells: int64 ``[Q,3]``: position in ``queries``, row and column in the feature map; ``(y, x)`` of the image's
            evaluation crop is row ``⌊h·y⌋`` and column ``⌊w·x⌋`` of a map of ``h`` × ``w``, both in [0, 1).
        gallery: Images to look in; None is ``queries``.
        k: Number of matches of each cell.
        batch_size: Images in a forward pass.
        workers, device, progress: As ``extract_features``.

    Raises:
        UserError: No dense features, features that are not finite, cells outside the images or the map, or fewer than
            ``k`` other images.
    """
    gallery = queries if gallery is None else gallery
    if not hasattr(backbone, "forward_dense"):
        raise UserError("backbone: patch retrieval needs a network with forward_dense.")
    if cells.ndim != 2 or cells.shape[1] != 3 or not len(cells):
        raise UserError(f"cells: give image, row and column of at least one cell, [Q,3], not {list(cells.shape)}.")
    if int(cells.min()) < 0 or int(cells[:, 0].max()) >= len(queries):
        raise UserError(f"cells: there is no such image; positions are 0 to {len(queries) - 1}, rows and columns 0 on.")
    one_source = (gallery.name, gallery.split) == (queries.name, queries.split)
    others = len(gallery) - int(one_source and bool(torch.isin(queries.index[cells[:, 0]], gallery.index).any()))
    if not 1 <= k <= others:
        raise UserError(f"k is {k} and the gallery has {others} other images; set it between 1 and {others}.")

    asked, place = torch.unique(cells[:, 0], return_inverse=True)
    pieces: list[Tensor] = []
    visit_maps(
        backbone,
        queries.subset(asked),
        lambda m, _: pieces.append(m.cpu()),
        batch_size,
        workers,
        device,
        progress=False,
    )
    maps = torch.cat(pieces)
    check_finite(maps.flatten(1), f"feature maps of '{queries.name}'")
    if len(maps) < len(asked):
        raise UserError("cells: an image they are of cannot be decoded; choose cells of other images.")
    map_size = (maps.shape[2], maps.shape[3])
    if int(cells[:, 1].max()) >= map_size[0] or int(cells[:, 2].max()) >= map_size[1]:
        raise UserError(f"cells: the map has {map_size[0]} rows and {map_size[1]} columns; choose cells inside it.")
    wanted = F.normalize(maps[place, :, cells[:, 1], cells[:, 2]], dim=1)
    own = queries.index[cells[:, 0]]

    best = torch.zeros(len(cells), 0)
    found = torch.zeros(len(cells), 0, 2, dtype=torch.long)  # index of the image, cell

    def compare(maps: Tensor, index: Tensor) -> None:
        nonlocal best, found
        check_finite(maps.flatten(1), f"feature maps of '{gallery.name}'")
        cosines = torch.einsum("qd,ndc->qnc", wanted, F.normalize(maps.cpu().flatten(2), dim=1))
        value, cell = cosines.max(2)
        if one_source:
            value = value.masked_fill(own[:, None] == index, -math.inf)
        here = torch.stack([index.expand_as(cell), cell], 2)
        # earlier images stand first and the sort is stable, so that equal ones stay in their order
        best, order = torch.cat([best, value], 1).sort(dim=1, descending=True, stable=True)
        found = torch.cat([found, here], 1).gather(1, order[..., None].expand(-1, -1, 2))[:, :k]
        best = best[:, :k]

    visit_maps(backbone, gallery, compare, batch_size, workers, device, progress)
    if best.shape[1] < k or not bool(best.isfinite().all()):
        raise UserError(f"k is {k} and fewer images of the gallery can be decoded; lower it.")
    where = _positions(gallery, found[..., 0].flatten().contiguous()).view(found.shape[:2])
    matches = torch.stack([where, found[..., 1] // map_size[1], found[..., 1] % map_size[1]], 2)
    return PatchMatches(cells, matches, best, map_size)


def patches_picture(
    found: PatchMatches, queries: ImageDataset, path: str | Path, *, gallery: ImageDataset | None = None
) -> Path:
    """Draw each image with its cell framed, and beside it the matches with theirs: one cell a row.

    Args:
        found: What ``retrieve_patches`` gave for these ``queries`` and this ``gallery``.
        queries: Images the cells are of.
        path: The picture to write.
        gallery: Where the matches are; None is ``queries``.
    """
    gallery = queries if gallery is None else gallery
    rows, columns = found.similarity.shape
    figure = _figure(1.35 * (columns + 1), 1.5 * rows + 0.25)
    panels = figure.subplots(rows, columns + 1, squeeze=False)
    for row in range(rows):
        _framed(panels[row, 0], queries, found.cells[row], found.map_size)
        for column in range(columns):
            _framed(panels[row, column + 1], gallery, found.matches[row, column], found.map_size)
            panels[row, column + 1].set_title(f"{found.similarity[row, column]:.2f}", fontsize=8, pad=2)
    panels[0, 0].set_title("cell", fontsize=9, pad=2)
    return _save(figure, path)


def _framed(axes: Any, dataset: ImageDataset, cell: Tensor, map_size: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    position, row, column = cell.tolist()
    image = prepare_images(dataset.read(torch.tensor([position])), dataset.image_size, dataset.channels)[0]
    # edges of the image are 0 and 1, so that the frame needs no pixels
    axes.imshow(
        image.permute(1, 2, 0).squeeze(-1).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, extent=(0, 1, 1, 0)
    )
    corner = (column / map_size[1], row / map_size[0])
    axes.add_patch(Rectangle(corner, 1 / map_size[1], 1 / map_size[0], fill=False, edgecolor=FRAME, linewidth=2))
    axes.set(xticks=[], yticks=[])
