"""Masked siamese networks: sharpened codes, their prediction, and a prior of how much each prototype is used."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import count, floats, number
from selfsup.functional.assignment import sinkhorn
from selfsup.functional.collectives import size_of, sum_over


@torch.no_grad()
def sharpened_codes(
    scores: Tensor,
    temperature: float,
    sharpening: float = 0.25,
    iterations: int = 3,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Soft assignments to prototypes, sharpened, then balanced over the batch by Sinkhorn-Knopp (MSN).

    With :math:`p = \operatorname{softmax}(s / \tau)`, the sharpened :math:`p_k^{1/T} / \sum_j p_j^{1/T}` is where
    Sinkhorn-Knopp begins, in place of :math:`\exp(s / \epsilon)`.

    Args:
        scores: ``[N,K]``, cosines with the prototypes. Float16 and bfloat16 become float32.
        temperature: :math:`\tau > 0`.
        sharpening: :math:`T > 0`; 1 leaves the assignments as they are.
        iterations: Of Sinkhorn-Knopp; 0 is none.
        group: Process group whose samples are balanced together; None for a single process.

    Returns:
        ``[N,K]``, rows that sum to 1.

    Raises:
        ValueError: Scores that are not ``[N,K]``, or a setting out of range.

    Source:
        Assran et al., "Masked Siamese Networks for Label-Efficient Learning", 2022, with the authors' code
        (facebookresearch/msn, 4388dc1).
    """
    (scores,) = floats("sharpened_codes", "[N,K]", scores=scores)
    number("sharpened_codes", above=0, temperature=temperature, sharpening=sharpening)
    count("sharpened_codes", least=0, iterations=iterations)
    with torch.autocast(scores.device.type, enabled=False):
        logits = F.log_softmax(scores / (temperature * sharpening), dim=1)
        return sinkhorn(logits, 1.0, iterations, group) if iterations else logits.exp()


def code_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    r"""Cross-entropy of several views of each image with its codes, averaged over views and images.

    .. math:: -\frac{1}{VN} \sum_{v,n,k} q_{nk} \log \operatorname{softmax}(s_{vn} / \tau)_k

    Args:
        scores: ``[V,N,K]``. Float16 and bfloat16 become float32.
        codes: ``[N,K]``, rows that sum to 1; detached.
        temperature: :math:`\tau > 0`.

    Returns:
        Scalar, the mean over this process's images.

    Raises:
        ValueError: Shapes that do not fit, or a temperature out of range.

    Source:
        Assran et al., "Masked Siamese Networks for Label-Efficient Learning", 2022, equation 1.
    """
    scores, codes = floats("code_prediction", "[V,N,K] [N,K]", scores=scores, codes=codes)
    number("code_prediction", above=0, temperature=temperature)
    with torch.autocast(scores.device.type, enabled=False):
        return -(codes.detach() * F.log_softmax(scores / temperature, dim=2)).sum(dim=2).mean()


def prior_divergence(
    scores: Tensor, temperature: float, exponent: float = 0.0, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""How far the mean assignment is from a power law over the prototypes.

    .. math:: KL(\bar p \Vert \pi) = \sum_k \bar p_k \log \frac{\bar p_k}{\pi_k},
              \qquad \pi_k \propto k^{-a}, \quad k = 1 \dots K

    with :math:`\bar p` the mean of :math:`\operatorname{softmax}(s / \tau)` over all rows of all ranks. At
    :math:`a = 0` it is :math:`\ln K - H(\bar p)`, MSN's mean-entropy maximisation; PMSN takes :math:`a = 0.25`.

    Args:
        scores: ``[M,K]``. Float16 and bfloat16 become float32.
        temperature: :math:`\tau > 0`.
        exponent: :math:`a \ge 0`.
        group: Process group over whose rows the mean goes; None for a single process. Every rank has the same M.

    Returns:
        Scalar. With DDP's mean over ranks, value and gradient are those of one process with all rows.

    Raises:
        ValueError: Scores that are not ``[M,K]``, or a setting out of range.

    Source:
        Assran et al., "Masked Siamese Networks for Label-Efficient Learning", 2022; "The Hidden Uniform Cluster Prior
        in Self-Supervised Learning", 2023.
    """
    (scores,) = floats("prior_divergence", "[M,K]", scores=scores)
    number("prior_divergence", above=0, temperature=temperature)
    number("prior_divergence", least=0, exponent=exponent)
    with torch.autocast(scores.device.type, enabled=False):
        share = sum_over(F.softmax(scores / temperature, dim=1).sum(dim=0), group) / (len(scores) * size_of(group))
        rank = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype, device=scores.device)
        log_prior = F.log_softmax(-exponent * rank.log(), dim=0)
        tiny = torch.finfo(share.dtype).tiny  # a prototype that no row is near has no logarithm
        return (share * (share.clamp_min(tiny).log() - log_prior)).sum()
