"""Where the object of an image is, told by nothing but the similarities of its patches: LOST and TokenCut."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.functional.arguments import count, floats, is_count, number

WEAK = 1e-5  # weight of an edge between unlike patches, which keeps the graph in one piece


def lost(keys: Tensor, grid: tuple[int, int], candidates: int = 100) -> Tensor:
    """Return the object of each image by LOST: bool ``[N,h,w]``.

    The seed is the patch that fewest others are positively correlated with, ``k_i · k_j > 0``, as objects are smaller
    than what is around them. Of the ``candidates`` patches with the fewest, those correlated with the seed vote; the
    object is where ``Σ_s k_s · k_j > 0``, as far as it is connected to the seed by sides (Siméoni et al., "Localizing
    Objects with Self-Supervised Transformers and no Labels", arXiv:2109.14279). Of equal patches the first one is
    taken.

    Args:
        keys: float ``[N,L,D]``, of the patches, row by row of the grid; not normalised and not centred here.
        grid: Rows and columns, ``L`` together.
        candidates: Patches that may vote, 100 in the paper, whose images have some 600.

    Raises:
        ValueError: Another shape, or a grid of another number of patches.
    """
    (keys,) = floats("lost", "[N,L,D]", keys=keys)
    count("lost", candidates=candidates)
    _check_grid("lost", keys.shape[1], grid)
    with torch.autocast(keys.device.type, enabled=False):
        affinity = keys @ keys.transpose(1, 2)
        like = affinity > 0
        degree = like.sum(2) - like.diagonal(dim1=1, dim2=2).long()
        order = degree.argsort(dim=1, stable=True)
        seed = order[:, 0]
        rows = torch.arange(len(keys), device=keys.device)
        may = torch.zeros_like(degree, dtype=torch.bool).scatter_(1, order[:, :candidates], True)
        votes = (may & like[rows, seed]).to(affinity.dtype)
        found = torch.einsum("nl,nlm->nm", votes, affinity) > 0
    return connected(found.view(-1, *grid), seed)


def token_cut(features: Tensor, grid: tuple[int, int], threshold: float = 0.2) -> Tensor:
    """Return the object of each image by TokenCut: bool ``[N,h,w]``.

    Patches are the nodes of a graph with edges of 1 where their cosine is above the threshold, and of 1e-5 elsewhere.
    The second smallest eigenvector of ``(D - A) v = λ D v``, the normalised cut, is split at its mean; the object is on
    the side of its largest absolute value, as far as it is connected to that patch by sides (Wang et al.,
    "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut", arXiv:2202.11539). Where all
    patches are alike, or all unlike, nothing can be cut, and there is no object.

    Args:
        features: float ``[N,L,D]``, of the patches, row by row of the grid; the paper takes the keys of the last block.
        grid: Rows and columns, ``L`` together.
        threshold: Of the cosine.

    Raises:
        ValueError: Another shape, or a grid of another number of patches.
    """
    (features,) = floats("token_cut", "[N,L,D]", features=features)
    number("token_cut", threshold=threshold)
    _check_grid("token_cut", features.shape[1], grid)
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.double(), dim=2)
        like = unit @ unit.transpose(1, 2) > threshold
        weights = torch.where(like, 1.0, WEAK).to(unit)
        scale = weights.sum(2).rsqrt()
        # D^-1/2 A D^-1/2 has the same eigenvectors up to D^1/2, the largest eigenvalue first in place of the smallest
        _, vectors = torch.linalg.eigh(scale[:, :, None] * weights * scale[:, None])
        cut = vectors[:, :, -2] * scale if features.shape[1] > 1 else torch.zeros_like(scale)
        seed = cut.abs().argmax(1)
        above = cut > cut.mean(1, keepdim=True)
        found = torch.where(above.gather(1, seed[:, None]), above, ~above)
        edges = like.sum((1, 2))
        plain = (edges == like.shape[1] ** 2) | (edges == like.diagonal(dim1=1, dim2=2).sum(1))
    return connected(found.view(-1, *grid), seed) & ~plain[:, None, None]


def connected(mask: Tensor, seed: Tensor) -> Tensor:
    """Return the part of each mask that is connected to a place by sides; nothing where the place is not in the mask.

    Args:
        mask: bool ``[N,h,w]``.
        seed: int64 ``[N]``, places row by row.
    """
    rows, columns = mask.shape[1:]
    reached = torch.zeros_like(mask).flatten(1).scatter_(1, seed[:, None], True).view_as(mask) & mask
    for _ in range(rows * columns):
        grown = reached.clone()
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown[:, :, 1:] |= reached[:, :, :-1]
        grown[:, :, :-1] |= reached[:, :, 1:]
        grown &= mask
        if torch.equal(grown, reached):
            break
        reached = grown
    return reached


def _check_grid(function: str, length: int, grid: tuple[int, int]) -> None:
    if len(grid) != 2 or not all(map(is_count, grid)) or grid[0] * grid[1] != length:
        raise ValueError(f"{function}: grid must be the rows and columns of {length} patches, got {grid}.")
