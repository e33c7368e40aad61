"""Tests of normality along random directions, as losses: the distribution of embeddings is drawn to a standard normal.

A cloud of points is standard normal if all its projections on lines are, so it is enough to look at many random lines
(Cramér and Wold), each a problem of one dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfsup.functional.arguments import answer, count, floats, number
from selfsup.functional.collectives import gather, rank_of, size_of, sum_over


def sigreg(
    views: Tensor,
    slices: int = 1024,
    knots: int = 17,
    limit: float = 3.0,
    generator: torch.Generator | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""SIGReg: the test of Epps and Pulley for a standard normal, along random directions, of each view.

    .. math:: T = N \int_{-t_{max}}^{t_{max}} e^{-t^2/2} \Bigl| \frac{1}{N} \sum_n e^{i t y_n} - e^{-t^2/2} \Bigr|^2 dt,
              \qquad y = z a, \quad \lVert a \rVert = 1

    averaged over the directions :math:`a` and the views; the integral is the trapezoidal rule over ``knots`` equally
    spaced points of :math:`[0, t_{max}]`, doubled. T does not fall to 0: of samples that are truly normal its mean is
    :math:`\sqrt{2\pi} (1 - 3^{-1/2}) = 1.0594` whatever N is (1.0525 with 17 knots up to 3). At a given misfit it grows
    with N, so its weight belongs to a batch size. The gradient vanishes where all embeddings are equal.

    Args:
        views: Embeddings ``[V,N,D]``, not normalised. Float16 and bfloat16 become float32.
        slices: Directions, of one draw for all views.
        knots: Points of the rule, 0 and :math:`t_{max}` among them; at least 2.
        limit: :math:`t_{max}`.
        generator: Draws the directions; None is torch's global one. With ``group``, equal on every rank.
        group: N counts the images of all its ranks; None for a single process.

    Returns:
        Scalar. Every rank has the whole statistic, and DDP's mean gives the single-process gradient. Memory is that of
        the projections ``[V,N,slices]``, a few times over, whatever ``knots`` is.

    Raises:
        ValueError: ``views`` are not ``[V,N,D]``, or a setting is out of range.

    Source:
        Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", 2025,
        section 4, with the rule of the authors' code (rbalestr-lab/lejepa, a74fcb9).
    """
    (views,) = floats("sigreg", "[V,N,D]", views=views)
    count("sigreg", slices=slices)
    count("sigreg", least=2, knots=knots)
    number("sigreg", above=0, limit=limit)
    with torch.autocast(views.device.type, enabled=False):
        step = limit / (knots - 1)
        projections = views @ _directions(views, slices, generator)
        cosines, sines = _Harmonics.apply(projections * step, knots)  # the point at 0 is always met exactly
        total = views.shape[1] * size_of(group)
        cosines, sines = sum_over(torch.stack([cosines, sines]), group) / total
        points = step * torch.arange(1, knots, dtype=views.dtype, device=views.device)[:, None, None]
        normal = (-points.square() / 2).exp()
        weight = 2 * step * normal
        weight[-1] /= 2
        error = (cosines - normal).square() + sines.square()
        loss = total * (weight * error).sum(0).mean()
        return answer("sigreg", loss, "views")


def _directions(views: Tensor, slices: int, generator: torch.Generator | None) -> Tensor:
    """Draw unit columns ``[D,slices]``, on the CPU or where the generator is: the same on every rank."""
    place = "cpu" if generator is None else generator.device
    directions = torch.randn(views.shape[-1], slices, generator=generator, device=place, dtype=views.dtype)
    return F.normalize(directions, dim=0).to(views.device, non_blocking=True)


