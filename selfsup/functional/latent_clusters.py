"""What CAPI adds: the places that are predicted, and assignments of patches to clusters, balanced place by place."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import count as check_count
from selfsup.functional.arguments import floats, number
from selfsup.functional.collectives import size_of
from selfsup.functional.masks import Draw, kept_index

_FIRST = 3  # numbers of an image's row that inverse_block_mask takes before


@torch.no_grad()
def positionwise_sinkhorn(
    scores: Tensor, epsilon: float = 0.06, iterations: int = 3, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""Soft assignments of the patches at each place to clusters, which the images of a batch use about equally there.

    Starts from :math:`\exp(s / \epsilon)`. Every iteration first gives each cluster, at each place, the same share of
    the images, then each patch the share 1. A cluster thus cannot stand for a place, as those would that are the same
    in every image. With one place it is :func:`sinkhorn`. It runs in logarithms: with few images and many clusters most
    exponentials would vanish.

    Args:
        scores: ``[N,L,K]``, of the patches at L places. Float16 and bfloat16 become float32.
        epsilon: Smoothness :math:`\epsilon > 0`.
        iterations: At least 1.
        group: Process group whose images are assigned together; None for a single process. Every rank has the same L.

    Returns:
        ``[N,L,K]``, rows that sum to 1.

    Raises:
        ValueError: Scores that are not ``[N,L,K]``, or a setting out of range.

    Source:
        Darcet et al., "Cluster and Predict Latent Patches for Improved Masked Image Modeling", 2025, with the authors'
        code (facebookresearch/capi, 98b4fa1).
    """
    (scores,) = floats("positionwise_sinkhorn", "[N,L,K]", scores=scores)
    number("positionwise_sinkhorn", above=0, epsilon=epsilon)
    check_count("positionwise_sinkhorn", iterations=iterations)
    with torch.autocast(scores.device.type, enabled=False):
        logits = scores / epsilon
        for _ in range(iterations):
            logits = F.log_softmax(logits - _log_sum_over_images(logits, group), dim=2)
        return logits.exp()


def _log_sum_over_images(logits: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return ``[1,L,K]``, the logarithm of the sum of the exponentials of all ranks' images."""
    if size_of(group) == 1:
        return logits.logsumexp(dim=0, keepdim=True)
    top = logits.amax(dim=0, keepdim=True)
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    total = (logits - top).exp().sum(dim=0, keepdim=True)
    dist.all_reduce(total, group=group)
    return top + total.log()


def chosen_places(draw: Draw, mask: Tensor, share: float) -> Tensor:
    """Choose some of the masked tokens at random: round(share · masked) in each image, at least one (CAPI).

    Args:
        draw: Uniform numbers of each image, see :mod:`selfsup.functional.masks`; those that
            :func:`inverse_block_mask` takes of the same row are left alone.
        mask: bool ``[N,L]``, with the same number of masked tokens in every image.
        share: Of the masked tokens, in (0, 1].

    Returns:
        int64 ``[N,Q]``.

    Raises:
        ValueError: Images with different numbers of masked tokens, or none, or a share out of range.
    """
    kept_index(mask)  # looks at the mask
    masked = kept_index(~mask)
    number("chosen_places", above=0, below=math.nextafter(1, 2), share=share)
    if not masked.shape[1]:
        raise ValueError("chosen_places: mask has no masked token to choose.")
    count = max(1, round(share * masked.shape[1]))
    order = draw(range(_FIRST, _FIRST + masked.shape[1])).argsort(dim=1, stable=True)[:, :count]
    return masked.gather(1, order.to(masked.device))
