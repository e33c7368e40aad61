"""Scores of saliency maps: does a map say what the score does, and does it stay when nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from selfsup.functional.arguments import count, floats, kind, number

TINY = 1e-12


def infidelity(changes: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Return how badly a map predicts what perturbations do to a score, for each image: ``[B]`` twice.

    ``E_I[(β I·Φ - (s(x) - s(x - I)))²]`` with the best scale ``β = E[Δs I·Φ] / E[(I·Φ)²]`` (Yeh et al., "On the
    (In)fidelity and Sensitivity of Explanations", arXiv:1901.09392). β is kept at 0 or above here, so that a map
    that says the opposite earns nothing, where the authors' code lets it change the sign.

    Args:
        changes: float ``[M,B]``: s(x) - s(x - I) of M perturbations.
        predicted: float ``[M,B]``: I·Φ.

    Returns:
        The infidelity, and the same divided by ``E[Δs²]``: 0 where the map says the changes exactly, up to a factor,
        1 where it says nothing of them. Without any change both are 0.

    Raises:
        ValueError: The shapes differ.
    """
    changes, predicted = floats("infidelity", "[M,B]", changes=changes, predicted=predicted)
    tiny = torch.finfo(changes.dtype).tiny
    squares = changes.square().mean(0)
    scale = ((changes * predicted).mean(0) / predicted.square().mean(0).clamp_min(tiny)).clamp_min(0)
    rest = (scale * predicted - changes).square().mean(0)
    return rest, rest / squares.clamp_min(tiny)


def max_sensitivity(
    explain: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    radius: float,
    samples: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return how much a map changes at most when the image changes by a little: ``[B]``.

    ``max_{‖δ‖∞ ≤ r} ‖Φ(x + δ) - Φ(x)‖ / ‖Φ(x)‖``, the maximum over uniform draws of δ (arXiv:1901.09392).

    Args:
        explain: Maps images ``[B,C,H,W]`` to maps ``[B,h,w]``.
        images: float ``[B,C,H,W]``.
        maps: float ``[B,h,w]``: ``explain(images)``.
        radius: r, in the unit of the images.
        samples: Draws; the maximum over more is larger.
        generator: Of the draws, on the CPU; None is the global one.

    Raises:
        ValueError: Shapes that do not fit, or a setting out of range.
    """
    images, _ = floats("max_sensitivity", "[B,C,H,W] [B,h,w]", images=images, maps=maps)
    number("max_sensitivity", least=0, radius=radius)
    count("max_sensitivity", samples=samples)
    length = torch.linalg.vector_norm(maps.flatten(1), dim=1)
    worst = torch.zeros_like(length)
    for _ in range(samples):
        noise = (torch.rand(images.shape, generator=generator) * 2 - 1).to(images) * radius
        moved = torch.linalg.vector_norm((explain(images + noise) - maps).flatten(1), dim=1)
        worst = torch.maximum(worst, moved / length.clamp_min(TINY))
    return worst


def information_area(information: Tensor, response: Tensor) -> Tensor:
    """Return the area under the response over the information that is shown, for each image: ``[B]``, from 0 to 1.

    Both run from 0 (all is blurred) to 1 (the image); the response counts from the least information that reaches it
    on, so that it never falls, and lines join the points (Kapishnikov et al., arXiv:1906.02825, performance
    information curves; google-research's code keeps the response from falling too).

    Args:
        information: float ``[P,B]``, in [0, 1], of P images that show more and more.
        response: float ``[P,B]``, in [0, 1].

    Raises:
        ValueError: The shapes differ, or values outside [0, 1].
    """
    information, response = floats("information_area", "[P,B]", information=information, response=response)
    for name, values in (("information", information), ("response", response)):
        if values.device.type == "cpu" and (values.min() < 0 or values.max() > 1):
            raise ValueError(f"information_area: {name} must be from 0 to 1.")
    ends = torch.zeros_like(information[:1])
    x, order = torch.cat([ends, information]).sort(dim=0, stable=True)
    y = torch.cat([ends, response]).gather(0, order).cummax(0).values
    x, y = torch.cat([x, ends + 1]), torch.cat([y, ends + 1])
    return torch.trapezoid(y, x, dim=0)


def separation(maps: Tensor, inside: Tensor) -> Tensor:
    """Return how often a pixel inside an object has a larger value than one outside: ``[B]``; ½ is chance.

    The area under the receiver operating characteristic; equal values count half. An image that is all object or none
    gives NaN.

    Args:
        maps: float ``[B,H,W]``.
        inside: bool ``[B,H,W]``.

    Raises:
        ValueError: Shapes that do not fit.
    """
    (maps,) = floats("separation", "[B,H,W]", maps=maps)
    right = isinstance(inside, Tensor) and inside.dtype == torch.bool and inside.shape == maps.shape
    if not right or inside.device != maps.device or inside.is_sparse:
        raise ValueError(f"separation: inside must be bool {list(maps.shape)}, got {kind(inside)}.")
    areas = []
    for values, own in zip(maps.flatten(1), inside.flatten(1), strict=True):
        _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
        rank = counts.cumsum(0) - (counts - 1) / 2  # the mean of equal ones
        first, second = own.sum().double(), (~own).sum().double()
        above = rank.double()[place[own]].sum() - first * (first + 1) / 2
        areas.append((above / (first * second)).to(maps.dtype))
    return torch.stack(areas)
