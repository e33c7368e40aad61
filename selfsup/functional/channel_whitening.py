"""Whitening samples over their channels: by ZCA in groups of channels (CW-RGP), and by Newton's iterations (INTL)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import answer, count, floats, integers, number, within
from selfsup.functional.collectives import gather, gather_together
from selfsup.functional.whitening import mean_over_pairs


class _InverseRoot(torch.autograd.Function):
    """The inverse square root of symmetric matrices.

    Autograd through eigenvectors divides by differences of eigenvalues and is infinite where two are equal; the
    function itself is smooth there. In the eigenbasis a change dΣ is multiplied by
    -1 / (√λᵢ √λⱼ (√λᵢ + √λⱼ)), which has no such quotient.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        size = matrix.shape[-1]
        finite = matrix.isfinite().all(dim=-1).all(dim=-1)[..., None]
        # of what is not finite eigh raises, and a training step has a rule of its own for that
        values, vectors = torch.linalg.eigh(torch.where(finite[..., None], matrix, torch.eye(size).to(matrix)))
        singular = values <= size * torch.finfo(values.dtype).eps * values[..., -1:]
        values = values.masked_fill(singular | ~finite, float("nan"))
        roots = values.sqrt()
        ctx.save_for_backward(vectors, roots)
        root: Tensor = (vectors / roots[..., None, :]) @ vectors.mT
        return root

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        vectors, roots = ctx.saved_tensors
        left, right = roots[..., :, None], roots[..., None, :]
        inner = vectors.mT @ ((gradients[0] + gradients[0].mT) / 2) @ vectors
        change: Tensor = -vectors @ (inner / (left * right * (left + right))) @ vectors.mT
        return change


