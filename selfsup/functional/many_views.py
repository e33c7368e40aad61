"""Contrastive losses over several views of an image at once, and losses that split attraction from spread."""

from __future__ import annotations

import math
from itertools import combinations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import floats, kind, number
from selfsup.functional.collectives import gather, rank_of, size_of
from selfsup.functional.pairs import Pairs, log_sum, queue_pairs, view_pairs


def mv_info_nce(views: Tensor, temperature: float, group: dist.ProcessGroup | None = None) -> Tensor:
    r"""MV-InfoNCE: one term an image, with all pairs of its views at once.

    .. math:: -\frac{1}{N} \sum_i \log \frac{\sum_{l \ne l'} \exp(z_{il} \cdot z_{il'} / \tau)}
              {\sum_l \sum_{(j,m) \ne (i,l)} \exp(z_{il} \cdot z_{jm} / \tau)}

    Args:
        views: Embeddings ``[V,N,D]``, V ≥ 2; L2-normalised here. Float16 and bfloat16 become float32.
        temperature: :math:`\tau > 0`.
        group: Process group to gather candidates over; None for a single process. Every rank has the same N.

    Returns:
        Scalar, averaged over this rank's images.

    Source:
        Koromilas et al., "A Principled Framework for Multi-View Contrastive Learning", 2025; the sums are those of the
        authors' code, which has candidates of the anchor's own view too.
    """
    pairs, shape = _pairs("mv_info_nce", views, temperature, group)
    logits = pairs.similarity / temperature
    together = log_sum(pairs, logits, pairs.positive).view(shape).logsumexp(0)
    everything = log_sum(pairs, logits, pairs.positive | pairs.negative).view(shape).logsumexp(0)
    return (everything - together).mean()


def mv_dhel(views: Tensor, temperature: float, group: dist.ProcessGroup | None = None) -> Tensor:
    r"""MV-DHEL: all pairs of an image's views attract in one term, and each view spreads by itself.

    .. math:: -\frac{1}{N} \sum_i \Bigl[\log \sum_{l < l'} \exp(z_{il} \cdot z_{il'} / \tau)
              - \sum_l \log \sum_{j \ne i} \exp(z_{il} \cdot z_{jl} / \tau)\Bigr]

    Args:
        views: Embeddings ``[V,N,D]``, V ≥ 2; L2-normalised here. Float16 and bfloat16 become float32.
        temperature: :math:`\tau > 0`.
        group: Process group to gather candidates over; None for a single process. Every rank has the same N.

    Returns:
        Scalar, averaged over this rank's images.

    Source:
        Koromilas et al., "A Principled Framework for Multi-View Contrastive Learning", 2025.
    """
    pairs, shape = _pairs("mv_dhel", views, temperature, group)
    logits = pairs.similarity / temperature
    together = log_sum(pairs, logits, pairs.positive).view(shape).logsumexp(0) - math.log(2)  # each pair twice
    spread = log_sum(pairs, logits, pairs.negative & _within_view(pairs, len(views))).view(shape).sum(0)
    return (spread - together).mean()


def _pairs(
    function: str, views: Tensor, temperature: float, group: dist.ProcessGroup | None
) -> tuple[Pairs, tuple[int, int]]:
    (views,) = floats(function, "[V,N,D]", views=views)
    number(function, above=0, temperature=temperature)
    _check_size(function, views, group)
    return view_pairs(views, group=group), (views.shape[0], views.shape[1])


def _check_size(function: str, views: Tensor, group: dist.ProcessGroup | None, fewest: int = 2) -> None:
    if len(views) < fewest:
        raise ValueError(f"{function}: views must be of {fewest} views at least, got {kind(views)}.")
    if views.shape[1] * size_of(group) < 2:
        raise ValueError(f"{function}: views must be of two images at least, got {kind(views)}.")


