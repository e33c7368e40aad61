"""Contrastive losses: NT-Xent, InfoNCE against a queue or the other view, the supervised one, and ReSSL's."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import count, floats, integers, kind, number
from selfsup.functional.collectives import gather, gather_together, rank_of, size_of


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, group: dist.ProcessGroup | None = None) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy of SimCLR, averaged over the anchors of both views.

    .. math:: \ell_i = -\log \frac{\exp(z_i \cdot z_{p(i)} / \tau)}{\sum_{a \ne i} \exp(z_i \cdot z_a / \tau)}

    The candidates ``a`` are all other embeddings of both views, over all ranks of ``group``. The authors' TensorFlow
    code adds the means of the two views and is twice this value; the paper, and this function, average 2N anchors.

    Args:
        z1, z2: Embeddings of the two views ``[N,D]``; L2-normalised here. Float16 and bfloat16 become float32.
        temperature: :math:`\tau > 0`.
        group: Process group to gather candidates over; None for a single process. Every rank has the same N.

    Returns:
        Scalar. With DDP's mean over ranks, value and gradient are those of one process with all images.

    Raises:
        ValueError: The views differ in shape or are not ``[N,D]``, or an argument is out of its range.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020, equation 1.
    """
    z1, z2 = floats("nt_xent", "[N,D]", z1=z1, z2=z2)
    number("nt_xent", above=0, temperature=temperature)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
        all1, all2 = gather_together((z1, z2), group)
        local, total = len(z1), len(all1)
        logits = torch.cat([z1, z2]) @ torch.cat([all1, all2]).T / temperature  # [2N, 2B]
        row = torch.arange(local, device=z1.device) + rank_of(group) * local
        itself = torch.cat([row, row + total])
        partner = torch.cat([row + total, row])
        logits = logits.scatter(1, itself[:, None], float("-inf"))
        return F.cross_entropy(logits, partner)


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    r"""InfoNCE with one positive key for each query and a shared set of negatives, averaged over the queries.

    .. math:: \ell_i = -\log \frac{\exp(q_i \cdot k_i / \tau)}{\exp(q_i \cdot k_i / \tau)
              + \sum_{n} \exp(q_i \cdot n / \tau)}

    Args:
        query, key: ``[N,D]``; L2-normalised here. Gradients reach both: pass keys that carry none where the method
            stops them. Float16 and bfloat16 become float32.
        negatives: ``[K,D]``, used as they are stored.
        temperature: :math:`\tau > 0`.

    Raises:
        ValueError: Shapes that do not fit, or an argument out of its range.

    Source:
        He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, equation 1.
    """
    query, key, negatives = floats("info_nce", "[N,D] [N,D] [K?,D]", query=query, key=key, negatives=negatives)
    number("info_nce", above=0, temperature=temperature)
    with torch.autocast(query.device.type, enabled=False):
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        positive = (query * key).sum(dim=1, keepdim=True)
        negative = query @ negatives.T
        logits = torch.cat([positive, negative], dim=1) / temperature
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def ressl_loss(
    query: Tensor, key: Tensor, anchors: Tensor, query_temperature: float = 0.1, key_temperature: float = 0.04
) -> Tensor:
    r"""ReSSL: a query's similarities to a set of anchors follow those of its key.

    .. math:: -\frac{1}{N} \sum_i \sum_a \operatorname{softmax}(k_i \cdot A / \tau_k)_a
              \log \operatorname{softmax}(q_i \cdot A / \tau_q)_a

    There is no term of its own for the positive pair: the two views meet in what they say of the anchors.

    Args:
        query, key: ``[N,D]``; L2-normalised here. The key is detached. Float16 and bfloat16 become float32.
        anchors: ``[K,D]``, used as they are stored; detached.
        query_temperature, key_temperature: :math:`\tau_q, \tau_k > 0`; the key's is the lower one, which sharpens the
            target.

    Returns:
        Scalar, the mean over this process's queries; at least the mean entropy of the targets.

    Raises:
        ValueError: Shapes that do not fit, or an argument out of its range.

    Source:
        Zheng et al., "ReSSL: Relational Self-Supervised Learning with Weak Augmentation", 2021, section 3.
    """
    query, key, anchors = floats("ressl_loss", "[N,D] [N,D] [K,D]", query=query, key=key, anchors=anchors)
    number("ressl_loss", above=0, query_temperature=query_temperature, key_temperature=key_temperature)
    with torch.autocast(query.device.type, enabled=False):
        query, key, anchors = F.normalize(query, dim=1), F.normalize(key.detach(), dim=1), anchors.detach()
        target = F.softmax(key @ anchors.T / key_temperature, dim=1)
        return F.cross_entropy(query @ anchors.T / query_temperature, target)


