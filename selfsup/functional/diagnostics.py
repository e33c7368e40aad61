"""Measures of a representation that need no labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.functional.arguments import count, floats, integers, looks_at, number

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
    z1, z2 = floats("alignment", "[N,D]", z1=z1, z2=z2)
    number("alignment", above=0, alpha=alpha)
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
    (z,) = floats("uniformity", "[N,D]", z=z)
    number("uniformity", t=t)
    images = len(z)
    if images < 2:
        raise ValueError("uniformity: z must have at least two rows.")
    u = _normalize(z)
    # a row of zeros has no direction and stays in the middle of the sphere
    length = (torch.linalg.vector_norm(z, dim=1) / 1e-12).clamp_max(1).square()
    sums = []
    with torch.autocast(z.device.type, enabled=False):
        for start in range(0, images - 1, BLOCK):
            rows = u[start : start + BLOCK]
            lengths = length[start : start + BLOCK, None] + length[start:]
            exponents = -t * (lengths - 2 * (rows @ u[start:].T))
            later = torch.ones_like(exponents, dtype=torch.bool).triu(1)
            sums.append(exponents[later].logsumexp(0))
        return torch.stack(sums).logsumexp(0) - math.log(images * (images - 1) / 2)


def rank_me(features: Tensor) -> Tensor:
    """Return the effective rank of the features: from 1 (all on one line) to ``min(N, D)``.

    ``exp(-Σ_k p_k log p_k)`` with ``p_k = σ_k / ‖σ‖₁ + 1e-7`` and ``σ`` the singular values of the features as they
    come, neither centred nor normalised (Garrido et al., "RankMe", arXiv:2210.02885). The paper takes 25,600 images
    and compares runs of one method.

    Args:
        features: float ``[N,D]``.

    Raises:
        ValueError: Another shape; on a CPU also features that are all zero.
    """
    (features,) = floats("rank_me", "[N,D]", features=features)
    if looks_at(features) and not features.any():
        raise ValueError("rank_me: features are all zero and have no rank.")
    return effective_rank(singular_values(features))


def effective_rank(values: Tensor) -> Tensor:
    """Return ``exp(-Σ_k p_k log p_k)`` with ``p_k = v_k / Σ v + 1e-7``: how many of the values count.

    Args:
        values: float ``[R]``, at least 0, such as singular values (see :func:`rank_me`).

    Raises:
        ValueError: Another shape; on a CPU also a negative value, or none above 0.
    """
    (values,) = floats("effective_rank", "[R]", values=values)
    if looks_at(values) and not (values.min() >= 0 and values.max() > 0):
        raise ValueError("effective_rank: values must be at least 0, and one of them above it.")
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + 1e-7
    return (-(p * p.log()).sum()).exp()


def singular_values(features: Tensor) -> Tensor:
    """Return the singular values of the features as they come, largest first: ``[min(N,D)]``.

    Their decay shows a dimensional collapse that an accuracy hides (Jing et al., "Understanding Dimensional Collapse in
    Contrastive Self-supervised Learning", arXiv:2110.09348).

    Args:
        features: float ``[N,D]``, neither centred nor normalised here.

    Raises:
        ValueError: Another shape.
    """
    (features,) = floats("singular_values", "[N,D]", features=features)
    sigma: Tensor = torch.linalg.svdvals(features)
    return sigma


def lidar(features: Tensor, delta: float = 1e-4) -> Tensor:
    """Return LiDAR, the effective rank of what tells images apart from their own views: from 1 to ``min(N-1, D)``.

    The effective rank (as in :func:`rank_me`) of the eigenvalues of ``Σ_w^{-1/2} Σ_b Σ_w^{-1/2}``. ``Σ_b`` is the
    covariance of the images' means over their views, ``Σ_w`` the mean over images of the covariance of their views,
    plus ``δI``; both covariances divide by their count (Thilak et al., "LiDAR: Sensing Linear Probing Performance in
    Joint Embedding SSL Architectures", arXiv:2312.04000). Directions in which views scatter as much as images do, which
    RankMe counts, do not count here.

    Args:
        features: float ``[N,Q,D]``: ``Q`` views of each of ``N`` images.
        delta: δ, above 0, in the unit of the squared features.

    Raises:
        ValueError: Another shape, or fewer than two images or two views; on a CPU also images that do not differ.
    """
    (features,) = floats("lidar", "[N,Q,D]", features=features)
    number("lidar", above=0, delta=delta)
    if len(features) < 2 or features.shape[1] < 2:
        raise ValueError(f"lidar: features must be of two images and two views at least, got {list(features.shape)}.")
    with torch.autocast(features.device.type, enabled=False):
        z = features.double()  # in float32 the rounding of large features would outweigh δ, and the factor not exist
        means = z.mean(1)
        within = (z - means[:, None]).flatten(0, 1)
        between = means - means.mean(0)
        scatter = within.T @ within / len(within)
        factor: Tensor = torch.linalg.cholesky(scatter + delta * torch.eye(z.shape[2], dtype=z.dtype, device=z.device))
        # the squared singular values of the whitened means are the wanted eigenvalues, and never negative
        whitened = torch.linalg.solve_triangular(factor, between.T, upper=False)
        spectrum = torch.linalg.svdvals(whitened).square()
        if looks_at(spectrum) and not spectrum.any():
            raise ValueError("lidar: features do not differ between images.")
        return effective_rank(spectrum).to(features.dtype)


def alpha_req(features: Tensor, first: int = 3, last: int | None = None) -> Tensor:
    """Return α of the power law ``λ_i ∝ i^-α`` that the eigenvalues of the features' covariance follow.

    About 1 goes with good features; a larger α is a collapse onto few directions, a smaller one a spectrum as flat as
    noise (Agrawal et al., "α-ReQ: Assessing Representation Quality in Self-Supervised Learning by measuring
    eigenspectrum decay", NeurIPS 2022). The slope is a least-squares fit of ``log λ_i`` on ``log i`` in which a point
    weighs ``1/i``, so that each octave of ranks weighs the same (Stringer et al., "High-dimensional geometry of
    population responses in visual cortex", 2019).

    Args:
        features: float ``[N,D]``; centred here.
        first, last: Ranks that the fit begins and ends with, counted from 1; ``None`` ends at 100 or at the numerical
            rank, whichever comes first. (The paper leaves out the first ranks and the tail, too.)

    Raises:
        ValueError: Fewer than two eigenvalues above rounding error between ``first`` and ``last``.
    """
    (z,) = floats("alpha_req", "[N,D]", features=features)
    count("alpha_req", first=first, **({} if last is None else {"last": last}))
    with torch.autocast(features.device.type, enabled=False):
        sigma: Tensor = torch.linalg.svdvals(z - z.mean(0))
        floor = sigma[0] * max(z.shape) * torch.finfo(z.dtype).eps
        rank = int((sigma > floor).sum())
        end = min(rank, 100 if last is None else last)
        if end <= first:
            raise ValueError(
                f"alpha_req: features have {rank} eigenvalues; the fit needs two at least from first={first} on."
            )
        x = torch.arange(first, end + 1, dtype=z.dtype, device=z.device)
        weight = 1 / x / (1 / x).sum()
        log_rank, log_value = x.log(), 2 * sigma[first - 1 : end].log()
        offset = log_rank - (weight * log_rank).sum()
        return -(weight * offset * log_value).sum() / (weight * offset.square()).sum()


def tolerance(z: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cosine of distinct images of one class: how close the features leave what belongs together.

    ``mean_{i≠j, y_i = y_j} u_i · u_j`` with ``u`` the L2-normalised rows; the counterpart of uniformity, and the one
    number here that reads labels (Wang and Liu, "Understanding the Behaviour of Contrastive Loss", arXiv:2012.09740).

    Args:
        z: float ``[N,D]``.
        labels: int64 ``[N]``; images with a negative label are left out.

    Raises:
        ValueError: No class has two images.
    """
    (z,) = floats("tolerance", "[N,D]", z=z)
    integers("tolerance", f"[{len(z)}]", labels=labels)
    known = labels >= 0
    u = _normalize(z[known])
    _, members = torch.unique(labels[known], return_inverse=True)
    counts = members.bincount().to(u.dtype)
    pairs = (counts * (counts - 1)).sum()
    if not pairs:
        raise ValueError("tolerance: labels must have a class with two images.")
    # Σ_{i≠j} u_i·u_j of a class is the squared length of its sum less the rows' own
    sums = u.new_zeros(len(counts), u.shape[1]).index_add_(0, members, u)
    value: Tensor = (sums.square().sum() - u.square().sum()) / pairs
    return value


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = False) -> Tensor:
    """Return how alike two representations of the same images are, up to rotation and scale: 1 is equal.

    ``⟨K, L⟩ / (‖K‖ ‖L‖)`` with ``K, L`` the centred linear kernels, which is ``‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)`` of the centred
    features (Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv:1905.00414). Products of
    features are formed where they are the smaller table and kernels where those are, so that many images never need
    an ``N × N`` one.

    Args:
        x, y: float ``[N,D1]`` and ``[N,D2]``; row ``i`` of both comes from image ``i``.
        unbiased: Estimate the three products without bias (Song et al., "Feature Selection via Dependence
            Maximization", 2012): with fewer images than dimensions the plain form is near 1 whatever the features are.
            Independent features then give 0 on average, and a value may be below 0.

    Raises:
        ValueError: Another number of rows, fewer than two (four when unbiased), or features that do not vary.
    """
    least = 4 if unbiased else 2
    x, y = floats("linear_cka", "[N,D1] [N,D2]", x=x, y=y)
    if len(x) < least:
        raise ValueError(f"linear_cka: x and y need at least {least} rows, got {len(x)}.")
    with torch.autocast(x.device.type, enabled=False):
        x, y = (z - z.mean(0) for z in (x, y))
        # HSIC grows with the fourth power of the scale; at unit scale float32 holds it
        x, y = (z / torch.linalg.vector_norm(z).clamp_min(torch.finfo(z.dtype).tiny) for z in (x, y))
        cross, own_x, own_y = (_kernel_product(a, b, unbiased) for a, b in ((x, y), (x, x), (y, y)))
        if min(own_x, own_y) <= 0:
            raise ValueError("linear_cka: x or y does not vary between images.")
        return cross / (own_x * own_y).sqrt()


def orthogonal_equivariance(z1: Tensor, z2: Tensor) -> Tensor:
    """Return how well one rotation of the feature space explains what an operation does to all images: 1 is exactly.

    ``1 - E(u_i·u_j - v_i·v_j)² / E(u_i·u_j - v_k·v_l)²`` over distinct pairs, with ``u, v`` the L2-normalised features
    before and after the **same** operation on every image and ``kl`` a pair that has nothing to do with ``ij``. An
    orthogonal map keeps every inner product, and only that does (Gupta et al., "Structuring Representation Geometry
    with Rotationally Equivariant Contrastive Learning", arXiv:2306.13924, whose loss is the first expectation); the
    division, which makes 0 the value of unrelated features, is ours. Features that do not move at all give 1 too.

    Args:
        z1, z2: float ``[N,D]``, at least three rows; row ``i`` of both comes from image ``i``.

    Raises:
        ValueError: The shapes differ or there are fewer than three rows; on a CPU also features that do not vary.
    """
    z1, z2 = floats("orthogonal_equivariance", "[N,D]", z1=z1, z2=z2)
    if len(z1) < 3:
        raise ValueError(f"orthogonal_equivariance: z1 and z2 need at least three rows, got {len(z1)}.")
    with torch.autocast(z1.device.type, enabled=False):
        u, v = _normalize(z1), _normalize(z2)
        row, column = torch.triu_indices(len(u), len(u), 1, device=u.device)
        before, after = (u @ u.T)[row, column], (v @ v.T)[row, column]
        unrelated = before.var(correction=0) + after.var(correction=0) + (before.mean() - after.mean()).square()
        if looks_at(unrelated) and not unrelated > 1000 * torch.finfo(u.dtype).eps ** 2:
            raise ValueError("orthogonal_equivariance: z1 and z2 do not vary between images.")
        return 1 - (before - after).square().mean() / unrelated.clamp_min(torch.finfo(u.dtype).tiny)


def feature_std(features: Tensor) -> Tensor:
    """Return the mean over dimensions of the standard deviation of the L2-normalised features.

    0 is collapse; ``sqrt(1/D)`` is reached by features spread evenly over the sphere (Chen and He, "Exploring Simple
    Siamese Representation Learning", arXiv:2011.10566).

    Args:
        features: float ``[N,D]``.

    Raises:
        ValueError: Another shape.
    """
    (features,) = floats("feature_std", "[N,D]", features=features)
    return _normalize(features).std(0, correction=0).mean()


def _kernel_product(x: Tensor, y: Tensor, unbiased: bool) -> Tensor:
    """Return ``⟨XXᵀ, YYᵀ⟩`` of centred features, or its unbiased estimate (times ``n (n - 3)``, which CKA cancels)."""
    count = len(x)
    product: Tensor
    if x.shape[1] * y.shape[1] <= count * count:  # noqa: SIM108 one formula a line
        product = (x.T @ y).square().sum()
    else:
        product = ((x @ x.T) * (y @ y.T)).sum()
    if not unbiased:
        return product
    # With the diagonals set to zero, the sums over rows of centred kernels are minus the diagonals
    x_own, y_own = x.square().sum(1), y.square().sum(1)
    both = (x_own * y_own).sum()
    return product - both + x_own.sum() * y_own.sum() / ((count - 1) * (count - 2)) - 2 * both / (count - 2)


def _normalize(z: Tensor) -> Tensor:
    return F.normalize(z, dim=1)
