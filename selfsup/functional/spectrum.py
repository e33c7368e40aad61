"""Losses on the spectrum of embeddings: how many directions they fill, by nuclear norm, log-determinant or entropy."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import answer, floats, number
from selfsup.functional.collectives import gather, size_of, sum_over


def mmcr_loss(
    views: Tensor,
    local_weight: float = 0.0,
    momentum_views: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""MMCR: the mean embeddings of the images fill as many directions as they can.

    .. math:: -\lVert C \rVert_* + \frac{\lambda}{N} \sum_n \lVert Z_n \rVert_*, \qquad
              C_n = \frac1V \sum_v \frac{z_{v,n}}{\lVert z_{v,n} \rVert}

    :math:`\lVert \cdot \rVert_*` is the sum of singular values, :math:`Z_n` the unit embeddings of an image's views.
    A mean is as long as its views agree, so the first term alone draws views together and images apart. Its least value
    is :math:`-\sqrt{\min(N, D) N}`, of equal views that are spread evenly.

    Args:
        views: Embeddings ``[V,N,D]``; L2-normalised here. Float16 and bfloat16 become float32.
        local_weight: :math:`\lambda`.
        momentum_views: ``[V,N,D]`` of a momentum encoder, without gradient: means are then of both.
        group: N counts the images of all its ranks; None for a single process.

    Returns:
        Scalar. Every rank has the whole first term, and DDP's mean gives the single-process gradient.

    Raises:
        ValueError: Other shapes.

    Source:
        Yerxa et al., "Learning Efficient Coding of Natural Images with Maximum Manifold Capacity Representations",
        2023, with the authors' code (ThomasYerxa/mmcr, 287db45).
    """
    number("mmcr_loss", local_weight=local_weight)
    if momentum_views is None:
        (views,) = floats("mmcr_loss", "[V,N,D]", views=views)
    else:
        views, momentum_views = floats("mmcr_loss", "[V,N,D]", views=views, momentum_views=momentum_views)
    with torch.autocast(views.device.type, enabled=False):
        units = F.normalize(views, dim=-1)
        means = units.mean(0)
        if momentum_views is not None:
            means = (means + F.normalize(momentum_views, dim=-1).mean(0)) / 2
        loss = -torch.linalg.svdvals(gather(means, group)).sum()
        if local_weight:
            loss = loss + local_weight * torch.linalg.svdvals(units.transpose(0, 1)).sum(-1).mean()
        return answer("mmcr_loss", loss, "views")


def coding_rate(views: Tensor, eps: float = 0.2, group: dist.ProcessGroup | None = None) -> Tensor:
    r"""Coding rate of unit embeddings, averaged over the views: large where they fill many directions.

    .. math:: R = \frac{1}{2} \log\det\Bigl(I + \frac{D}{N \varepsilon} Z^T Z\Bigr)

    Args:
        views: Embeddings ``[V,N,D]``; L2-normalised here. Float16 and bfloat16 become float32.
        eps: :math:`\varepsilon`, where the first papers write :math:`\epsilon^2`.
        group: N counts the images of all its ranks; None for a single process.

    Returns:
        Scalar, to be made **large**. Every rank has the whole rate, and DDP's mean gives the single-process gradient.

    Raises:
        ValueError: ``views`` are not ``[V,N,D]``, or ``eps`` is not above 0.

    Source:
        Tong et al., "EMP-SSL: Towards Self-Supervised Learning in One Training Epoch", 2023, equation 1, after Yu et
        al., "Learning Diverse and Discriminative Representations via the Principle of Maximal Coding Rate Reduction",
        2020.
    """
    (views,) = floats("coding_rate", "[V,N,D]", views=views)
    number("coding_rate", above=0, eps=eps)
    with torch.autocast(views.device.type, enabled=False):
        units = gather(F.normalize(views, dim=-1).transpose(0, 1), group).transpose(0, 1)
        gram = _smaller_gram(units)
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor, _ = torch.linalg.cholesky_ex(identity + units.shape[2] / (units.shape[1] * eps) * gram)
        return answer("coding_rate", factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).mean(), "views")