class _Harmonics(torch.autograd.Function):
    """Sums over the second last dimension of ``cos kθ`` and ``sin kθ``, for k from 1 to below ``knots``.

    The angles are turned on by one step after the other, forwards and again backwards, so that one sine and one cosine
    of each are taken and none of the harmonics is kept.
    """

    @staticmethod
    def forward(ctx: Any, angle: Tensor, knots: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(angle)
        ctx.knots = knots
        sums = [(cosine.sum(-2), sine.sum(-2)) for cosine, sine in _turns(angle, knots)]
        cosines, sines = zip(*sums, strict=True)
        return torch.stack(cosines), torch.stack(sines)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *asked: Tensor) -> tuple[Tensor, None]:
        (angle,) = ctx.saved_tensors
        gradient = torch.zeros_like(angle)
        for k, (cosine, sine) in enumerate(_turns(angle, ctx.knots), start=1):
            of_cosine, of_sine = (part[k - 1].unsqueeze(-2) * k for part in asked)
            gradient += of_sine * cosine - of_cosine * sine
        return gradient, None


def _turns(angle: Tensor, knots: int) -> Iterator[tuple[Tensor, Tensor]]:
    cosine, sine = first_cosine, first_sine = angle.cos(), angle.sin()
    for k in range(1, knots):
        yield cosine, sine
        if k < knots - 1:
            cosine, sine = cosine * first_cosine - sine * first_sine, sine * first_cosine + cosine * first_sine


def visreg(
    views: Tensor,
    slices: int = 4096,
    generator: torch.Generator | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""VISReg: centre, scale and shape of each view's embeddings against a standard normal, apart from each other.

    .. math:: \frac1D \lVert \mu \rVert^2 + \frac1D \sum_d (1 - \sigma_d)^2
              + \frac{1}{N S} \sum_{s,i} \Bigl( y_{s,(i)} - \Phi^{-1}\bigl(\tfrac{i}{N+1}\bigr) \Bigr)^2

    averaged over the views, with :math:`\mu` and :math:`\sigma` (divided by N) of each dimension, and
    :math:`y_{s,(i)}` the sorted projections on a random direction of :math:`(z - \mu) / (\sigma + 10^{-4})`, of which
    :math:`\sigma` takes no gradient there. The third term is the sliced 2-Wasserstein distance. Where all embeddings
    meet, the second one still pulls them apart, with the same strength however near they are.

    Args:
        views: Embeddings ``[V,N,D]``, not normalised. Float16 and bfloat16 become float32.
        slices: S, directions of one draw for all views; ranks share them out.
        generator: Draws the directions; None is torch's global one. With ``group``, equal on every rank.
        group: N counts the images of all its ranks; None for a single process.

    Returns:
        Scalar. Each rank has its directions' part; the mean over ranks is the single process, in gradient too.

    Raises:
        ValueError: ``views`` are not ``[V,N,D]``, or there is one image only.

    Source:
        "VISReg", as in stable-pretraining, commit 9aa93f8; there is no paper that we have read.
    """
    (views,) = floats("visreg", "[V,N,D]", views=views)
    count("visreg", slices=slices)
    if views.shape[1] * size_of(group) < 2:
        raise ValueError("visreg: views need at least two images, as the statistics are over the batch.")
    with torch.autocast(views.device.type, enabled=False):
        views = gather(views.transpose(0, 1), group).transpose(0, 1)
        number_of_all = views.shape[1]
        center = views.mean(1, keepdim=True)
        centred = views - center
        spread = centred.norm(dim=1, keepdim=True) / number_of_all**0.5
        scaled = centred / (spread.detach() + 1e-4)
        own = _directions(views, slices, generator)[:, rank_of(group) :: size_of(group)]
        places = torch.arange(1, number_of_all + 1, dtype=views.dtype, device=views.device) / (number_of_all + 1)
        normal = torch.special.ndtri(places)[:, None]
        squares = ((scaled @ own).sort(dim=1).values - normal).square().sum()
        shape = squares * size_of(group) / (len(views) * number_of_all * slices)
        loss = center.square().mean() + (1 - spread).square().mean() + shape
        return answer("visreg", loss, "views")
