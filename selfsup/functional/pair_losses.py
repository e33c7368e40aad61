"""Losses over pairs that others have put in InfoNCE's place: decoupled, debiased, adaptive, over kernels, global."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from selfsup.functional.arguments import floats, number
from selfsup.functional.pairs import Pairs, anchor_mean, batch_mean, log_sum, pair_nce, positive_mean


def decoupled_contrastive(
    pairs: Pairs, temperature: float, sigma: float | None = None, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""DCL: InfoNCE without the positives in the denominator; with ``sigma`` DCLW, which weighs the positives.

    .. math:: \ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)} w_{ip} s_{ip} / \tau
              + \log \sum_{n \in N(i)} \exp(s_{in} / \tau)

    :math:`w = 1`, or for DCLW :math:`w_{ip} = 2 - \exp(s_{ip} / \sigma) / m` with :math:`m` the mean of that
    exponential over all positive pairs: a pair that lies close already weighs less. Gradients flow through the weights.

    Args:
        pairs: Of :func:`view_pairs` or :func:`queue_pairs`. An anchor without negatives is left out.
        temperature: :math:`\tau > 0`.
        sigma: :math:`\sigma > 0` of the weights.
        group: Process group over which the mean of DCLW goes; None for a single process.

    Source:
        Yeh et al., "Decoupled Contrastive Learning", 2022, equations 4 to 6.
    """
    number("decoupled_contrastive", above=0, temperature=temperature)
    attraction = pairs.similarity
    if sigma is not None:
        number("decoupled_contrastive", above=0, sigma=sigma)
        closeness = ((pairs.similarity - 1) / sigma).exp()  # any factor falls out
        mean = batch_mean(pairs, positive_mean(pairs, closeness), group)
        attraction = (2 - closeness / mean) * attraction
    repulsion = log_sum(pairs, pairs.similarity / temperature, pairs.negative)
    loss = repulsion - positive_mean(pairs, attraction) / temperature
    return anchor_mean(pairs, torch.where(repulsion > -math.inf, loss, 0.0))


def debiased_contrastive(pairs: Pairs, temperature: float, prior: float, concentration: float = 0.0) -> Tensor:
    r"""InfoNCE whose sum over the negatives is corrected for those that are none, with hard negatives weighing more.

    .. math:: g_i = \max\Bigl(\frac{\sum_n w_{in} e^{s_{in} / \tau} - M \tau^+ \bar p_i}{1 - \tau^+},\;
              M e^{-1 / \tau}\Bigr), \quad
              \ell_i = -\frac{1}{|P(i)|} \sum_p \log \frac{e^{s_{ip} / \tau}}{e^{s_{ip} / \tau} + g_i}

    :math:`M` counts the negatives, :math:`\bar p_i` is the mean of :math:`e^{s_{ip} / \tau}` over the positives, and
    :math:`w_{in} = M e^{\beta s_{in} / \tau} / \sum_m e^{\beta s_{im} / \tau}`. Without prior and concentration this is
    InfoNCE.

    Args:
        pairs: Of :func:`view_pairs` or :func:`queue_pairs`.
        temperature: :math:`\tau > 0`.
        prior: :math:`\tau^+`, the probability that a negative is of the anchor's class, in [0, 1).
        concentration: :math:`\beta \ge 0`.

    Source:
        Chuang et al., "Debiased Contrastive Learning", 2020, equations 7 and 8; Robinson et al., "Contrastive Learning
        with Hard Negative Samples", 2021, equation 4.
    """
    number("debiased_contrastive", above=0, temperature=temperature)
    number("debiased_contrastive", least=0, below=1, prior=prior)
    number("debiased_contrastive", least=0, concentration=concentration)
    logits = pairs.similarity / temperature
    ones = torch.zeros_like(logits)
    log_count = log_sum(pairs, ones, pairs.negative)
    repulsion = log_sum(pairs, (1 + concentration) * logits, pairs.negative)
    if concentration:
        repulsion = repulsion + log_count - log_sum(pairs, concentration * logits, pairs.negative)
    if prior:
        mean = log_sum(pairs, logits, pairs.positive) - log_sum(pairs, ones, pairs.positive)
        false = log_count + math.log(prior) + mean
        gap = false - repulsion  # log(e^r - e^f) = r + log(1 - e^(f - r)), which is real where f < r
        real = gap < 0
        rest = repulsion + torch.log(-torch.expm1(torch.where(real, gap, -1.0))) - math.log1p(-prior)
        least = log_count - 1 / temperature
        repulsion = torch.where(real & (rest > least), rest, least)
    loss = torch.logaddexp(logits, repulsion[:, None]) - logits
    return anchor_mean(pairs, positive_mean(pairs, loss))


