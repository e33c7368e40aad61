"""Losses that keep the dimensions of an embedding from saying the same: Barlow Twins, VICReg, VIbCReg, part of All4One.

Over several ranks the statistics are of all images. Either every rank gathers all embeddings, or the ranks add up
their own D × D products: whichever sends less, see :func:`sums_send_less`. The two differ in rounding alone.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import answer, floats, number
from selfsup.functional.collectives import gather_together, size_of, sum_over


def barlow_twins_loss(
    z1: Tensor, z2: Tensor, redundancy_weight: float = 0.0051, eps: float = 1e-5, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""Barlow Twins: the cross-correlation of two views is drawn to the identity.

    .. math:: \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2, \qquad C = \frac{1}{N} \bar z_1^T \bar z_2

    with each dimension of :math:`\bar z` standardised over the images, as BatchNorm does: biased variance plus ``eps``.
    Sums, not means, over the dimensions, as in the authors' code.

    Args:
        z1, z2: Embeddings of the two views ``[N,D]``. Float16 and bfloat16 become float32.
        redundancy_weight: :math:`\lambda`.
        eps: Added to each variance.
        group: Statistics and C are over the images of all its ranks; None for a single process.

    Returns:
        Scalar. Every rank has the whole loss, and DDP's mean gives the single-process gradient.

    Raises:
        ValueError: The views differ in shape, are not ``[N,D]``, or there is one image only.

    Source:
        Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", 2021, equations 1 and 2.
    """
    z1, z2 = _two_views("barlow_twins_loss", z1, z2, group)
    number("barlow_twins_loss", redundancy_weight=redundancy_weight)
    number("barlow_twins_loss", least=0, eps=eps)
    with torch.autocast(z1.device.type, enabled=False):
        (z1, z2), group = _of_all((z1, z2), 1, group)
        total = len(z1) * size_of(group)
        z1, z2 = (_standardised(z, eps, group) for z in (z1, z2))
        correlation = sum_over(z1.T @ z2, group) / total
        on_diagonal = (1 - correlation.diagonal()).square().sum()
        loss = on_diagonal + redundancy_weight * _off_diagonal_square(correlation)
        return answer("barlow_twins_loss", loss, "z1 and z2", "are too large, or do not vary")