def _within_view(pairs: Pairs, views: int) -> Tensor:
    """Return which candidates are of the anchor's own view, bool ``[A,C]``."""
    anchors, candidates = (torch.arange(views).repeat_interleave(size // views) for size in pairs.similarity.shape)
    return (anchors[:, None] == candidates).to(pairs.similarity.device)


def align_uniform(
    views: Tensor,
    queue: Tensor | None = None,
    mixed: Tensor | None = None,
    alpha: float = 2.0,
    t: float = 2.0,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Return alignment and uniformity as the two terms of a loss.

    .. math:: \frac{1}{N} \sum_i \lVert z_{il} - z_{il'} \rVert^\alpha, \qquad
              \log \operatorname*{mean}_{i \ne j} \exp(-t \lVert z_{il} - z_{jl} \rVert^2)

    The first is the mean over all pairs of views, the second over the views. With a ``queue`` there are two views,
    query and key, and the second term is that of the queries against the queue.

    Args:
        views: Embeddings ``[V,N,D]``; L2-normalised here. Float16 and bfloat16 become float32.
        queue: ``[K,D]``, used as it is stored.
        mixed: Further negatives of each query alone, ``[N,S,D]``, beside those of the queue; None is none.
        alpha: Power of the distance, above 0.
        t: Sharpness of the kernel, above 0.
        group: Process group over whose images the second term goes; None for a single process.

    Returns:
        Alignment, averaged over this rank's images, and uniformity, the same on every rank.

    Source:
        Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere", 2020, equations 7 and 8.
    """
    (views,) = floats("align_uniform", "[V,N,D]", views=views)
    number("align_uniform", above=0, alpha=alpha, t=t)
    _check_size("align_uniform", views, group)
    with torch.autocast(views.device.type, enabled=False):
        unit = F.normalize(views, dim=-1)
        apart = torch.stack([unit[a] - unit[b] for a, b in combinations(range(len(unit)), 2)])
        alignment = torch.linalg.vector_norm(apart, dim=-1).pow(alpha).mean()
        if queue is None:
            uniformity = torch.stack([_log_mean_kernel(view, t, group) for view in unit]).mean()
        else:
            (queue,) = floats("align_uniform", f"[K,{views.shape[2]}]", queue=queue)
            against = queue_pairs(views[0], views[1], queue, mixed).similarity[:, 1:]
            logits = t * (2 * against - 2)
            uniformity = _log_of_sum(logits, group) - math.log(logits.numel() * size_of(group))
    return alignment, uniformity


def decoupled_uniformity(
    views: Tensor,
    t: float = 2.0,
    kernel: Tensor | None = None,
    ridge: float = 0.01,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Spread the centroids of each image's views over the sphere; views that part shorten their centroid.

    .. math:: \log \operatorname*{mean}_{i \ne j} \exp(-t \lVert \mu_i - \mu_j \rVert^2), \quad
              \mu_i = \frac{1}{V} \sum_l z_{il}

    With a prior kernel of the images :math:`\mu` becomes :math:`(K + \lambda I)^{-1} K \mu`, the estimate that images
    alike under the prior share; no gradient flows through the kernel.

    Args:
        views: Embeddings ``[V,N,D]``; L2-normalised here, the centroids are not. Float16 and bfloat16 become float32.
        t: Sharpness, above 0.
        kernel: ``[B,B]``, positive semi-definite, over the ``B`` images of all ranks in rank order; None is no prior.
        ridge: :math:`\lambda > 0`.
        group: Process group; None for a single process. Every rank has the same N.

    Returns:
        Scalar, the same on every rank.

    Source:
        Dufumier et al., "Integrating Prior Knowledge in Contrastive Learning with Kernel", 2023, equations 3 and 7.
    """
    (views,) = floats("decoupled_uniformity", "[V,N,D]", views=views)
    number("decoupled_uniformity", above=0, t=t, ridge=ridge)
    _check_size("decoupled_uniformity", views, group, fewest=1)
    with torch.autocast(views.device.type, enabled=False):
        centroids = F.normalize(views, dim=-1).mean(0)
        if kernel is None:
            return _log_mean_kernel(centroids, t, group)
        images = len(centroids) * size_of(group)
        (kernel,) = floats("decoupled_uniformity", f"[{images},{images}]", kernel=kernel)
        with torch.no_grad():
            kernel = kernel.to(centroids.dtype)
            smooth = torch.linalg.solve(kernel + ridge * torch.eye(images).to(kernel), kernel)
        own = slice(rank_of(group) * len(centroids), (rank_of(group) + 1) * len(centroids))
        return _log_mean_kernel(smooth[own] @ gather(centroids, group), t, group)


def _log_mean_kernel(points: Tensor, t: float, group: dist.ProcessGroup | None) -> Tensor:
    """Return ``log mean exp(-t ‖x_i - x_j‖²)`` over the distinct pairs of the points ``[N,D]`` of all ranks."""
    everybody = gather(points, group)
    squares = points.square().sum(1)[:, None] + everybody.square().sum(1) - 2 * points @ everybody.T
    image = torch.arange(len(points), device=points.device) + rank_of(group) * len(points)
    logits = (-t * squares).scatter(1, image[:, None], -math.inf)
    return _log_of_sum(logits, group) - math.log(len(everybody) * (len(everybody) - 1))


def _log_of_sum(logits: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return ``log Σ exp`` over the logits of all ranks."""
    return gather(logits.flatten().logsumexp(0)[None], group).logsumexp(0)