def cross_view_nce(query: Tensor, key: Tensor, temperature: float, group: dist.ProcessGroup | None = None) -> Tensor:
    r"""InfoNCE of one view against the other: a query finds its own key among the keys of the batch.

    .. math:: \ell_i = -\log \frac{\exp(q_i \cdot k_i / \tau)}{\sum_j \exp(q_i \cdot k_j / \tau)}

    Only keys are candidates; queries are never compared with each other. The sum runs over the keys of all ranks.

    Args:
        query, key: ``[N,D]``, row ``i`` of both from image ``i``; L2-normalised here. Gradients reach what carries
            them: pass keys (MoCo v3) or queries (NNCLR) without. Float16 and bfloat16 become float32.
        temperature: :math:`\tau > 0`.
        group: Process group to gather keys over; None for a single process. Every rank has the same N.

    Returns:
        Scalar, averaged over this rank's queries. With DDP's mean over ranks, value and gradient are those of one
        process with all images.

    Raises:
        ValueError: The tensors differ in shape or are not ``[N,D]``, or an argument is out of its range.

    Source:
        Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", 2021, equation 1 and
        algorithm 1; Dwibedi et al., "With a Little Help from My Friends", 2021, section 3.
    """
    query, key = floats("cross_view_nce", "[N,D]", query=query, key=key)
    number("cross_view_nce", above=0, temperature=temperature)
    with torch.autocast(query.device.type, enabled=False):
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        logits = query @ gather(key, group).T / temperature
        own = torch.arange(len(query), device=query.device) + rank_of(group) * len(query)
        return F.cross_entropy(logits, own)


