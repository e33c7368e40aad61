"""Cells of two feature maps that are paired by what they look like or by where they lie, and VICReg of the pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import answer, count, floats, number
from selfsup.functional.collectives import gather, size_of
from selfsup.functional.geometry import location_grid

GLOBAL_VIEWS = 2


def nearest_cells(distance: Tensor, matches: int) -> tuple[Tensor, Tensor]:
    """Return the cells whose nearest partners are nearest of all, and these partners.

    Args:
        distance: ``[B,P,Q]`` from each of P cells to each of Q.
        matches: Pairs to keep of each image; P if there are no more.

    Returns:
        int64 ``[B,M]`` twice, M = min(matches, P): cells, in their order, and the partner of each. Partners may
        repeat.
    """
    nearest, partner = distance.min(dim=2)
    own = nearest.topk(min(matches, distance.shape[1]), dim=1, largest=False).indices.sort(dim=1).values
    return own, partner.gather(1, own)


def spread_penalty(
    z: Tensor,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    eps: float = 1e-4,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """VICReg's variance and covariance over the images, of each place apart, averaged over the places ``[N,M,D]``."""
    z = gather(z, group)
    centred = (z - z.mean(0)).transpose(0, 1)
    covariance = centred.mT @ centred / (len(z) - 1)
    variance = covariance.diagonal(dim1=1, dim2=2)
    hinge = F.relu(1 - (variance + eps).sqrt()).mean()
    apart = covariance.masked_fill(torch.eye(z.shape[2], dtype=torch.bool, device=z.device), 0)
    return variance_weight * hinge + covariance_weight * apart.square().sum((1, 2)).mean() / z.shape[2]


def vicregl_loss(
    maps: Sequence[Tensor],
    to_source: Sequence[Tensor],
    matches: tuple[int, int] = (20, 4),
    weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
    eps: float = 1e-4,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""VICRegL's local criterion: VICReg of cells that look alike, and of cells that lie in one place.

    For a large view i and any other view j, cells are paired four times: each of i with the nearest of j by Euclidean
    distance of features, each of j with the nearest of i, and the :math:`m_1` of i (:math:`m_2` of j) that lie nearest
    to a cell of j (of i) in the source image. Each pairing of M cells gives

    .. math:: \frac{\lambda}{N M D} \lVert x - y \rVert^2 + \frac12 \bigl( S(x) + S(y) \bigr)

    with S the variance and covariance terms, over the images, of each of the M places apart. Those by features are
    averaged, those by places too, the two are added, and all is averaged over the pairs of views.

    Args:
        maps: Embeddings of the cells of each view, ``[N,D,S,S]``, the large views first. Float16 and bfloat16 become
            float32.
        to_source: ``[N,2,3]`` of each view, see ``View``.
        matches: :math:`m_1, m_2`; fewer where a map has fewer cells.
        weights: Of invariance :math:`\lambda`, variance and covariance.
        eps: Added to variances.
        group: Variance and covariance are over the images of all its ranks; None for a single process.

    Returns:
        Scalar. With DDP's mean over ranks, value and gradient are those of one process with all images.

    Raises:
        ValueError: Fewer than two views or images, shapes that do not fit, or a setting out of range.

    Source:
        Bardes et al., "VICRegL: Self-Supervised Learning of Local Visual Features", 2022, with the authors' code
        (facebookresearch/VICRegL, d14c226).
    """
    if len(maps) < GLOBAL_VIEWS or len(maps) != len(to_source):
        raise ValueError("vicregl_loss: maps must hold two views at least, and to_source as many.")
    checked = [
        floats("vicregl_loss", "[N,D,S,S] [N,2,3]", nan=False, **{f"maps[{n}]": m, f"to_source[{n}]": t})
        for n, (m, t) in enumerate(zip(maps, to_source, strict=True))
    ]
    for name, number_of_cells in zip(("matches[0]", "matches[1]"), matches, strict=True):
        count("vicregl_loss", **{name: number_of_cells})
    number("vicregl_loss", above=0, eps=eps)
    invariance, variance, covariance = weights
    number("vicregl_loss", **{"weights[0]": invariance, "weights[1]": variance, "weights[2]": covariance})
    images, width = checked[0][0].shape[:2]
    if images * size_of(group) < 2 or any(m.shape[:2] != (images, width) for m, _ in checked):
        raise ValueError("vicregl_loss: maps need two images at least, and the same images and channels in each view.")
    with torch.autocast(maps[0].device.type, enabled=False):
        cells = [m.flatten(2).mT for m, _ in checked]
        places = [location_grid(t, m.shape[-1]).flatten(1, 2).to(m.dtype) for m, t in checked]
        terms = []
        for i in range(GLOBAL_VIEWS):
            for j in (other for other in range(len(cells)) if other != i):
                for x, y in _pairings(cells[i], cells[j], torch.cdist(places[i], places[j]), matches):
                    spread = [spread_penalty(z, variance, covariance, eps, group) for z in (x, y)]
                    terms.append(invariance * F.mse_loss(x, y) + sum(spread) / 2)
        return answer("vicregl_loss", torch.stack(terms).mean() * 2, "maps")  # two kinds of pairing are added


def _pairings(one: Tensor, other: Tensor, apart: Tensor, matches: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the four pairings, each twice ``[N,M,D]``: by features and by places, from either side."""
    with torch.no_grad():
        unlike = torch.cdist(one, other)
    for distance, (most, most_back) in ((unlike, (one.shape[1], other.shape[1])), (apart, matches)):
        own, partner = nearest_cells(distance, most)
        yield _take(one, own), _take(other, partner)
        own, partner = nearest_cells(distance.mT, most_back)
        yield _take(other, own), _take(one, partner)


def _take(cells: Tensor, index: Tensor) -> Tensor:
    return cells.gather(1, index[..., None].expand(-1, -1, cells.shape[2]))
