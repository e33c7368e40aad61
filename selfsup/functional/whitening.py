"""Whitening by the Cholesky factor of the covariance, and the loss built on it (W-MSE)."""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import answer, count, floats, number
from selfsup.functional.collectives import gather


def whiten(x: Tensor, eps: float = 0.0) -> Tensor:
    r"""Return ``x`` with mean 0 and covariance I: ``[N,D]`` to ``[N,D]``.

    .. math:: v = L^{-1} (x - \mu), \qquad L L^T = (1 - \varepsilon) \Sigma + \varepsilon I,
              \qquad \Sigma = \frac{1}{N - 1} \sum_i (x_i - \mu)(x_i - \mu)^T

    Gradients flow through the mean and the factor. With ``eps`` above 0 the covariance is only near I.

    Args:
        x: ``[N,D]``, or ``[...,N,D]`` for several sets apart. Float16 and bfloat16 become float32.
        eps: :math:`\varepsilon` in [0, 1).

    Returns:
        The whitened rows. On a GPU a set whose covariance is singular, up to rounding, is NaN: to raise, the host
        would have to wait for the device.

    Raises:
        ValueError: ``N <= D``, or, on a CPU, rows whose covariance is singular up to rounding; ``eps`` out of range.

    Source:
        Ermolov et al., "Whitening for Self-Supervised Representation Learning", 2021, section 3.
    """
    (x,) = floats("whiten", "[...,N,D]", x=x)
    number("whiten", least=0, below=1, eps=eps)
    return answer("whiten", _whiten(x, eps, jitter=0.0)[0], "x", "give a singular covariance, up to rounding")


def whitening_mse(
    views: Tensor,
    subbatch_size: int,
    iterations: int = 1,
    eps: float = 0.0,
    normalize: bool = True,
    generator: torch.Generator | None = None,
    *,
    jitter: float = 0.0,
    failures: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Mean squared distance between the whitened views of an image (W-MSE), over all pairs of views.

    A random permutation cuts the images into sub-batches, the same for every view; each view of a sub-batch is whitened
    apart, so no two views of an image share a covariance. Nothing stops a gradient: all views receive one.

    .. math:: \frac{1}{|P|} \sum_{(a,b) \in P} \frac{1}{N} \sum_i \lVert \hat v_i^a - \hat v_i^b \rVert^2
              = 2 - 2 \cos(v^a, v^b) \text{ on average}

    Args:
        views: Embeddings ``[V,N,D]``. Float16 and bfloat16 become float32.
        subbatch_size: Images whitened together: above D, and a divisor of N. Near D the covariance is badly
            conditioned; the authors advise 2D.
        iterations: Permutations that the loss is averaged over.
        eps: See :func:`whiten`.
        normalize: Put whitened vectors on the unit sphere; else the squared difference is averaged over dimensions too.
        generator: Draws the permutations; None is torch's global one. With ``group``, equal on every rank.
        jitter: A covariance that is singular, up to rounding, has this fraction of its mean variance added to its
            diagonal. With 0 it makes the loss NaN. Others are left as they are.
        failures: int64 scalar; the number of singular covariances is added to it.
        group: Whiten over the images of all ranks of the group; None whitens those given.

    Returns:
        Scalar. With ``group`` every rank has the whole loss, and DDP's mean gives the single-process gradient.

    Raises:
        ValueError: Fewer than two views, a sub-batch that is not above D or does not divide N, a setting out of range;
            on a CPU, outside of a training step, also a singular covariance that ``jitter`` does not mend.

    Source:
        Ermolov et al., "Whitening for Self-Supervised Representation Learning", 2021, section 3.
    """
    (views,) = floats("whitening_mse", "[V,N,D]", views=views)
    if len(views) < 2:
        raise ValueError("whitening_mse: views must hold at least two views, got one.")
    count("whitening_mse", subbatch_size=subbatch_size, iterations=iterations)
    number("whitening_mse", least=0, below=1, eps=eps)
    number("whitening_mse", least=0, jitter=jitter)
    with torch.autocast(views.device.type, enabled=False):
        views = gather(views.transpose(0, 1), group).transpose(0, 1)
        if views.shape[1] % subbatch_size:
            raise ValueError(
                f"whitening_mse: {views.shape[1]} images do not divide into sub-batches of subbatch_size="
                f"{subbatch_size}."
            )
        place = "cpu" if generator is None else generator.device
        orders = [torch.randperm(views.shape[1], generator=generator, device=place) for _ in range(iterations)]
        order = torch.stack(orders).view(-1, subbatch_size).to(views.device, non_blocking=True)
        whitened, singular = _whiten(views[:, order], eps, jitter)  # [V, sub-batches, subbatch_size, D]
        if failures is not None:
            failures += singular.sum()
        loss = mean_over_pairs(whitened, normalize)
        return answer("whitening_mse", loss, "views", "give a singular covariance, up to rounding")


def _whiten(x: Tensor, eps: float, jitter: float) -> tuple[Tensor, Tensor]:
    """Return whitened sets ``[...,N,D]`` and, for each, whether its covariance was singular as it was."""
    count, dim = x.shape[-2:]
    if count <= dim:
        raise ValueError(
            f"Whitening needs more rows than dimensions, got {count} rows of {dim}; their covariance is singular."
        )
    with torch.autocast(x.device.type, enabled=False):
        mean = x.mean(dim=-2, keepdim=True)
        centred = x - mean
        covariance = centred.mT @ centred / (count - 1)
        identity = torch.eye(dim, dtype=x.dtype, device=x.device)
        covariance = (1 - eps) * covariance + eps * identity
        rounding = torch.finfo(x.dtype).eps
        noise = (count * rounding * mean.detach().squeeze(-2)).square()  # variance of a dimension that is constant
        factor, first = _factor(covariance, noise)
        failed = first
        if jitter > 0:
            variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
            covariance = covariance + jitter * variance * identity * first[..., None, None]
            factor, failed = _factor(covariance, noise)
        factor = factor.masked_fill(failed[..., None, None], float("nan"))
        return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT, first


def _factor(covariance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return Cholesky factors, and bool where there is none: where a pivot is no more than rounding error.

    A singular covariance has pivots of either sign after rounding, so that the factorisation alone fails only now and
    then, and whitens noise else.
    """
    factor, info = torch.linalg.cholesky_ex(covariance)
    pivots, variances = (m.detach().diagonal(dim1=-2, dim2=-1) for m in (factor, covariance))
    error = covariance.shape[-1] * torch.finfo(covariance.dtype).eps * variances + noise
    return factor, (info != 0) | (pivots.square() <= error).any(dim=-1)


def mean_over_pairs(whitened: Tensor, normalize: bool) -> Tensor:
    """Return the mean squared distance of views ``[V,...,D]`` over all pairs; of unit vectors, the sum over D."""
    if normalize:
        whitened = F.normalize(whitened, dim=-1)
    squares = torch.stack([(a - b).square().mean() for a, b in itertools.combinations(whitened, 2)])
    return squares.mean() * (whitened.shape[-1] if normalize else 1)