def vicreg_loss(
    z1: Tensor,
    z2: Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    eps: float = 1e-4,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""VICReg: views agree, every dimension keeps its spread, and dimensions are uncorrelated.

    .. math:: \lambda \frac{1}{ND} \lVert z_1 - z_2 \rVert^2
              + \mu \frac{1}{2} \sum_v \frac{1}{D} \sum_d \max(0, 1 - \sqrt{\mathrm{Var}(z_{v,d}) + \varepsilon})
              + \nu \sum_v \frac{1}{D} \sum_{i \ne j} \mathrm{Cov}(z_v)_{ij}^2

    Variance and covariance divide by N - 1. The half in the second term and the mean over D in the first are the
    authors' code; the paper's text has neither.

    Args:
        z1, z2: Embeddings of the two views ``[N,D]``, not normalised. Float16 and bfloat16 become float32.
        invariance_weight, variance_weight, covariance_weight: :math:`\lambda, \mu, \nu`.
        eps: :math:`\varepsilon`; keeps the square root's gradient finite when a dimension has collapsed.
        group: Variance and covariance are over the images of all its ranks; None for a single process.

    Returns:
        Scalar. With DDP's mean over ranks, value and gradient are those of one process with all images.

    Raises:
        ValueError: The views differ in shape, are not ``[N,D]``, or there is one image only.

    Source:
        Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", 2022,
        equations 1 to 6.
    """
    z1, z2 = _two_views("vicreg_loss", z1, z2, group)
    weights = {"invariance_weight": invariance_weight, "variance_weight": variance_weight}
    number("vicreg_loss", **weights, covariance_weight=covariance_weight)
    number("vicreg_loss", above=0, eps=eps)
    with torch.autocast(z1.device.type, enabled=False):
        loss = invariance_weight * F.mse_loss(z1, z2)  # of this rank's own images
        views, group = _of_all((z1, z2), 2, group)
        for z in views:
            covariance = _covariance(z, group)
            spread = (covariance.diagonal() + eps).sqrt()
            loss = loss + variance_weight * F.relu(1 - spread).mean() / 2
            loss = loss + covariance_weight * _off_diagonal_square(covariance) / z.shape[1]
        return answer("vicreg_loss", loss, "z1 and z2", "are too large, or do not vary")


def feature_loss(
    embeddings: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""All4One's redundancy term: each feature of a view correlates with itself in the other view, and with no other.

    .. math:: \tfrac12 \sqrt{\tfrac12 \sum_v \tfrac1D \sum_i (C^v_{ii} - 1)^2}
              + \tfrac12 \sqrt{\tfrac12 \sum_v \tfrac{1}{D (D - 1)} \sum_{i \ne j} (C^v_{ij})^2}, \qquad
              C^1 = T_1^T Z_2, \quad C^2 = T_2^T Z_1

    where every column, a feature over the images, has length 1; it is not centred.

    Args:
        embeddings: Z of the two views ``[N,D]``, D from 2 on. Float16 and bfloat16 become float32.
        targets: T of the two views ``[N,D]``. Gradients reach all four: pass targets that carry none.
        group: Features are over the images of all its ranks; None for a single process.

    Returns:
        Scalar. Every rank has the whole loss, and DDP's mean gives the single-process gradient.

    Raises:
        ValueError: Shapes that differ or are not ``[N,D]``.

    Source:
        Estepa et al., "All4One: Symbiotic Neighbour Contrastive Learning via Self-Attention and Redundancy Reduction",
        2023, as in solo-learn.
    """
    named = dict(zip(("z1", "z2", "t1", "t2"), (*embeddings, *targets), strict=True))
    given = floats("feature_loss", "[N,D]", nan=False, **named)
    dim = given[0].shape[1]
    if dim < 2:
        raise ValueError("feature_loss: embeddings need two features or more.")
    with torch.autocast(given[0].device.type, enabled=False):
        z1, z2, t1, t2 = (F.normalize(x, dim=0) for x in gather_together(given, group))
        correlations = torch.stack([t1.T @ z2, t2.T @ z1])
        own = (correlations.diagonal(dim1=1, dim2=2) - 1).square().mean()
        others = torch.stack([_off_diagonal_square(c) for c in correlations]).mean() / (dim * (dim - 1))
        least = torch.finfo(own.dtype).tiny  # the root's slope is infinite at 0
        return (own.clamp_min(least).sqrt() + others.clamp_min(least).sqrt()) / 2


def vibcreg_loss(
    z1: Tensor,
    z2: Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 200.0,
    eps: float = 1e-4,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""VIbCReg: VICReg with correlations in place of covariances, which keeps the third term in scale.

    .. math:: \lambda \frac{1}{ND} \lVert z_1 - z_2 \rVert^2
              + \mu \frac{1}{2} \sum_v \frac{1}{D} \sum_d \max(0, 1 - \sqrt{\mathrm{Var}(z_{v,d}) + \varepsilon})
              + \nu \sum_v \frac{1}{D^2} \sum_{i \ne j} \mathrm{Corr}(z_v)_{ij}^2

    Args:
        z1, z2: Embeddings of the two views ``[N,D]``, not normalised. Float16 and bfloat16 become float32.
        invariance_weight, variance_weight, covariance_weight: :math:`\lambda, \mu, \nu`.
        eps: :math:`\varepsilon`. A dimension that does not vary correlates with none.
        group: Statistics are over the images of all its ranks; None for a single process.

    Returns:
        Scalar. With DDP's mean over ranks, value and gradient are those of one process with all images.

    Raises:
        ValueError: The views differ in shape, are not ``[N,D]``, or there is one image only.

    Source:
        Lee and Aune, "VIbCReg: Variance-Invariance-better-Covariance Regularization for Self-Supervised Learning on
        Time Series", 2021; the mean over all D² entries is that of solo-learn (3551862), as are the weights.
    """
    z1, z2 = _two_views("vibcreg_loss", z1, z2, group)
    weights = {"invariance_weight": invariance_weight, "variance_weight": variance_weight}
    number("vibcreg_loss", **weights, covariance_weight=covariance_weight)
    number("vibcreg_loss", above=0, eps=eps)
    with torch.autocast(z1.device.type, enabled=False):
        loss = invariance_weight * F.mse_loss(z1, z2)  # of this rank's own images
        views, group = _of_all((z1, z2), 2, group)
        for z in views:
            covariance = _covariance(z, group)
            variance = covariance.diagonal()
            scale = variance.clamp_min(1e-24).rsqrt()
            correlation = covariance * scale * scale[:, None]
            loss = loss + variance_weight * F.relu(1 - (variance + eps).sqrt()).mean() / 2
            loss = loss + covariance_weight * _off_diagonal_square(correlation) / z.shape[1] ** 2
        return answer("vibcreg_loss", loss, "z1 and z2", "are too large, or do not vary")


def sums_send_less(images: int, ranks: int, dim: int, matrices: int) -> bool:
    """Return whether ranks send less when they add up D × D products than when they gather the embeddings.

    Around a ring a gather of two views passes :math:`2 N D (W - 1)` numbers over each link, and a sum of ``matrices``
    products :math:`2 D^2 (W - 1) / W` for each; both ways, forward and backward. So sums send less where
    ``matrices · D < N · W``. They also divide the products among the ranks.

    Args:
        images: N, of each rank.
        ranks: W.
        dim: D.
        matrices: Products that the loss has: 1 in Barlow Twins, 2 in VICReg.
    """
    return ranks > 1 and matrices * dim < images * ranks


def _of_all(
    views: tuple[Tensor, ...], matrices: int, group: dist.ProcessGroup | None
) -> tuple[tuple[Tensor, ...], dist.ProcessGroup | None]:
    """Return the views, and the group to sum over: with the images of all ranks and None where those are gathered."""
    count, dim = views[0].shape
    if sums_send_less(count, size_of(group), dim, matrices):
        return views, group
    return gather_together(views, group), None


def _mean(z: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    return z.mean(0) if group is None else sum_over(z.sum(0), group) / (len(z) * size_of(group))


def _standardised(z: Tensor, eps: float, group: dist.ProcessGroup | None) -> Tensor:
    centred = z - _mean(z, group)
    variance = z.var(0, correction=0) if group is None else _mean(centred.square(), group)
    return centred * (variance + eps).rsqrt()


def _covariance(z: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the covariance ``[D,D]`` of the embeddings of all ranks, which divides by N - 1."""
    centred = z - _mean(z, group)
    return sum_over(centred.T @ centred, group) / (len(z) * size_of(group) - 1)


def _off_diagonal_square(matrix: Tensor) -> Tensor:
    """Return the sum of squares off the diagonal; without subtracting, which would lose what is small."""
    return matrix.square().fill_diagonal_(0).sum()


def _two_views(function: str, z1: Tensor, z2: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, ...]:
    views = floats(function, "[N,D]", z1=z1, z2=z2)
    if len(z1) * size_of(group) < 2:
        raise ValueError(f"{function}: z1 and z2 need at least two images, as the statistics are over the batch.")
    return views
