"""Measures of a representation that need no labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2048  # rows of the pairwise table held at once


def alignment(z1: Tensor, z2: Tensor, alpha: float = 2) -> Tensor:
    """Return the mean distance of the two views of an image, to the power ``alpha``; 0 is perfect.

    ``mean_i ‖u_i - v_i‖^α`` with ``u, v`` the L2-normalised rows (Wang and Isola, "Understanding Contrastive
    Representation Learning through Alignment and Uniformity on the Hypersphere", arXiv:2005.10242).

    Args:
        z1, z2: float ``[N,D]``; row ``i`` of both comes from image ``i``.
        alpha: The power, above 0.

    Raises:
        ValueError: The shapes differ.
    """
    if z1.shape != z2.shape:
        raise ValueError(f"views of shape {list(z1.shape)} and {list(z2.shape)}")
    distance: Tensor = torch.linalg.vector_norm(_normalize(z1) - _normalize(z2), dim=1)
    return distance.pow(alpha).mean()


def uniformity(z: Tensor, t: float = 2) -> Tensor:
    """Return how far the features spread over the sphere: 0 is collapse, lower is more even.

    ``log mean_{i≠j} exp(-t ‖u_i - u_j‖²)`` over distinct pairs, with ``u`` the L2-normalised rows (arXiv:2005.10242).
    An orthonormal set gives ``-2t``.

    Args:
        z: float ``[N,D]``.
        t: Sharpness of the kernel.

    Raises:
        ValueError: Fewer than two rows.
    """
    count = len(z)
    if count < 2:
        raise ValueError("uniformity needs at least two rows")
    u = _normalize(z)
    sums = []
    with torch.autocast(z.device.type, enabled=False):
        for start in range(0, count - 1, BLOCK):
            rows = u[start : start + BLOCK]
            exponents = -2 * t * (1 - rows @ u[start:].T)
            later = torch.ones_like(exponents, dtype=torch.bool).triu(1)
            sums.append(exponents[later].logsumexp(0))
        return torch.stack(sums).logsumexp(0) - math.log(count * (count - 1) / 2)


def rank_me(features: Tensor) -> Tensor:
    """Return the effective rank of the features: from 1 (all on one line) to ``min(N, D)``.

    ``exp(-Σ_k p_k log p_k)`` with ``p_k = σ_k / ‖σ‖₁ + 1e-7`` and ``σ`` the singular values of the features as they
    come, neither centred nor normalised (Garrido et al., "RankMe", arXiv:2210.02885). The paper takes 25,600 images
    and compares runs of one method.

    Args:
        features: float ``[N,D]``.
    """
    sigma: Tensor = torch.linalg.svdvals(_at_least_float32(features))
    p = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny) + 1e-7
    return (-(p * p.log()).sum()).exp()


def feature_std(features: Tensor) -> Tensor:
    """Return the mean over dimensions of the standard deviation of the L2-normalised features.

    0 is collapse; ``sqrt(1/D)`` is reached by features spread evenly over the sphere (Chen and He, "Exploring Simple
    Siamese Representation Learning", arXiv:2011.10566).

    Args:
        features: float ``[N,D]``.
    """
    return _normalize(features).std(0, correction=0).mean()


def _normalize(z: Tensor) -> Tensor:
    return F.normalize(_at_least_float32(z), dim=1)


def _at_least_float32(z: Tensor) -> Tensor:
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