def supervised_contrastive(
    features: Tensor,
    positives: Tensor,
    temperature: float,
    base_temperature: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Supervised contrastive loss: every anchor attracts all its positives and repels the rest of the batch.

    .. math:: \ell_i = \frac{\tau}{\tau_b} \cdot \frac{-1}{|P(i)|} \sum_{p \in P(i)}
              \log \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{a \ne i} \exp(z_i \cdot z_a / \tau)}

    The mean over the positives stands outside the logarithm. The candidates ``a`` are all other embeddings of all
    views and ranks. An anchor without a positive is left out of the mean; without any such anchor the loss is zero.
    With two views and labels that all differ this is NT-Xent.

    Args:
        features: Embeddings ``[V,N,D]`` of V views of N images, or ``[N,D]``; L2-normalised here. Float16 and bfloat16
            become float32.
        positives: int64 labels ``[N]``: images of one label are each other's positives, and so are the views of one
            image; a negative label stands for none, and leaves an image only its own other views. Or a bool mask
            ``[N,B]`` over the ``B`` images of all ranks in rank order: row ``i`` marks the images whose embeddings are
            positives of image ``i``, itself included if its other views are. It need not be symmetric.
        temperature: :math:`\tau > 0`.
        base_temperature: :math:`\tau_b`. None leaves the factor out, as the paper's formula does; the authors' code
            has 0.07. It scales the loss, and with it the learning rate of optimisers that do not adapt.
        group: Process group to gather candidates over; None for a single process. Every rank has the same N.

    Returns:
        Scalar. With DDP's mean over ranks, value and gradient are those of one process with all images.

    Raises:
        ValueError: Shapes or types that do not fit.

    Source:
        Khosla et al., "Supervised Contrastive Learning", 2020, equation 2, averaged over the anchors.
    """
    (features,) = floats("supervised_contrastive", "[...,N,D]", features=features)
    if features.ndim > 3 or not features.numel():
        raise ValueError(f"supervised_contrastive: features must be [N,D] or [V,N,D], got {kind(features)}.")
    number("supervised_contrastive", above=0, temperature=temperature)
    if base_temperature is not None:
        number("supervised_contrastive", above=0, base_temperature=base_temperature)
    views = features if features.ndim == 3 else features[None]
    local = views.shape[1]
    offset, total = rank_of(group) * local, size_of(group) * local
    masked = isinstance(positives, Tensor) and positives.dtype == torch.bool
    if not masked:
        integers("supervised_contrastive", f"[{local}]", positives=positives)
    elif positives.shape != (local, total):
        raise ValueError(f"supervised_contrastive: positives must be bool [{local},{total}], got {kind(positives)}.")
    if positives.device != features.device:
        raise ValueError(
            f"supervised_contrastive: features is on {features.device} and positives on {positives.device}."
        )
    with torch.autocast(features.device.type, enabled=False), torch.no_grad():
        image = torch.arange(local, device=features.device) + offset
        if not masked:
            known = positives[:, None] >= 0
            positives = (positives[:, None] == gather(positives, group)) & known
            positives = positives.scatter(1, image[:, None], True)
    with torch.autocast(features.device.type, enabled=False):
        views = F.normalize(views, dim=-1)
        candidates = gather(views.transpose(0, 1), group).transpose(0, 1)  # [V,B,D]
        logits = views.flatten(0, 1) @ candidates.flatten(0, 1).T / temperature  # [V*N, V*B]
        times = len(views)
        itself = (torch.arange(times, device=logits.device)[:, None] * candidates.shape[1] + image).reshape(-1, 1)
        weight = positives.to(logits.dtype).repeat(times, times).scatter(1, itself, 0.0)
        positive_count = weight.sum(dim=1)
        others = logits.scatter(1, itself, float("-inf"))
        loss = others.logsumexp(dim=1) - (weight * logits).sum(dim=1) / positive_count.clamp_min(1)
        has_positive = positive_count > 0
        anchors = gather(has_positive.sum().to(logits.dtype)[None], group).sum().clamp_min(1) / size_of(group)
        loss = torch.where(has_positive, loss, 0.0).sum() / anchors
        return loss if base_temperature is None else loss * (temperature / base_temperature)


@torch.no_grad()
def nearest_neighbor(query: Tensor, candidates: Tensor) -> Tensor:
    """Return for each query the candidate of the greatest cosine similarity; no gradient flows.

    Args:
        query: ``[N,D]``, of any length.
        candidates: ``[K,D]``; L2-normalised here. The search runs in float32 (or the query's higher precision): in a
            lower one near neighbours tie.

    Returns:
        ``[N,D]``: rows of ``candidates`` as they were passed.

    Raises:
        ValueError: Shapes that do not fit, or no candidates.
    """
    return candidates[_similarity("nearest_neighbor", query, candidates).argmax(dim=1)]


@torch.no_grad()
def nearest_neighbors(query: Tensor, candidates: Tensor, k: int) -> Tensor:
    """Return for each query the ``k`` candidates of the greatest cosine similarity, the nearest first.

    Args:
        query, candidates: As :func:`nearest_neighbor` takes them.
        k: From 1 to the number of candidates.

    Returns:
        ``[N,k,D]``: rows of ``candidates`` as they were passed.

    Raises:
        ValueError: Shapes that do not fit, no candidates, or fewer than are asked for.
    """
    count("nearest_neighbors", k=k)
    similarity = _similarity("nearest_neighbors", query, candidates)
    if k > len(candidates):
        raise ValueError(f"nearest_neighbors: {k} of {len(candidates)} candidates cannot be found.")
    return candidates[similarity.topk(k, dim=1).indices]


def _similarity(function: str, query: Tensor, candidates: Tensor) -> Tensor:
    precise_query, precise = floats(function, "[N,D] [K,D]", query=query, candidates=candidates)
    with torch.autocast(query.device.type, enabled=False):
        # a query's length changes no order, but that of a huge one could overflow
        return F.normalize(precise_query, dim=1) @ F.normalize(precise, dim=1).T
