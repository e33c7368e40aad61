"""How far views of an image are from one another, with no negatives: the losses of BYOL, SimSiam, MEC and more."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import answer, count, floats, number
from selfsup.functional.collectives import gather_together


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Negative cosine similarity of each prediction with its target, averaged over the images.

    .. math:: D(p, z) = -\frac{1}{N} \sum_i \frac{p_i}{\lVert p_i \rVert} \cdot \frac{z_i}{\lVert z_i \rVert}

    SimSiam minimises :math:`\frac12 D(p_1, z_2) + \frac12 D(p_2, z_1)`. BYOL minimises the squared distance of the
    normalised vectors, :math:`\lVert \hat p - \hat z \rVert^2 = 2 - 2 \cos(p, z)`, in both directions: the sum of two
    terms :math:`2 + 2 D`.

    Args:
        prediction, target: ``[N,D]``; L2-normalised here. Gradients reach both: pass a target that carries none where
            the method stops them. Float16 and bfloat16 become float32.

    Returns:
        Scalar in [-1, 1]. It is a mean over a rank's own images, so that DDP's mean over ranks is the whole batch's.

    Raises:
        ValueError: The shapes differ or are not ``[N,D]``.

    Source:
        Chen and He, "Exploring Simple Siamese Representation Learning", 2020, equation 1; Grill et al., "Bootstrap
        Your Own Latent", 2020, equation 2.
    """
    prediction, target = floats("negative_cosine", "[N,D]", prediction=prediction, target=target)
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = F.normalize(prediction, dim=1), F.normalize(target, dim=1)
        return -(prediction * target).sum(dim=1).mean()


def mec_loss(
    prediction: Tensor, target: Tensor, weight: float, order: int = 4, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""MEC: the coding length of the predictions, jointly with their targets, is made as large as it can be.

    .. math:: -\frac{1}{\lambda N} \sum_{k=1}^{n} \frac{(-1)^{k+1}}{k} \operatorname{tr} (\lambda P Z^T)^k

    the Taylor expansion of :math:`-\frac{1}{\lambda N} \log \det(I + \lambda P Z^T)`. Its first order is
    :func:`negative_cosine`; the higher ones keep samples, and dimensions, from saying the same. It converges where
    :math:`\lambda` times the largest singular value of :math:`P Z^T`, which is at most N, is below 1.

    Args:
        prediction: Z, ``[N,D]``; L2-normalised here, as the target is. Float16 and bfloat16 become float32.
        target: P, ``[N,D]``. Gradients reach both: pass a target that carries none.
        weight: :math:`\lambda > 0`.
        order: n, terms of the expansion, at least 1.
        group: The matrix is over the images of all its ranks; None for a single process.

    Returns:
        Scalar. With ``group`` every rank has the whole loss, and DDP's mean gives the single-process gradient.

    Raises:
        ValueError: The shapes differ or are not ``[N,D]``, or a setting is out of range.

    Source:
        Liu et al., "Self-Supervised Learning via Maximum Entropy Coding", 2022, section 3.
    """
    prediction, target = floats("mec_loss", "[N,D]", prediction=prediction, target=target)
    number("mec_loss", above=0, weight=weight)
    count("mec_loss", order=order)
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = gather_together((F.normalize(prediction, dim=1), F.normalize(target, dim=1)), group)
        product = weight * target @ prediction.T
        power, total = product, product.trace()
        for k in range(2, order + 1):
            power = power @ product
            total = total + (-1) ** (k + 1) / k * power.trace()
        return -total / (weight * len(prediction))


def centroid_distance(views: Tensor, centers: int | None = None) -> Tensor:
    r"""Mean squared distance of the views of an image from the mean of its first ``centers`` views.

    .. math:: \frac{1}{V N D} \sum_{v,n} \lVert z_{v,n} - \mu_n \rVert^2, \qquad
              \mu_n = \frac{1}{G} \sum_{v \le G} z_{v,n}

    Gradients flow through the mean too. Over all pairs of views the mean squared difference is twice this, times
    V / (V - 1), if all views are centres.

    Args:
        views: Embeddings ``[V,N,D]``, as they are. Float16 and bfloat16 become float32.
        centers: G, from 1 to V; None is V.

    Returns:
        Scalar, a mean over a rank's own images.

    Raises:
        ValueError: ``views`` are not ``[V,N,D]``, or there are fewer than ``centers``.
    """
    (views,) = floats("centroid_distance", "[V,N,D]", views=views)
    if centers is not None:
        count("centroid_distance", centers=centers)
        if centers > len(views):
            raise ValueError(f"centroid_distance: centers={centers} is more than the {len(views)} views.")
    with torch.autocast(views.device.type, enabled=False):
        distance = (views - views[:centers].mean(0)).square().mean()
        return answer("centroid_distance", distance, "views")
