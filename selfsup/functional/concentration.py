"""How an augmentation gathers the images of a class, and what the features make of that."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.functional.arguments import floats, integers, number

VIEWS = "[N,V,D]"


def augmented_distance(views: Tensor) -> Tensor:
    """Return how near two images come to each other when both are augmented: ``[N,N]``, zero on the diagonal.

    ``d_A(i, j) = min_{v,w} ‖x_iv - x_jw‖`` over the views that were drawn, an upper bound of the minimum over all
    views (Huang et al., "Towards the Generalization of Contrastive Self-Supervised Learning", arXiv:2111.00743,
    definition of the augmented distance).

    Args:
        views: float ``[N,V,D]``: V views of each of N images, as pixels or as features.

    Raises:
        ValueError: Another shape.
    """
    (views,) = floats("augmented_distance", VIEWS, views=views)
    images, count = views.shape[:2]
    found = views.new_full((images, images), torch.inf)
    with torch.autocast(views.device.type, enabled=False):
        for view in range(count):
            distances = torch.cdist(views[:, view], views.flatten(0, 1)).view(images, images, count)
            found = torch.minimum(found, distances.amin(2))
    found = torch.minimum(found, found.T)  # the same but for rounding
    return found.fill_diagonal_(0.0)


def misaligned_share(views: Tensor, epsilon: float) -> Tensor:
    """Return the share of images of which two views have features further apart than ``epsilon``: 0 is aligned.

    ``R_ε = P_x(max_{v,w} ‖u_xv - u_xw‖ > ε)`` with ``u`` the L2-normalised features (arXiv:2111.00743, where the
    supremum is over all views; over V drawn ones it is a lower bound).

    Args:
        views: float ``[N,V,D]``, at least two views.
        epsilon: A distance, above 0; 2 is the largest there is.

    Raises:
        ValueError: Another shape, or a single view.
    """
    (views,) = floats("misaligned_share", VIEWS, views=views)
    number("misaligned_share", above=0, epsilon=epsilon)
    if views.shape[1] < 2:
        raise ValueError("misaligned_share: views must hold at least two views of an image.")
    u = F.normalize(views, dim=2)
    apart = torch.stack([torch.linalg.vector_norm(u - u[:, view, None], dim=2).amax(1) for view in range(u.shape[1])])
    return (apart.amax(0) > epsilon).to(u.dtype).mean()


def class_overlap(views: Tensor, labels: Tensor) -> Tensor:
    """Return the inner products of the class centres: ``[K,K]``, in the order of the labels that occur.

    ``μ_k·μ_l`` with ``μ_k`` the mean of the L2-normalised features of all views of the images of class k. Classes are
    apart, for a classifier by the nearest centre, where the values off the diagonal are small: the divergence of
    arXiv:2111.00743. On the diagonal is ``‖μ_k‖²``, 1 when all features of a class are equal.

    Args:
        views: float ``[N,V,D]``.
        labels: int64 ``[N]``, of at least two classes.

    Raises:
        ValueError: Another shape, or a single class.
    """
    (views,) = floats("class_overlap", VIEWS, views=views)
    integers("class_overlap", f"[{len(views)}]", labels=labels)
    classes, place = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("class_overlap: labels must be of at least two classes.")
    means = F.normalize(views, dim=2).mean(1)
    sums = means.new_zeros(len(classes), means.shape[1]).index_add_(0, place, means)
    centres = sums / torch.bincount(place, minlength=len(classes))[:, None]
    return centres @ centres.T
