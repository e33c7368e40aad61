"""Which part of an image a similarity comes from: exact maps, smoothed gradients and masking."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.functional.arguments import count, floats, looks_at, number


def similarity_maps(features1: Tensor, features2: Tensor) -> tuple[Tensor, Tensor]:
    """Split the cosine of two mean-pooled embeddings over the places of each image, exactly.

    With ``p`` the spatial mean of a map ``F``: ``H1(x) = F1(x) · p2 / (‖p1‖ ‖p2‖ S²)``, and the like for the second
    image. Each map sums to ``cos(p1, p2)`` (Stylianou et al., "Visualizing Deep Similarity Networks",
    arXiv:1901.00536). It holds for the features before any head and for networks that pool by the mean.

    Args:
        features1, features2: float ``[B,D,S,S]``; the sides may differ between the two.

    Returns:
        Two maps ``[B,S,S]``. Negative places speak against the similarity.

    Raises:
        ValueError: Another number of images or dimensions; on a CPU also an image whose mean is zero.
    """
    features1, features2 = floats(
        "similarity_maps", "[B,D,H1,W1] [B,D,H2,W2]", features1=features1, features2=features2
    )
    pooled1, pooled2 = features1.mean((2, 3)), features2.mean((2, 3))
    lengths = torch.linalg.vector_norm(pooled1, dim=1) * torch.linalg.vector_norm(pooled2, dim=1)
    if looks_at(lengths) and not lengths.all():
        raise ValueError(
            "similarity_maps: features1 or features2 has an image whose mean is zero, which has no cosine."
        )
    scale: Tensor = lengths.clamp_min(torch.finfo(lengths.dtype).tiny)[:, None, None]

    def share(features: Tensor, other: Tensor) -> Tensor:
        shares: Tensor = torch.einsum("bdhw,bd->bhw", features, other)
        area = features.shape[2] * features.shape[3]
        return shares / scale / area

    return share(features1, pooled2), share(features2, pooled1)


def smooth_grad(
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    samples: int = 25,
    noise: float = 0.15,
    squared: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the gradient of a score by the pixels, averaged over noisy copies of the images: ``[B,C,H,W]``.

    ``1/n Σ g(x + ε)²``, or of ``g`` itself, with ``g = ∂ score / ∂x`` and ``ε ~ N(0, σ²)``, ``σ = noise · (max x -
    min x)`` of each image (Smilkov et al., "SmoothGrad: removing noise by adding noise", arXiv:1706.03825).

    Args:
        score: Maps images ``[B,C,H,W]`` to one number each, ``[B]``: for an embedding, its cosine with a reference.
            The score of an image may depend on that image alone.
        images: float ``[B,C,H,W]``, as the network takes them.
        samples: n, at least 1.
        noise: Share of an image's range of values.
        squared: Average the squares of the gradients, which keeps opposite ones from cancelling.
        generator: Of the noise, on the device of the images; None is the global one.

    Raises:
        ValueError: ``samples`` below 1, or a score of another shape.
    """
    floats("smooth_grad", "[B,C,H,W]", images=images)
    count("smooth_grad", samples=samples)
    number("smooth_grad", least=0, noise=noise)
    source = images.detach()
    spread = noise * (source.amax((1, 2, 3), keepdim=True) - source.amin((1, 2, 3), keepdim=True))
    total = torch.zeros_like(source)
    for _ in range(samples):
        random = torch.randn(source.shape, generator=generator, dtype=source.dtype, device=source.device)
        with torch.enable_grad():
            copy = (source + spread * random).requires_grad_()
            values = score(copy)
            if values.shape != source.shape[:1]:
                raise ValueError(
                    f"the score has shape {list(values.shape)} for {len(source)} images; give one an image"
                )
            (gradient,) = torch.autograd.grad(values.sum(), copy)
        total += gradient.square() if squared else gradient
    return total / samples


def masking_map(
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    masks: int = 1000,
    grid: int = 8,
    keep: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return how much seeing each pixel raises a score, from random masks: ``[B,H,W]``.

    A mask is a random ``grid × grid`` pattern, each cell seen with probability ``keep``, enlarged bilinearly with a
    random shift; hidden pixels take the image's mean colour. The map is
    ``Σ_m (s_m - s̄)(M_m - M̄) / (N keep (1 - keep))``: the change of the score with a pixel's
    visibility (Petsiuk et al., RISE, arXiv:1806.07421, and for embeddings D-RISE, arXiv:2006.03204). Those weigh the
    masks by the score itself; taking the means off removes the part of the map that only counts how often a pixel
    was seen.

    Args:
        score: As in :func:`smooth_grad`; nothing but its values is used.
        images: float ``[B,C,H,W]``. All get the same masks.
        masks: N; the error of the map falls with its square root.
        grid: Cells along a side of the pattern.
        keep: Probability that a cell is seen, in (0, 1).
        generator: Of the masks, on the CPU; None is the global one.

    Raises:
        ValueError: Fewer than two masks, an empty grid, or ``keep`` outside (0, 1).
    """
    floats("masking_map", "[B,C,H,W]", images=images)
    count("masking_map", 2, masks=masks)
    count("masking_map", grid=grid)
    number("masking_map", above=0, below=1, keep=keep)
    height, width = images.shape[-2:]
    fill = images.mean((2, 3), keepdim=True)
    sizes = len(images), height, width
    both, seen, scores = images.new_zeros(sizes), images.new_zeros(height, width), images.new_zeros(len(images))
    for _ in range(masks):
        mask = _mask(height, width, grid, keep, generator).to(images)
        with torch.no_grad():
            values = score(torch.lerp(fill, images, mask))
        both += values[:, None, None] * mask
        seen += mask
        scores += values
    return (both / masks - scores[:, None, None] / masks * seen / masks) / (keep * (1 - keep))


def _mask(height: int, width: int, grid: int, keep: float, generator: torch.Generator | None) -> Tensor:
    """Return float ``[H,W]`` in [0, 1]: a pattern one cell larger than needed, enlarged and cut at a random place."""
    pattern = (torch.rand(1, 1, grid + 1, grid + 1, generator=generator) < keep).float()
    cell = -(-height // grid), -(-width // grid)
    large = F.interpolate(pattern, scale_factor=(float(cell[0]), float(cell[1])), mode="bilinear", align_corners=False)
    top, left = (int(torch.randint(side, (), generator=generator)) for side in cell)
    return large[0, 0, top : top + height, left : left + width]
