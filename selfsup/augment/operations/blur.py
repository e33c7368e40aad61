"""A Gaussian blur."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from selfsup.augment.base import Operation, between, operation
from selfsup.augment.resampling import TILE, Resampling, apply_separable, resampling
from selfsup.settings import setting

WIDE = 5.5  # standard deviations to each side; beyond lie 4e-8 of a Gaussian, less than float32 tells apart


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur with a Gaussian of ``sigma`` pixels, ``[B]``, cut to ``kernel`` (odd) pixels, on mirrored borders.

    An image that is smaller than the kernel is mirrored again and again.
    """
    height, width = images.shape[-2:]
    rows = _blur(sigma, kernel, height)
    return apply_separable(images, rows, rows if width == height else _blur(sigma, kernel, width))


def _blur(sigma: Tensor, kernel: int, size: int) -> Resampling:
    """Return the blur along one axis, its mirrored borders included."""
    reach = torch.arange(-(kernel // 2), kernel // 2 + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (reach / sigma[:, None]).square())
    weight = functional.threshold(weight, 1e-12, 0.0)  # nothing to see, but subnormal numbers make the product crawl
    weight = weight / weight.sum(dim=1, keepdim=True)
    last = size - 1
    pixel = (torch.arange(size, device=sigma.device)[:, None] + reach).remainder(max(1, 2 * last))
    pixel = last - (last - pixel).abs()  # mirrored at the first and at the last
    shape = (len(sigma), size, kernel)
    return resampling(pixel.expand(shape), weight[:, None].expand(shape), size, TILE - 1 + kernel)


@operation("blur")
class Blur(Operation):
    """Blur with a Gaussian.

    Attributes:
        sigma: Range in pixels of the standard deviation, drawn uniformly.
        kernel: Side of a window that cuts the Gaussian, as a fraction of the view's, made odd and at least 3 pixels; 0
            cuts nothing. The codes of SimCLR and BYOL have 0.1, which cuts nothing from 220 pixels on.
    """

    slots: ClassVar[tuple[int, ...]] = (33, 34)

    p: float = 0.0
    sigma: tuple[float, float] = setting((0.1, 2.0), above=0)
    kernel: float = setting(0.0, least=0, most=1)

    def parameters(self, u: Tensor) -> dict[str, Tensor]:
        return {"sigma": between(u[:, 0], *self.sigma)}

    def apply(self, images: Tensor, sigma: Tensor) -> Tensor:
        # the widest that could have been drawn, so that an image is the same in any batch
        window = 2 * math.ceil(WIDE * self.sigma[1]) + 1
        if self.kernel:
            window = max(3, int(self.kernel * images.shape[-1]) // 2 * 2 + 1)
        return gaussian_blur(images, sigma, window)
