"""Brightness, contrast, saturation and hue, in an order drawn for each image.

Eagerly, each of the four runs on the images that drew it at a stage. The compiled pass runs the same steps for every
image, so the order is laid out in ``SEQUENCE``: it holds every order of the four as a subsequence, and the steps that
an image does not use get the factor that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from selfsup.augment.base import Drawn, Operation, Planes, Step, operation
from selfsup.augment.operations.gray import luminance
from selfsup.settings import setting

OWN_HUES = (0.0, 1 / 3, 2 / 3)  # of the channels red, green and blue, in turns
AMOUNTS = ("brightness", "contrast", "saturation", "hue")
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # as ``order`` numbers them
# The mean of contrast costs a pass of its own and hue most of the arithmetic, so they come once and twice. Around each
# hue, the two others meet it and each other in any order.
_AROUND = (BRIGHTNESS, SATURATION, BRIGHTNESS, HUE, BRIGHTNESS, SATURATION, BRIGHTNESS)
SEQUENCE = (*_AROUND, CONTRAST, *_AROUND)
_NEXT = torch.tensor(  # [4, steps]: the first step of each of the four at or after a place
    [
        [
            next((step for step in range(place, len(SEQUENCE)) if SEQUENCE[step] == which), -1)
            for place in range(len(SEQUENCE))
        ]
        for which in range(4)
    ]
)
_NEUTRAL = torch.tensor([0.0 if which == HUE else 1.0 for which in SEQUENCE])
_NEUTRAL_ADDED = torch.tensor([0.0 if which in (HUE, BRIGHTNESS) else 1.0 for which in SEQUENCE])


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by the factor, as in torchvision (Kornia's plain ``adjust_brightness`` adds)."""
    return (images * _spread(factor)).clamp_(0, 1)


