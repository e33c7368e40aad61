"""BatchNorm and ReLU in a form that ``torch.compile`` makes fast loops of on a CPU, with the values of torch's own."""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn


def fusible_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x`` normalised as ``F.batch_norm`` does in training, and its mean and biased variance.

    Sums go over each image first and then over the images. Compiled, that gives loops that threads share, vectors fill
    and neighbouring operations join. Eagerly it is slower than ``F.batch_norm``.

    Args:
        x: ``[N,C,H,W]``.
        weight, bias: ``[C]``.
        eps: Added to the variance.

    Returns:
        ``[N,C,H,W]`` of the type of ``x``; mean and variance ``[C]`` in float32 or better, without gradient.
    """
    return cast(tuple[Tensor, Tensor, Tensor], _BatchNorm.apply(x, weight, bias, eps))


class _BatchNorm(torch.autograd.Function):
    # A quotient would be computed again for every pixel, where these loops are joined; hence the products.

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        pixels, pixels_of_one = x.numel() // x.shape[1], x.shape[2] * x.shape[3]
        # Mean and variance take one pass. The mean of the first image is at most sqrt(N) standard deviations away from
        # that of all, so the squares of what lies beyond it lose little to rounding.
        near = x[:1].to(dtype).sum((2, 3), keepdim=True) * (1 / pixels_of_one)
        beyond = x.to(dtype) - near
        offset = beyond.sum((2, 3)).sum(0) * (1 / pixels)
        mean = near.flatten() + offset
        variance = (beyond * beyond).sum((2, 3)).sum(0) * (1 / pixels) - offset * offset
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        y = x.to(dtype) * scale[:, None, None] + (bias - mean * scale)[:, None, None]
        return y.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        gradient, centred = gradients[0].to(mean.dtype), x.to(mean.dtype) - mean[:, None, None]
        of_bias = gradient.sum((2, 3)).sum(0)
        of_weight = (gradient * centred).sum((2, 3)).sum(0) * inverse
        share = x.shape[1] / x.numel()
        through_mean, through_scale = of_bias * share, of_weight * inverse * share
        rest = gradient - centred * through_scale[:, None, None] - through_mean[:, None, None]
        of_x = rest * (weight * inverse)[:, None, None]
        return of_x.to(x.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


class _ReLU(torch.autograd.Function):
    # What is kept for the backward pass is the result, which is there anyway. Left to itself the compiler keeps a bool
    # for every number, which AVX-512 code writes and reads one by one. Where the result is 0, an infinite gradient
    # becomes NaN, not 0.

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return cast(Tensor, gradient * y.sign())


def make_fusible(module: nn.Module) -> None:
    """Give the ``BatchNorm2d`` and ``ReLU`` layers inside ``module`` a fusible forward pass.

    Values, state and keys stay. Left alone are subclasses, and BatchNorm without momentum, scales or running
    statistics.
    """
    for layer in module.modules():
        if type(layer) is nn.ReLU:
            layer.forward = MethodType(_relu, layer)  # type: ignore[method-assign]
        elif type(layer) is nn.BatchNorm2d and layer.momentum and layer.affine and layer.track_running_stats:
            layer.forward = MethodType(_batch_norm, layer)  # type: ignore[method-assign]


def undo_fusible(module: nn.Module) -> None:
    """Give the layers that :func:`make_fusible` changed their own forward pass again."""
    for layer in module.modules():
        if getattr(vars(layer).get("forward"), "__func__", None) in (_relu, _batch_norm):
            del layer.forward


def _relu(layer: nn.ReLU, x: Tensor) -> Tensor:
    return cast(Tensor, _ReLU.apply(x))


def _batch_norm(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    pixels = x.numel() // layer.num_features
    if not layer.training or x.dim() != 4 or pixels < 2:  # torch has a sentence for the latter two
        return nn.BatchNorm2d.forward(layer, x)
    y, mean, variance = fusible_batch_norm(x, layer.weight, layer.bias, layer.eps)
    running_mean, running_var = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
    momentum = cast(float, layer.momentum)
    with torch.no_grad():
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * (pixels / (pixels - 1))).to(running_var.dtype), momentum)
        cast(Tensor, layer.num_batches_tracked).add_(1)
    return y
