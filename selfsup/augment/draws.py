"""The random parameters of a view, image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.augment.recipes import ViewRecipe
from selfsup.random import uniform

_TRIES = 10
# A slot never changes its meaning: an image's crop does not move when another field of the recipe does.
_AREA = slice(0, _TRIES)
_RATIO = slice(_TRIES, 2 * _TRIES)
_POSITION = slice(20, 22)
_ORDER = slice(22, 26)
_FACTORS = slice(26, 30)
_FLIP, _JITTER, _GRAY, _BLUR, _SIGMA, _SOLARIZE = range(30, 36)
_SLOTS = 36


@dataclass(frozen=True)
class Draws:
    """Parameters of ``B`` images to be made into views, on the CPU.

    Attributes:
        box: int64 ``[B,4]``: top, left, height, width of the crop in source pixels.
        flip, jitter, gray, blur, solarize: bool ``[B]``: whether the operation is applied.
        order: int64 ``[B,4]``: the colour operation (0 brightness, 1 contrast, 2 saturation, 3 hue) of each stage.
        factors: float32 ``[B,4]``: brightness, contrast and saturation factor, and hue shift in turns.
        sigma: float32 ``[B]``: standard deviation of the blur in pixels.
    """

    box: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor


def draw(recipe: ViewRecipe, seeds: Sequence[int], index: Tensor, height: int, width: int) -> Draws:
    """Draw the parameters of views of one recipe, view after view.

    They are drawn on the CPU, in float64: the same on every machine, and the subsets that an operation applies to are
    known without waiting for the device.

    Args:
        recipe: The distribution.
        seeds: One per view; they differ between views and epochs.
        index: int64 ``[N]`` on the CPU. The parameters of an image of a view depend on its index and the view's seed.
        height, width: Size of the source images in pixels.
    """
    u = torch.cat([uniform(seed, index, _SLOTS) for seed in seeds])
    amounts = torch.tensor([recipe.brightness, recipe.contrast, recipe.saturation], dtype=torch.float64)
    low = torch.cat([(1 - amounts).clamp_min(0), amounts.new_tensor([-recipe.hue])])
    high = torch.cat([1 + amounts, amounts.new_tensor([recipe.hue])])
    return Draws(
        box=crop_boxes(u[:, _AREA], u[:, _RATIO], u[:, _POSITION], height, width, recipe.scale, recipe.ratio),
        flip=u[:, _FLIP] < recipe.flip_p,
        jitter=u[:, _JITTER] < recipe.jitter_p,
        order=u[:, _ORDER].argsort(dim=1),
        factors=torch.lerp(low, high, u[:, _FACTORS]).float(),
        gray=u[:, _GRAY] < recipe.gray_p,
        blur=u[:, _BLUR] < recipe.blur_p,
        sigma=_between(u[:, _SIGMA], *recipe.blur_sigma).float(),
        solarize=u[:, _SOLARIZE] < recipe.solarize_p,
    )


def crop_boxes(
    area: Tensor,
    ratio: Tensor,
    position: Tensor,
    height: int,
    width: int,
    scale_range: tuple[float, float],
    ratio_range: tuple[float, float],
) -> Tensor:
    """Return the boxes of torchvision's ``RandomResizedCrop`` for given uniform numbers.

    The first of the tries that fits in the image counts. Where none does, the box is the largest central one whose
    ratio is in range.

    Args:
        area, ratio: float64 ``[B,T]`` in [0, 1): one column a try.
        position: float64 ``[B,2]`` in [0, 1): vertical and horizontal.
        height, width: Size of the image in pixels.
        scale_range: Range of the area as a fraction of the image's; uniform.
        ratio_range: Range of width over height; log-uniform.

    Returns:
        int64 ``[B,4]``: top, left, height, width.
    """
    target = _between(area, *scale_range) * (height * width)
    aspect = torch.exp(_between(ratio, math.log(ratio_range[0]), math.log(ratio_range[1])))
    widths = (target * aspect).sqrt().round().long()
    heights = (target / aspect).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    box_width = widths.gather(1, first).squeeze(1)
    box_height = heights.gather(1, first).squeeze(1)
    top = (position[:, 0] * (height - box_height + 1)).long()
    left = (position[:, 1] * (width - box_width + 1)).long()

    central_width = min(width, round(height * ratio_range[1]))
    central_height = min(height, round(width / ratio_range[0]))
    central = torch.tensor(
        [(height - central_height) // 2, (width - central_width) // 2, central_height, central_width]
    ).to(top.device)
    return torch.where(fits.any(dim=1)[:, None], torch.stack([top, left, box_height, box_width], dim=1), central)


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + u * (high - low)
