"""The crop that every view begins with: torchvision's ``RandomResizedCrop`` of a whole batch, as matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from selfsup.augment.base import Part, between
from selfsup.augment.resampling import TILE, Resampling, apply_separable, resampling
from selfsup.settings import setting

_TRIES = 10


@dataclass(frozen=True)
class Crop(Part):
    """A random box of the image, resized to the view's size; a flip that follows at once is done with it.

    Attributes:
        scale: Range of the box's area as a fraction of the image, drawn uniformly.
        ratio: Range of its width over its height, drawn log-uniformly.
        interpolation: ``bilinear`` or ``bicubic``, both antialiased.
    """

    name: ClassVar[str] = "crop"
    slots: ClassVar[tuple[int, ...]] = tuple(range(2 * _TRIES + 2))
    own_words: ClassVar[tuple[str, ...]] = ("scale", "ratio", "interpolation")

    scale: tuple[float, float] = setting((0.08, 1.0), above=0, most=1)
    ratio: tuple[float, float] = setting((3 / 4, 4 / 3), above=0)
    interpolation: str = setting("bilinear", choices=("bilinear", "bicubic"))

    def boxes(self, u: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
        """Return boxes for given uniform numbers.

        The first of the tries that fits in the image counts. Where none does, the box is the largest central one whose
        ratio is in range.

        Args:
            u: float64 ``[B,22]`` in [0, 1): ten areas, ten ratios, the vertical and the horizontal position.
            height, width: Size of the images in pixels: of all, or int64 ``[B]``.

        Returns:
            int64 ``[B,4]``: top, left, height, width.
        """
        height, width = (torch.as_tensor(side).expand(len(u)) for side in (height, width))
        area, ratio, position = u[:, :_TRIES], u[:, _TRIES : 2 * _TRIES], u[:, 2 * _TRIES :]
        target = between(area, *self.scale) * (height * width)[:, None]
        aspect = torch.exp(between(ratio, math.log(self.ratio[0]), math.log(self.ratio[1])))
        widths = (target * aspect).sqrt().round().long()
        heights = (target / aspect).sqrt().round().long()
        fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])
        first = fits.int().argmax(dim=1, keepdim=True)
        box_width = widths.gather(1, first).squeeze(1)
        box_height = heights.gather(1, first).squeeze(1)
        top = (position[:, 0] * (height - box_height + 1)).long()
        left = (position[:, 1] * (width - box_width + 1)).long()

        central_width = torch.minimum(width, (height.double() * self.ratio[1]).round().long())
        central_height = torch.minimum(height, (width.double() / self.ratio[0]).round().long())
        central = [(height - central_height) // 2, (width - central_width) // 2, central_height, central_width]
        drawn = [top, left, box_height, box_width]
        return torch.where(fits.any(dim=1)[:, None], torch.stack(drawn, dim=1), torch.stack(central, dim=1))

    def apply(self, images: Tensor, box: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
        """Crop each image, resize the crop and mirror it where asked; the result is within [0, 1].

        The whole is linear and separable: one map along the rows and one along the columns.

        Args:
            images: ``[B,C,H,W]``.
            box: ``[B,4]``: top, left, height, width in pixels, inside the image.
            flip: bool ``[B]``.
            size: Height and width of the result.
        """
        top, left, height, width = box.to(images.dtype).unbind(1)
        rows = self._resampling(top, height, torch.zeros_like(flip), images.shape[-2], size[0])
        columns = self._resampling(left, width, flip, images.shape[-1], size[1])
        resized = apply_separable(images, rows, columns)
        return resized.clamp_(0, 1) if self.interpolation == "bicubic" else resized

    def _resampling(self, start: Tensor, length: Tensor, reverse: Tensor, source: int, target: int) -> Resampling:
        """Return the antialiased resampling of ``start … start + length`` along one axis.

        The filter (triangle, or Keys' cubic with a = -0.5) is widened by the down-sampling factor, cut at the ends of
        the crop, and each row sums to 1.
        """
        radius, weigh = (1, _triangle) if self.interpolation == "bilinear" else (2, _keys_cubic)
        # No crop needs more taps than the whole image does, so their number is known without a look at the data
        taps = min(source, math.ceil(2 * radius * max(source / target, 1)) + 1)
        step = (length / target)[:, None]
        offset = (torch.arange(target, device=start.device, dtype=start.dtype) + 0.5) * step
        centre = (start[:, None] + torch.where(reverse[:, None], length[:, None] - offset, offset))[:, :, None]
        widening = step.clamp_min(1)[:, :, None]
        first = (centre - radius * widening).floor_().clamp_(0, source - taps)
        pixel = first + torch.arange(taps, device=start.device)
        low, high = start[:, None, None], (start + length)[:, None, None]
        weight = weigh((pixel + 0.5 - centre).div_(widening).abs_())
        weight *= (pixel >= low) & (pixel < high)
        weight /= weight.sum(dim=2, keepdim=True)
        reach = math.ceil((TILE - 1) * source / target) + taps
        return resampling(pixel.long(), weight, source, reach)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_(min=0)


def _keys_cubic(distance: Tensor) -> Tensor:
    """With u = (2 - d)₊ and v = (1 - d)₊ both pieces of the cubic are u²(u - 1) / 2 + v²(1 - 2v)."""
    outer = (2 - distance).clamp_(min=0)
    inner = (1 - distance).clamp_(min=0)
    return (outer - 1).mul_(outer.square_()).mul_(0.5).add_((1 - 2 * inner).mul_(inner.square_()))
