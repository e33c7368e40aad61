"""Patch retrieval: for places of one image, the places of other images that a frozen network finds most alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder
from selfsup.eval.features import check_finite, positions_of


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
    encoder: Encoder,
    queries: ImageDataset,
    cells: Tensor,
    gallery: ImageDataset | None = None,
    *,
    k: int = 5,
) -> PatchMatches:
    """Find, for cells of some images, the ``k`` other images with the most similar cell, and that cell.

    Similarity is the cosine of the features of two cells. Of each image only its best cell counts, as the places beside
    it would otherwise take up the answer. An image does not match itself. The gallery passes batch by batch: memory
    holds the maps of a batch, whatever its size. Equal ones are in the order of the gallery.

    Args:
        encoder: A network with ``forward_dense``, and how to run it.
        queries: Images the cells are of.
        cells: int64 ``[Q,3]``: position in ``queries``, row and column in the feature map; ``(y, x)`` of the image's
            evaluation crop is row ``⌊h·y⌋`` and column ``⌊w·x⌋`` of a map of ``h`` × ``w``, both in [0, 1).
        gallery: Images to look in; None is ``queries``.
        k: Number of matches of each cell.

    Raises:
        UserError: No dense features, features that are not finite, cells outside the images or the map, or fewer than
            ``k`` other images.
    """
    gallery = queries if gallery is None else gallery
    if not hasattr(encoder.network, "forward_dense"):
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
    with replace(encoder, progress=False).maps(queries.subset(asked)) as batches:
        maps = torch.cat([maps.cpu() for maps, _ in batches])
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

    with encoder.maps(gallery) as batches:
        for maps, index in batches:
            compare(maps, index)
    if best.shape[1] < k or not bool(best.isfinite().all()):
        raise UserError(f"k is {k} and fewer images of the gallery can be decoded; lower it.")
    where = positions_of(gallery, found[..., 0].flatten().contiguous()).view(found.shape[:2])
    matches = torch.stack([where, found[..., 1] // map_size[1], found[..., 1] % map_size[1]], 2)
    return PatchMatches(cells, matches, best, map_size)
