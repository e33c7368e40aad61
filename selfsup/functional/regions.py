"""Saliency by regions: a segmentation of the image at several scales, and the order of its regions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.functional.arguments import count, floats, kind, number
from selfsup.functional.attribution import blurred


def graph_segments(image: Tensor, scale: float, sigma: float = 0.8, smallest: int = 150) -> Tensor:
    """Return a segmentation of an image: int64 ``[H,W]``, numbers from 0.

    Pixels are the nodes of a graph, neighbours (eight of them) are joined in the order of their difference where it
    is at most what differs inside either segment, plus ``scale`` over its size; segments below ``smallest`` are then
    joined to what is most alike (Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", 2004).

    Args:
        image: float ``[C,H,W]``; in units of which 255 is white, divided by 255, as scikit-image takes it: at [0, 1] a
            scale of 100 means 100.
        scale: The larger, the larger the segments.
        sigma: Of the Gaussian that smoothes the image first; 0 leaves it.
        smallest: Least pixels of a segment.

    Raises:
        ValueError: Another shape, or a setting out of range.
    """
    (image,) = floats("graph_segments", "[C,H,W]", image=image)
    number("graph_segments", least=0, scale=scale, sigma=sigma)
    count("graph_segments", smallest=smallest)
    height, width = image.shape[1:]
    if sigma > 0 and min(height, width) > 1:
        half = min(max(1, round(4 * sigma)), height - 1, width - 1)
        image = blurred(image[None], 2 * half + 1, sigma)[0]
    pixel = torch.arange(height * width).view(height, width)
    pairs, costs = [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows, left = slice(0, height - down), slice(max(0, -right), width - max(0, right))
        other = slice(down, height), slice(max(0, right), width + min(0, right))
        pairs.append(torch.stack([pixel[rows, left].flatten(), pixel[other].flatten()], 1))
        costs.append(torch.linalg.vector_norm(image[:, rows, left] - image[:, other[0], other[1]], dim=0).flatten())
    cost, order = torch.cat(costs).cpu().sort(stable=True)
    edges = torch.cat(pairs)[order].tolist()
    differences = cost.tolist()
    segments = _Segments(height * width)
    threshold = scale / 255
    for (a, b), difference in zip(edges, differences, strict=True):
        a, b = segments.of(a), segments.of(b)
        if a != b and difference <= min(segments.inner[s] + threshold / segments.size[s] for s in (a, b)):
            segments.join(a, b, difference)
    for a, b in edges:
        a, b = segments.of(a), segments.of(b)
        if a != b and min(segments.size[a], segments.size[b]) < smallest:
            segments.join(a, b, 0.0)
    roots = torch.tensor([segments.of(node) for node in range(height * width)])
    numbers: Tensor = torch.unique(roots, return_inverse=True)[1]
    return numbers.view(height, width)


class _Segments:
    """Sets of nodes that are joined, with their size and the largest difference inside."""

    def __init__(self, nodes: int) -> None:
        self.parent = list(range(nodes))
        self.size = [1] * nodes
        self.inner = [0.0] * nodes

    def of(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def join(self, a: int, b: int, difference: float) -> None:
        if self.size[a] < self.size[b]:
            a, b = b, a
        self.parent[b] = a
        self.size[a] += self.size[b]
        self.inner[a] = max(self.inner[a], self.inner[b], difference)


def widened(masks: Tensor, radius: int) -> Tensor:
    """Return masks, bool ``[K,H,W]``, grown by a disc of so many pixels.

    Raises:
        ValueError: Another type or shape.
    """
    _check_masks("widened", masks)
    count("widened", least=0, radius=radius)
    x = torch.arange(-radius, radius + 1, device=masks.device)
    disc = (x.square()[:, None] + x.square() <= radius**2).float()
    grown: Tensor = F.conv2d(masks.float()[:, None], disc[None, None], padding=radius)[:, 0]
    return grown > 0.5


def region_order(attribution: Tensor, masks: Tensor, fewest: int = 50) -> Tensor:
    """Return saliency by regions: ``[H,W]``, the share of pixels that are not more salient; 1 is the first region.

    Again and again the region is added whose pixels that are not covered yet have the largest mean attribution; one
    that adds fewer than ``fewest`` pixels is left out, and what no region covers comes last (Kapishnikov et al., "XRAI:
    Better Attributions Through Regions", arXiv:1906.02825).

    Args:
        attribution: float ``[H,W]``.
        masks: bool ``[K,H,W]``: the regions, which may overlap.
        fewest: New pixels that a region must add.

    Raises:
        ValueError: Shapes that do not fit.
    """
    (attribution,) = floats("region_order", "[H,W]", attribution=attribution)
    _check_masks("region_order", masks, tuple(attribution.shape))
    count("region_order", fewest=fewest)
    regions, values = masks.flatten(1).to(attribution.dtype), attribution.flatten()
    covered = torch.zeros_like(values, dtype=torch.bool)
    order = torch.zeros_like(values)
    left = values.numel()
    while True:
        new = regions * ~covered
        sizes = new.sum(1)
        gains = torch.where(sizes >= fewest, new @ values / sizes.clamp_min(1), -torch.inf)
        best = int(gains.argmax())
        if gains[best] == -torch.inf:
            break
        added = new[best] > 0
        order[added] = left / values.numel()
        covered |= added
        left = int((~covered).sum())
    order[~covered] = left / values.numel()
    return order.view(attribution.shape)


def _check_masks(function: str, masks: Tensor, size: tuple[int, ...] | None = None) -> None:
    right = isinstance(masks, Tensor) and masks.dtype == torch.bool and masks.ndim == 3 and masks.numel() > 0
    if not right or masks.is_sparse or masks.is_meta or (size is not None and tuple(masks.shape[1:]) != size):
        wanted = "[K,H,W]" if size is None else f"[K,{size[0]},{size[1]}]"
        raise ValueError(f"{function}: masks must be bool {wanted}, got {kind(masks)}.")