def emp_ssl_loss(
    views: Tensor, similarity_weight: float = 200.0, eps: float = 0.2, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""EMP-SSL: all patches of an image are like their mean, and a patch of each image has a high coding rate.

    .. math:: -R - \lambda \frac{1}{V N} \sum_{v,n} \cos(z_{v,n}, \bar z_n), \qquad
              \bar z_n = \frac1V \sum_v \frac{z_{v,n}}{\lVert z_{v,n} \rVert}

    Args:
        views: Embeddings of the patches ``[V,N,D]``; L2-normalised here. Float16 and bfloat16 become float32.
        similarity_weight: :math:`\lambda`.
        eps, group: See :func:`coding_rate`.

    Returns:
        Scalar; see :func:`coding_rate`.

    Raises:
        ValueError: ``views`` are not ``[V,N,D]``, or a setting is out of range.

    Source:
        Tong et al., 2023, equation 2, with the weights of the authors' code (tsb0601/EMP-SSL, bce1514).
    """
    (views,) = floats("emp_ssl_loss", "[V,N,D]", views=views)
    number("emp_ssl_loss", similarity_weight=similarity_weight)
    number("emp_ssl_loss", above=0, eps=eps)
    with torch.autocast(views.device.type, enabled=False):
        units = F.normalize(views, dim=-1)
        similarity = (units * F.normalize(units.mean(0), dim=-1)).sum(-1).mean()
        return answer("emp_ssl_loss", -coding_rate(views, eps, group) - similarity_weight * similarity, "views")


def frossl_loss(views: Tensor, invariance_weight: float = 1.0, group: dist.ProcessGroup | None = None) -> Tensor:
    r"""FroSSL: the eigenvalues of each view's correlation are even, as their Frobenius norm says, and views agree.

    .. math:: \sum_v \log \frac{\lVert Z_v^T Z_v \rVert_F^2}{(\operatorname{tr} Z_v^T Z_v)^2}
              + w \frac{V}{2} \frac{1}{|P|} \sum_{(a,b) \in P} \frac1N \lVert Z_a - Z_b \rVert_F^2

    over all pairs P of views. Each column of :math:`Z`, a dimension, has mean 0 and length 1 over the images. A view's
    term is :math:`-\log D` for uncorrelated dimensions and 0 for those that all say the same.

    Args:
        views: Embeddings ``[V,N,D]``, at least two views. Float16 and bfloat16 become float32.
        invariance_weight: w.
        group: N counts the images of all its ranks; None for a single process.

    Returns:
        Scalar. Every rank has the whole loss, and DDP's mean gives the single-process gradient.

    Raises:
        ValueError: ``views`` are not ``[V,N,D]``, fewer than two views or images; on a CPU, outside of a training
            step, a view in which no dimension varies.

    Source:
        Skean et al., "FroSSL: Frobenius Norm Minimization for Efficient Multiview Self-Supervised Learning", 2024. At
        two views this is the authors' code for two (OFSkean/FroSSL, 3ff28da) up to the constant
        :math:`2 V \log(D / N)` that it adds. Their code for more views makes rows unit and not columns, and weighs the
        distance by (V - 1) / V of ours.
    """
    (views,) = floats("frossl_loss", "[V,N,D]", views=views)
    number("frossl_loss", invariance_weight=invariance_weight)
    if len(views) < 2 or views.shape[1] * size_of(group) < 2:
        raise ValueError(f"frossl_loss: views need two views and two images at least, got {list(views.shape)}.")
    with torch.autocast(views.device.type, enabled=False):
        views = gather(views.transpose(0, 1), group).transpose(0, 1)
        columns = F.normalize(views - views.mean(1, keepdim=True), dim=1)
        gram = _smaller_gram(columns)
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        evenness = (gram.square().sum((-2, -1)) / trace.square()).log().sum()
        count = len(views)
        distance = (columns - columns.mean(0)).square().sum() / views.shape[1] * count / (count - 1)
        return answer("frossl_loss", evenness + invariance_weight * distance, "views", "do not vary")


def tico_loss(
    query: Tensor,
    key: Tensor,
    remembered: Tensor,
    momentum: float = 0.9,
    covariance_weight: float = 8.0,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    r"""TiCo: views agree, and embeddings lie where those of past batches do not.

    .. math:: \frac1N \sum_n \bigl( 1 - q_n \cdot k_n + \rho \, q_n^T C q_n \bigr), \qquad
              C = \beta \, C_{old} + (1 - \beta) \frac1N \sum_n q_n q_n^T

    The matrix is not centred. Gradients flow through the share that this batch has in C, not through what is
    remembered, as in both public codes.

    Args:
        query: ``[N,D]``; L2-normalised here. Float16 and bfloat16 become float32.
        key: The other view ``[N,D]``, of a momentum encoder; L2-normalised here.
        remembered: :math:`C_{old}` ``[D,D]``.
        momentum: :math:`\beta`.
        covariance_weight: :math:`\rho`.
        group: C is of the images of all its ranks; None for a single process.

    Returns:
        Scalar, and C without gradient, to be remembered. With DDP's mean, value and gradient are those of one process.

    Raises:
        ValueError: Other shapes, or a setting out of range.

    Source:
        Zhu et al., "TiCo: Transformation Invariance and Covariance Contrast for Self-Supervised Visual Representation
        Learning", 2022. There is no code of the authors'; public ones are sayannag/TiCo-pytorch, 2259b83, and lightly.
    """
    query, key, remembered = floats("tico_loss", "[N,D] [N,D] [D,D]", query=query, key=key, remembered=remembered)
    number("tico_loss", least=0, below=1, momentum=momentum)
    number("tico_loss", covariance_weight=covariance_weight)
    with torch.autocast(query.device.type, enabled=False):
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        present = sum_over(query.T @ query, group) / (len(query) * size_of(group))
        covariance = momentum * remembered.detach() + (1 - momentum) * present
        contrast = ((query @ covariance) * query).sum(1).mean()
        loss = 1 - (query * key).sum(1).mean() + covariance_weight * contrast
        return answer("tico_loss", loss, "query and key"), covariance.detach()


def _smaller_gram(rows: Tensor) -> Tensor:
    """Return ZᵀZ of ``[...,N,D]``, or where there are fewer rows ZZᵀ, which has the same eigenvalues but zeros."""
    return rows.mT @ rows if rows.shape[-1] <= rows.shape[-2] else rows @ rows.mT