def channel_whiten(x: Tensor, groups: int, order: Tensor | None = None, eps: float = 0.0) -> Tensor:
    r"""Whiten samples over their channels, in groups of channels, by ZCA: ``[N,D]`` to ``[N,D]``.

    Every row loses its mean over the channels. Then in each group of D / groups channels

    .. math:: z = \big((1 - \varepsilon) \Sigma + \varepsilon I\big)^{-1/2} x, \qquad \Sigma = \frac{x x^T}{D / G - 1}

    so that the N rows of a group have products :math:`z z^T = (D / G - 1) I`.

    Args:
        x: ``[N,D]``, or ``[...,N,D]`` for several sets apart. Float16 and bfloat16 become float32.
        groups: G, a divisor of D with D / G > N.
        order: int64 ``[...,D]``, which channels come together: the first D / G of it are the first group. None is as
            they stand. The result has the channels in their own places.
        eps: :math:`\varepsilon` in [0, 1).

    Returns:
        The whitened rows; NaN where :math:`\Sigma` is singular, up to rounding.

    Raises:
        ValueError: Groups that do not divide D or hold no more channels than there are rows, ``eps`` out of range;
            on a CPU, outside of a training step, also a singular covariance.

    Source:
        Weng et al., "An Investigation into Whitening Loss for Self-supervised Learning", 2022, section 4.
    """
    (x,) = floats("channel_whiten", "[...,N,D]", x=x)
    count("channel_whiten", groups=groups)
    number("channel_whiten", least=0, below=1, eps=eps)
    rows, dim = x.shape[-2:]
    if dim % groups or dim // groups <= rows:
        raise ValueError(
            f"channel_whiten: {groups} groups of {dim} channels must each have more channels than the {rows} rows; "
            "fewer have a singular covariance."
        )
    if order is not None:
        integers("channel_whiten", f"[...,{dim}]", order=order)
        within("channel_whiten", 0, dim, order=order)
        if order.ndim > 1 and order.shape[:-1] != x.shape[:-2]:
            raise ValueError(
                f"channel_whiten: order {list(order.shape)} must be one for all sets of x, or one for each of "
                f"{list(x.shape[:-2])}."
            )
    with torch.autocast(x.device.type, enabled=False):
        centred = x - x.mean(dim=-1, keepdim=True)
        if order is not None:
            centred = centred.gather(-1, order[..., None, :].expand_as(centred))
        parts = centred.reshape(*centred.shape[:-1], groups, -1).transpose(-3, -2)  # [...,G,N,D/G]
        covariance = parts @ parts.mT / (dim // groups - 1)
        covariance = (1 - eps) * covariance + eps * torch.eye(rows, dtype=x.dtype, device=x.device)
        root: Tensor = _InverseRoot.apply(covariance)
        whitened = (root @ parts).transpose(-3, -2).flatten(-2)
        if order is not None:
            whitened = torch.empty_like(whitened).scatter(-1, order[..., None, :].expand_as(whitened), whitened)
        return answer("channel_whiten", whitened, "x", "give a singular covariance, up to rounding")


def channel_whitening_mse(
    views: Tensor,
    subbatch_size: int,
    groups: int,
    eps: float = 0.0,
    normalize: bool = True,
    generator: torch.Generator | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Mean squared distance between the channel-whitened views of an image (CW-RGP), over all pairs of views.

    A random permutation cuts the images into sub-batches, the same for every view; in every sub-batch of every view
    the channels are shared out to groups at random, and :func:`channel_whiten` whitens. Distances are as in
    :func:`whitening_mse`.

    Args:
        views: Embeddings ``[V,N,D]``. Float16 and bfloat16 become float32.
        subbatch_size: Images whitened together: a divisor of N, below D / groups.
        groups, eps: See :func:`channel_whiten`.
        normalize: As in :func:`whitening_mse`.
        generator: Draws permutation and groups; None is torch's global one. With ``group``, equal on every rank.
        group: Whiten over the images of all ranks of the group; None whitens those given.

    Returns:
        Scalar; NaN where a covariance is singular. With ``group`` every rank has the whole loss, and DDP's mean gives
        the single-process gradient.

    Raises:
        ValueError: Fewer than two views, a sub-batch that does not divide N, or as :func:`channel_whiten`.

    Source:
        Weng et al., "An Investigation into Whitening Loss for Self-supervised Learning", 2022, section 4.
    """
    (views,) = floats("channel_whitening_mse", "[V,N,D]", views=views)
    if len(views) < 2:
        raise ValueError("channel_whitening_mse: views must hold at least two views, got one.")
    count("channel_whitening_mse", subbatch_size=subbatch_size)
    with torch.autocast(views.device.type, enabled=False):
        views = gather(views.transpose(0, 1), group).transpose(0, 1)
        if views.shape[1] % subbatch_size:
            raise ValueError(
                f"channel_whitening_mse: {views.shape[1]} images do not divide into sub-batches of subbatch_size="
                f"{subbatch_size}."
            )
        place = "cpu" if generator is None else generator.device
        drawn = torch.randperm(views.shape[1], generator=generator, device=place).view(-1, subbatch_size)
        sets = views[:, drawn.to(views.device, non_blocking=True)]  # [V, sub-batches, subbatch_size, D]
        chance = torch.rand(*sets.shape[:2], sets.shape[3], generator=generator, device=place)
        order = chance.argsort(dim=-1).to(views.device, non_blocking=True)
        return mean_over_pairs(channel_whiten(sets, groups, order, eps), normalize)


def iterative_whiten(x: Tensor, iterations: int = 4) -> Tensor:
    r"""Whiten samples over their channels in part, by Newton's iterations (IterNorm): ``[N,D]`` to ``[N,D]``.

    Every row loses its mean over the channels; then, with :math:`\Sigma = x x^T / (D - 1)`,

    .. math:: P_0 = I, \qquad P_{k+1} = \tfrac12 (3 P_k - P_k^3 \Sigma / \operatorname{tr} \Sigma), \qquad
              z = P_T x / \sqrt{\operatorname{tr} \Sigma}

    After few iterations small eigenvalues stay below 1: the spectrum of :math:`z z^T / (D - 1)` lies in [0, 1].

    Args:
        x: ``[N,D]``. Float16 and bfloat16 become float32.
        iterations: T, at least 1. From about nine on, what is white already is lost again to rounding in float32.

    Raises:
        ValueError: Another shape, a number of iterations out of range, or rows that do not vary.

    Source:
        Huang et al., "Iterative Normalization: Beyond Standardization towards Efficient Whitening", 2019, algorithm 1;
        Weng et al., "Modulate Your Spectrum in Self-Supervised Learning", 2024, section 4.
    """
    (x,) = floats("iterative_whiten", "[N,D]", x=x)
    count("iterative_whiten", iterations=iterations)
    if x.shape[1] < 2:
        raise ValueError("iterative_whiten: x needs two channels at least, as the covariance is over the channels.")
    with torch.autocast(x.device.type, enabled=False):
        centred = x - x.mean(dim=1, keepdim=True)
        covariance = centred @ centred.T / (x.shape[1] - 1)
        trace = covariance.trace()
        scaled = covariance / trace
        root = torch.eye(len(x), dtype=x.dtype, device=x.device)
        for _ in range(iterations):
            root = 1.5 * root - 0.5 * root @ root @ root @ scaled
        return answer("iterative_whiten", root @ centred / trace.sqrt(), "x", "do not vary over the channels")


def intl_loss(
    views: Tensor, trace_weight: float, iterations: int = 4, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""INTL: iteratively whitened views agree, and their spectrum is drawn to 1 by its trace.

    .. math:: \frac{1}{V - 1} \sum_{v > 1} \Big(\frac{1}{N} \sum_i (2 - 2 \cos(z^v_i, z^1_i))
              + \beta (t_v + t_1)\Big), \qquad t_v = \sum_i (\operatorname{var}(z^v_i) - 1)^2

    with the variance of a row over its channels, divided by D - 1, and :func:`iterative_whiten` of each view apart.
    Partial whitening alone can be satisfied by a collapsed spectrum; the trace loss rules that out.

    Args:
        views: Embeddings ``[V,N,D]``; gradients reach all of them. Float16 and bfloat16 become float32.
        trace_weight: :math:`\beta`; the authors' is :math:`0.01 (\log_2 N - 3)`.
        iterations: See :func:`iterative_whiten`.
        group: Whiten over the images of all ranks of the group; None whitens those given.

    Returns:
        Scalar. With ``group`` every rank has the whole loss, and DDP's mean gives the single-process gradient.

    Raises:
        ValueError: Fewer than two views, or as :func:`iterative_whiten`.

    Source:
        Weng et al., "Modulate Your Spectrum in Self-Supervised Learning", 2024, equations of section 4.
    """
    (views,) = floats("intl_loss", "[V,N,D]", views=views)
    number("intl_loss", trace_weight=trace_weight)
    if len(views) < 2:
        raise ValueError("intl_loss: views must hold at least two views, got one.")
    with torch.autocast(views.device.type, enabled=False):
        whitened = [iterative_whiten(view, iterations) for view in gather_together(views.unbind(), group)]
        first, *others = (F.normalize(z, dim=1) for z in whitened)
        traces = [(z.var(dim=1) - 1).square().sum() for z in whitened]
        losses = [
            2 - 2 * (first * z).sum(dim=1).mean() + trace_weight * (traces[0] + trace)
            for z, trace in zip(others, traces[1:], strict=True)
        ]
        return torch.stack(losses).mean()
