"""Pairs of embeddings as a contrastive loss sees them, and the losses over them: which attract, which repel."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import floats, integers, kind, number
from selfsup.functional.collectives import gather, rank_of, size_of, sum_over


class Pairs(NamedTuple):
    """Anchors beside candidates.

    Attributes:
        similarity: Cosine similarities ``[A,C]``, float32 at least.
        positive: bool ``[A,C]``: the candidates that an anchor attracts.
        negative: bool ``[A,C]``: those that it repels. What is neither plays no part.
        share: ``[A]``: how much each anchor counts in the mean. Over all ranks they add up to the number of ranks, so
            that DDP's mean is that of one process.
        weight: ``[A,C]``, above 0: how much each pair counts among an anchor's positives, or in a sum over its
            negatives; None is 1 of all.
    """

    similarity: Tensor
    positive: Tensor
    negative: Tensor
    share: Tensor
    weight: Tensor | None = None


def view_pairs(
    views: Tensor,
    positives: Tensor | None = None,
    *,
    first_only: bool = False,
    across: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Pairs:
    """Return every view of every image beside the views of the images of all ranks.

    Args:
        views: Embeddings ``[V,N,D]`` of V views of N images; L2-normalised here. Float16 and bfloat16 become float32.
        positives: None makes the views of an image each other's positives. int64 labels ``[N]`` add those of all images
            of its label; a negative label stands for none. Or a bool mask ``[N,B]`` over the ``B`` images of all ranks
            in rank order, as :func:`supervised_contrastive` takes it. All others are negatives.
        first_only: Let only the first view be an anchor.
        across: Leave out candidates of the anchor's own view.
        group: Process group to gather candidates over; None for a single process. Every rank has the same N.

    Returns:
        Pairs of the anchors ``[V·N]`` (``[N]`` with ``first_only``), one view after the other, and the candidates
        ``[V·B]`` likewise. An anchor without a positive has no share.

    Raises:
        ValueError: Shapes or types that do not fit.
    """
    (views,) = floats("view_pairs", "[V,N,D]", views=views)
    times, local = views.shape[:2]
    total = local * size_of(group)
    with torch.no_grad():
        image = torch.arange(local, device=views.device) + rank_of(group) * local
        same = image[:, None] == torch.arange(total, device=views.device)
        if isinstance(positives, Tensor) and positives.dtype == torch.bool:
            if positives.shape != same.shape:
                raise ValueError(f"view_pairs: positives must be bool [{local},{total}], got {kind(positives)}.")
            same = positives
        elif positives is not None:
            integers("view_pairs", f"[{local}]", positives=positives)
            labels = positives.to(views.device)
            same = same | ((labels[:, None] == gather(labels, group)) & (labels[:, None] >= 0))
        view = torch.arange(times, device=views.device).repeat_interleave(total)
        anchor_view = torch.arange(1 if first_only else times, device=views.device).repeat_interleave(local)
        own_view = anchor_view[:, None] == view
        anchors = len(anchor_view) // local
        itself = own_view & (image[:, None] == torch.arange(total, device=views.device)).repeat(anchors, times)
        positive = same.repeat(anchors, times)
        left_out = own_view if across else itself
        negative = ~positive & ~left_out
        positive = positive & ~left_out
        has_positive = positive.any(dim=1).to(views.dtype)
        share = has_positive / gather(has_positive.sum()[None], group).sum().clamp_min(1) * size_of(group)
    with torch.autocast(views.device.type, enabled=False):
        unit = F.normalize(views, dim=-1)
        candidates = gather(unit.transpose(0, 1), group).transpose(0, 1)
        similarity = unit[: 1 if first_only else times].flatten(0, 1) @ candidates.flatten(0, 1).T
    return Pairs(similarity, positive, negative, share)


def queue_pairs(query: Tensor, key: Tensor, negatives: Tensor, mixed: Tensor | None = None) -> Pairs:
    """Return each query beside its own key, which it attracts, and negatives.

    Args:
        query, key: ``[N,D]``; L2-normalised here. Gradients reach both. Float16 and bfloat16 become float32.
        negatives: ``[K,D]``, used as they are stored.
        mixed: Further negatives of each query alone, ``[N,S,D]``, used as they are; None is none.

    Returns:
        Pairs of the queries ``[N]`` and ``1 + K + S`` candidates.

    Raises:
        ValueError: Shapes that do not fit.
    """
    query, key, negatives = floats("queue_pairs", "[N,D] [N,D] [K?,D]", query=query, key=key, negatives=negatives)
    with torch.autocast(query.device.type, enabled=False):
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        parts = [(query * key).sum(dim=1, keepdim=True), query @ negatives.T]
        if mixed is not None:
            (mixed,) = floats("queue_pairs", f"[{len(query)},S,{query.shape[1]}]", mixed=mixed)
            parts.append(torch.einsum("nd,nsd->ns", query, mixed.to(query.dtype)))
        similarity = torch.cat(parts, dim=1)
    first = torch.zeros_like(similarity, dtype=torch.bool)
    first[:, 0] = True
    return Pairs(similarity, first, ~first, query.new_full((len(query),), 1 / len(query)))


def positive_mean(pairs: Pairs, values: Tensor) -> Tensor:
    """Return the mean ``[A]`` of ``values [A,C]`` over each anchor's positives; 0 of one without any."""
    weight = pairs.positive.to(values.dtype) if pairs.weight is None else pairs.weight * pairs.positive
    kept = torch.where(pairs.positive, values, 0.0)  # what is left out may be infinite
    return (weight * kept).sum(dim=1) / weight.sum(dim=1).clamp_min(torch.finfo(values.dtype).tiny)