def model_aware_temperature(
    pairs: Pairs, temperature: float, alpha: float, offset: float, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""Return MACL's temperature, which rises as the positives draw near: :math:`\tau_0 (1 + \alpha (A - A_0))`.

    :math:`A` is the mean similarity of the positives over all anchors of all ranks; no gradient flows.

    Args:
        pairs: Of :func:`view_pairs` or :func:`queue_pairs`.
        temperature: :math:`\tau_0 > 0`.
        alpha: :math:`\alpha \ge 0`.
        offset: :math:`A_0`. The factor is at least 0.01, which it could fall below only with a large ``alpha``.
        group: Process group over which the mean goes; None for a single process.

    Returns:
        Scalar, the same on every rank.

    Source:
        Huang et al., "Model-Aware Contrastive Learning", 2023, equation 8.
    """
    number("model_aware_temperature", above=0, temperature=temperature)
    number("model_aware_temperature", least=0, alpha=alpha)
    number("model_aware_temperature", offset=offset)
    with torch.no_grad():
        nearness = batch_mean(pairs, positive_mean(pairs, pairs.similarity), group)
        return temperature * (1 + alpha * (nearness - offset)).clamp_min(0.01)


def reweighted_nce(pairs: Pairs, temperature: float | Tensor) -> Tensor:
    r"""InfoNCE whose anchors weigh ``1 / (1 − P)``, with ``P`` the probability of the positive: MACL's weights.

    .. math:: \ell_i = -\frac{1}{|P(i)|} \sum_p V_{ip} \log P_{ip}, \quad V_{ip} = \frac{1}{1 - P_{ip}}

    No gradient flows through the weight. It takes back that InfoNCE's gradient vanishes where negatives are few.

    Args:
        pairs: Of :func:`view_pairs` or :func:`queue_pairs`.
        temperature: :math:`\tau > 0`.

    Source:
        Huang et al., "Model-Aware Contrastive Learning", 2023, equation 9.
    """
    number("reweighted_nce", above=0, temperature=temperature)
    logits = pairs.similarity / temperature
    log_probability = logits - log_sum(pairs, logits, pairs.positive | pairs.negative)[:, None]
    weight = 1 / -torch.expm1(log_probability.detach()).clamp(max=-1e-8)
    return anchor_mean(pairs, -positive_mean(pairs, weight * log_probability))


def attraction_repulsion(
    pairs: Pairs,
    attraction: float,
    repulsion: float,
    positive_temperature: float,
    negative_temperature: float,
    through_weights: bool = True,
) -> Tensor:
    r"""CACR: far positives are drawn harder, near negatives pushed harder; no softmax of one against the other.

    .. math:: \ell_i = \alpha \sum_p \operatorname{softmax}_p(\tau^+ c_{ip}) c_{ip}
              - \beta \sum_n \operatorname{softmax}_n(-\tau^- c_{in}) c_{in}, \quad c = \lVert a - b \rVert^2 = 2 - 2 s

    Args:
        pairs: Of :func:`view_pairs` or :func:`queue_pairs`.
        attraction, repulsion: :math:`\alpha, \beta \ge 0`.
        positive_temperature, negative_temperature: :math:`\tau^+, \tau^- > 0`; they multiply the distances.
        through_weights: Let gradients flow through the two softmaxes, as the authors' small experiments do; those on
            ImageNet stop them at the positives' and not at the negatives', which this does with False.

    Source:
        Zheng et al., "Contrastive Attraction and Contrastive Repulsion for Representation Learning", 2021, equations 5
        and 6.
    """
    number("attraction_repulsion", least=0, attraction=attraction, repulsion=repulsion)
    number(
        "attraction_repulsion",
        above=0,
        positive_temperature=positive_temperature,
        negative_temperature=negative_temperature,
    )
    cost = 2 - 2 * pairs.similarity
    pulled = _softmax(pairs, positive_temperature * cost, pairs.positive)
    pushed = _softmax(pairs, -negative_temperature * cost, pairs.negative)
    if not through_weights:
        pulled = pulled.detach()
    return anchor_mean(pairs, attraction * (pulled * cost).sum(1) - repulsion * (pushed * cost).sum(1))


def _softmax(pairs: Pairs, logits: Tensor, among: Tensor) -> Tensor:
    """Return weights that add up to 1 over the candidates ``among``, 0 of all others."""
    total = log_sum(pairs, logits, among)[:, None]
    exponent = torch.where(among, logits - total, -math.inf)
    if pairs.weight is not None:
        exponent = exponent + pairs.weight.log()
    return torch.where(among, exponent, 0.0).exp() * among


def kernel_nce(pairs: Pairs, temperature: float, gamma: float) -> Tensor:
    r"""InfoNCE over the kernel :math:`\exp(-\lVert a - b \rVert^\gamma / \tau)` of unit vectors.

    ``gamma = 2`` is the Gaussian kernel: InfoNCE at half the temperature. 1 is the Laplacian.

    Args:
        pairs: Of :func:`view_pairs` or :func:`queue_pairs`.
        temperature: :math:`\tau > 0`.
        gamma: :math:`\gamma > 0`. Below 2 the gradient of coinciding points is unbounded, so 1e-8 is added to every
            squared distance.

    Source:
        Tan et al., "Contrastive Learning Is Spectral Clustering on Similarity Graph", 2024, section 5.
    """
    number("kernel_nce", above=0, temperature=temperature, gamma=gamma)
    distance = ((2 - 2 * pairs.similarity).clamp_min(0) + 1e-8).pow(gamma / 2)
    return pair_nce(pairs._replace(similarity=-distance), temperature)


def poly_view_loss(pairs: Pairs, temperature: float, arithmetic: bool = False) -> Tensor:
    r"""Poly-view contrast: each positive stands alone against the negatives, and the positives are averaged.

    .. math:: \ell_{ip} = \frac{\exp(s_{ip} / \tau)}{\exp(s_{ip} / \tau) + \sum_{n \in N(i)} \exp(s_{in} / \tau)}

    The geometric mean minimises :math:`-\frac{1}{|P|} \sum_p \log \ell_{ip}`, the arithmetic one
    :math:`-\log \frac{1}{|P|} \sum_p \ell_{ip}`. With one positive both are InfoNCE.

    Args:
        pairs: Of :func:`view_pairs` or :func:`queue_pairs`.
        temperature: :math:`\tau > 0`.
        arithmetic: Which of the two.

    Source:
        Shidani et al., "Poly-View Contrastive Learning", 2024, equations 9 to 11.
    """
    number("poly_view_loss", above=0, temperature=temperature)
    logits = pairs.similarity / temperature
    log_ratio = logits - torch.logaddexp(logits, log_sum(pairs, logits, pairs.negative)[:, None])
    if arithmetic:
        count = log_sum(pairs, torch.zeros_like(logits), pairs.positive)
        return anchor_mean(pairs, count - log_sum(pairs, log_ratio, pairs.positive))
    return anchor_mean(pairs, -positive_mean(pairs, log_ratio))


def log_mean_exp_negatives(pairs: Pairs, temperature: float | Tensor) -> Tensor:
    r"""Return :math:`\log \frac{1}{|N(i)|} \sum_n \exp(s_{in} / \tau)` of each anchor, ``[A]``.

    Args:
        pairs: Of :func:`view_pairs`.
        temperature: :math:`\tau > 0`, one of all or ``[A,1]``.
    """
    if not isinstance(temperature, Tensor):
        number("log_mean_exp_negatives", above=0, temperature=temperature)
    zeros = torch.zeros_like(pairs.similarity)
    sums = log_sum(pairs, pairs.similarity / temperature, pairs.negative)
    return sums - log_sum(pairs, zeros, pairs.negative)


def global_contrastive(pairs: Pairs, temperature: float | Tensor, log_normalizer: Tensor) -> Tensor:
    r"""SogCLR: the global contrastive loss, with each anchor's normaliser as it is remembered, not as the batch has it.

    .. math:: \ell_i = -\frac{1}{|P(i)|} \sum_p s_{ip} + \frac{1}{|N(i)|} \sum_n \operatorname{sg}\bigl(
              \exp(s_{in} / \tau_i) / u_i\bigr) s_{in}

    Its value means little; its gradient is :math:`\tau` times that of the decoupled loss with :math:`u_i` in place of
    the batch's mean exponential.

    Args:
        pairs: Of :func:`view_pairs`.
        temperature: :math:`\tau_i > 0`, one of all or ``[A,1]``.
        log_normalizer: :math:`\log u_i`, ``[A]``.

    Source:
        Yuan et al., "Provable Stochastic Optimization for Global Contrastive Learning", 2022, algorithm 1; the scale is
        that of the authors' library, averaged over the anchors of both views where it adds the views.
    """
    if not isinstance(temperature, Tensor):
        number("global_contrastive", above=0, temperature=temperature)
    (log_normalizer,) = floats("global_contrastive", f"[{len(pairs.share)}]", log_normalizer=log_normalizer)
    with torch.no_grad():
        count = log_sum(pairs, torch.zeros_like(pairs.similarity), pairs.negative)
        exponent = pairs.similarity / temperature - (log_normalizer + count)[:, None]
        weight = torch.where(pairs.negative, exponent, -math.inf).exp()
    return anchor_mean(pairs, (weight * pairs.similarity).sum(1) - positive_mean(pairs, pairs.similarity))
