"""Contrastive losses: NT-Xent and InfoNCE."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.collectives import gather, rank_of


def full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or as it is when it already has at least that precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


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
        ValueError: The views differ in shape or are not ``[N,D]``.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020, equation 1.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(f"nt_xent needs two [N,D] tensors of one shape, got {tuple(z1.shape)} and {tuple(z2.shape)}")
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = F.normalize(full_precision(z1), dim=1), F.normalize(full_precision(z2), dim=1)
        all1, all2 = gather(z1, group), gather(z2, group)
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
        ValueError: Shapes that do not fit.

    Source:
        He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020, equation 1.
    """
    if query.shape != key.shape or query.ndim != 2 or negatives.ndim != 2 or negatives.shape[1] != query.shape[1]:
        raise ValueError(
            "info_nce needs query and key [N,D] and negatives [K,D], got "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(negatives.shape)}"
        )
    with torch.autocast(query.device.type, enabled=False):
        query, key = F.normalize(full_precision(query), dim=1), F.normalize(full_precision(key), dim=1)
        positive = (query * key).sum(dim=1, keepdim=True)
        negative = query @ negatives.to(query.dtype).T
        logits = torch.cat([positive, negative], dim=1) / temperature
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