def log_sum(pairs: Pairs, logits: Tensor, among: Tensor) -> Tensor:
    """Return ``log Σ w exp(logits)`` over the candidates ``among [A,C]``, ``[A]``: −inf where there are none."""
    if pairs.weight is not None:
        logits = logits + pairs.weight.log()
    lowest = torch.finfo(logits.dtype).min
    filled = torch.where(among, logits, lowest)
    some = among.any(dim=1)
    sums = torch.where(some[:, None], filled, 0.0).logsumexp(dim=1)  # a row of -inf has no gradient
    return torch.where(some, sums, -math.inf)


def anchor_mean(pairs: Pairs, values: Tensor) -> Tensor:
    """Return the mean of ``values [A]`` over the anchors, each with its share."""
    return (pairs.share * torch.where(pairs.share > 0, values, 0.0)).sum()


def batch_mean(pairs: Pairs, values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the mean of ``values [A]`` over the anchors of all ranks, the same on each."""
    return sum_over(anchor_mean(pairs, values), group) / size_of(group)


def pair_nce(pairs: Pairs, temperature: float | Tensor) -> Tensor:
    r"""InfoNCE with any positives: the mean over an anchor's positives stands outside the logarithm.

    .. math:: \ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)} \log
              \frac{\exp(s_{ip} / \tau)}{\sum_{a \in P(i) \cup N(i)} \exp(s_{ia} / \tau)}

    With the pairs of two views it is NT-Xent, with labels the supervised contrastive loss, with a queue InfoNCE.

    Args:
        pairs: Of :func:`view_pairs` or :func:`queue_pairs`.
        temperature: :math:`\tau > 0`.

    Returns:
        Scalar. With DDP's mean over ranks, value and gradient are those of one process with all images.

    Source:
        Khosla et al., "Supervised Contrastive Learning", 2020, equation 2, averaged over the anchors.
    """
    number("pair_nce", above=0, temperature=temperature)
    logits = pairs.similarity / temperature
    loss = log_sum(pairs, logits, pairs.positive | pairs.negative) - positive_mean(pairs, logits)
    return anchor_mean(pairs, loss)