def add_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Add the factor, as in DeepMind's BYOL and in Kornia."""
    return (images + _spread(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from (factor > 1) or towards the mean grey of the image; of other channels than three their mean."""
    return blend(images, luminance(images.unbind(1))[:, None].mean(dim=(1, 2, 3), keepdim=True), _spread(factor))


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from (factor > 1) or towards the grey of each pixel; images of other channels than three stay."""
    return images if images.shape[1] != 3 else blend(images, luminance(images.unbind(1))[:, None], _spread(factor))


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue of HSV by ``factor`` turns, keeping value and saturation; images of other channels than three stay.

    With V = max, m = min, C = V - m, the hue in sixths of a turn is ±(1 + (g + b - r - m) / C), the sign that of g - b,
    and a channel whose own hue lies d turns away is m + C · clamp(2 - 6 d, 0, 1).
    """
    if images.shape[1] != 3:
        return images
    hue, chroma, low = hexcone(*images.unbind(1))
    own = torch.tensor(OWN_HUES, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    hue = hue.add_(factor[:, None, None])
    return channel_of_hue(hue[:, None], own, chroma[:, None], low[:, None])


def hexcone(red: Tensor, green: Tensor, blue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue in turns, chroma C and the lowest value m of pixels given by channel, see ``adjust_hue``."""
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(low)
    sixths = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_min(1e-12)).add_(1)
    return sixths.copysign_(green - blue).div_(6), chroma, low


def channel_of_hue(hue: Tensor, own: float | Tensor, chroma: Tensor, low: Tensor) -> Tensor:
    """Return the value of the channel whose own hue is ``own``, see ``adjust_hue``."""
    distance = hue - own
    distance.sub_(distance.round()).abs_()
    return distance.mul_(-6).add_(2).clamp_(0, 1).mul_(chroma).add_(low)


def blend(value: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return ``factor · value + (1 - factor) · other``, within [0, 1]."""
    return torch.lerp(other, value, factor).clamp_(0, 1)


@operation("jitter")
class Jitter(Operation):
    """Change brightness, contrast, saturation and hue, in random order; each image draws its own.

    Attributes:
        brightness, contrast, saturation: The factor is uniform in [max(0, 1 - value), 1 + value].
        hue: The shift is uniform in [-value, value] turns of the colour circle.
        brightness_added: Brightness is a number added to every pixel, uniform in [-value, value], as in DeepMind's BYOL
            (and SimCLR's code as its first paper had it). Multiplied, dark images hardly change.
    """

    slots: ClassVar[tuple[int, ...]] = (31, *range(22, 30))
    own_words: ClassVar[tuple[str, ...]] = (*AMOUNTS, "brightness_added")

    p: float = 0.8
    brightness: float = setting(0.4, least=0)
    contrast: float = setting(0.4, least=0)
    saturation: float = setting(0.4, least=0)
    hue: float = setting(0.1, least=0, most=0.5)
    brightness_added: bool = False

    def parameters(self, u: Tensor) -> dict[str, Tensor]:
        """Return ``order`` ``[B,4]``, which of the four comes at each stage, and ``factors`` ``[B,4]`` of the four."""
        amounts = torch.tensor([self.brightness, self.contrast, self.saturation], dtype=torch.float64)
        low = torch.cat([(1 - amounts).clamp_min(0), amounts.new_tensor([-self.hue])])
        high = torch.cat([1 + amounts, amounts.new_tensor([self.hue])])
        if self.brightness_added:
            low[BRIGHTNESS], high[BRIGHTNESS] = -self.brightness, self.brightness
        return {"order": u[:, :4].argsort(dim=1), "factors": torch.lerp(low, high, u[:, 4:])}

    def steps(self, drawn: Drawn, device: torch.device) -> Iterator[Step]:
        factors = drawn.parameters["factors"].to(device)
        for stage in drawn.parameters["order"].unbind(1):
            for which, (adjust, amount) in enumerate(zip(_EAGER, AMOUNTS, strict=True)):
                if self.brightness_added and which == BRIGHTNESS:
                    adjust = add_brightness
                if getattr(self, amount) > 0:
                    yield adjust, drawn.chosen & (stage == which), {"factor": factors[:, which]}

    def lay_out(self, drawn: Drawn) -> Tensor:
        """Return float ``[B,steps]``, the factor of each step of ``SEQUENCE`` for each image."""
        order, own = drawn.parameters["order"], drawn.parameters["factors"]
        neutral = _NEUTRAL_ADDED if self.brightness_added else _NEUTRAL
        factors = neutral.repeat(len(order), 1)
        place = torch.zeros(len(order), dtype=torch.int64)
        for which in order.unbind(1):
            step = _NEXT[which, place]
            factors.scatter_(1, step[:, None], own.gather(1, which[:, None]))
            place = (step + 1).clamp_max(len(SEQUENCE) - 1)  # beyond the last there is nothing left to place
        return torch.where(drawn.chosen[:, None], factors, neutral)

    @property
    def on_planes(self) -> Callable[[Planes, Tensor], Planes]:  # type: ignore[override]
        """The function that the compiled pass takes the planes through: it depends on a setting."""
        return _added if self.brightness_added else _multiplied

    def of_color(self) -> list[str]:
        return [f"{self.name}.{name}" for name in ("saturation", "hue") if getattr(self, name) > 0]

    def alone(self) -> dict[str, Operation]:
        nothing = replace(self, p=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
        return {name: replace(nothing, **{name: getattr(self, name)}) for name in AMOUNTS}


def _spread(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]


# The same on planes; factors are ``[B,1,1]``


def _brightness(planes: Planes, factor: Tensor) -> Planes:
    return tuple((plane * factor).clamp(0, 1) for plane in planes)


def _contrast(planes: Planes, factor: Tensor) -> Planes:
    mean = luminance(planes).mean(dim=(1, 2), keepdim=True)
    return tuple(blend(plane, mean, factor) for plane in planes)


def _saturation(planes: Planes, factor: Tensor) -> Planes:
    if len(planes) != 3:
        return planes
    gray = luminance(planes)
    return tuple(blend(plane, gray, factor) for plane in planes)


def _hue(planes: Planes, turns: Tensor) -> Planes:
    if len(planes) != 3:
        return planes
    hue, chroma, low = hexcone(*planes)
    turned = [channel_of_hue(hue + turns, own, chroma, low) for own in OWN_HUES]
    # no turn would give the same up to rounding
    return tuple(torch.where(turns != 0, new, old) for new, old in zip(turned, planes, strict=True))


def _added_brightness(planes: Planes, number: Tensor) -> Planes:
    return tuple((plane + number).clamp(0, 1) for plane in planes)


def _multiplied(planes: Planes, argument: Tensor) -> Planes:
    for which, factor in zip(SEQUENCE, argument.unbind(1), strict=True):
        planes = _ON_PLANES[which](planes, factor[:, None, None])
    return planes


def _added(planes: Planes, argument: Tensor) -> Planes:
    for which, factor in zip(SEQUENCE, argument.unbind(1), strict=True):
        adjust = _added_brightness if which == BRIGHTNESS else _ON_PLANES[which]
        planes = adjust(planes, factor[:, None, None])
    return planes


_EAGER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
_ON_PLANES = (_brightness, _contrast, _saturation, _hue)
