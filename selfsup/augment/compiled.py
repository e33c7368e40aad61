"""The colour operations of a whole batch in one compiled pass over its pixels.

Eagerly, each operation runs on the images that drew it. A compiled pass runs the same steps for every image, so the
random order of the jitter is laid out in ``SEQUENCE``: it holds every order of the four operations as a subsequence,
and the steps that an image does not use get the factor that changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from selfsup.augment import operations
from selfsup.augment.draws import Draws

logger = logging.getLogger(__name__)

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # as ``Draws.order`` numbers them
# The mean of contrast costs a pass of its own and hue most of the arithmetic, so they come once and twice. Around each
# hue, the two others meet it and each other in any order.
_AROUND = (BRIGHTNESS, SATURATION, BRIGHTNESS, HUE, BRIGHTNESS, SATURATION, BRIGHTNESS)
SEQUENCE = (*_AROUND, CONTRAST, *_AROUND)
_NEXT = torch.tensor(  # [4, steps]: the first step of each operation at or after a place
    [
        [
            next((step for step in range(place, len(SEQUENCE)) if SEQUENCE[step] == which), -1)
            for place in range(len(SEQUENCE))
        ]
        for which in range(4)
    ]
)
_NEUTRAL = torch.tensor([0.0 if which == HUE else 1.0 for which in SEQUENCE])


def arrange(draws: Draws) -> Tensor:
    """Return float ``[B,steps]``, the factor of each step of ``SEQUENCE`` for each image."""
    factors = _NEUTRAL.repeat(len(draws.order), 1)
    place = torch.zeros(len(draws.order), dtype=torch.int64)
    for which in draws.order.unbind(1):
        step = _NEXT[which, place]
        factors.scatter_(1, step[:, None], draws.factors.gather(1, which[:, None]))
        place = (step + 1).clamp_max(len(SEQUENCE) - 1)  # beyond the last there is nothing left to place
    return torch.where(draws.jitter[:, None], factors, _NEUTRAL)


def color(images: Tensor, factors: Tensor, gray: Tensor, gray_first: bool) -> Tensor:
    """Apply jitter and grey to every image, each step with its factor.

    Args:
        images: float ``[B,C,h,w]`` in [0, 1].
        factors: From ``arrange``.
        gray: bool ``[B]``.
        gray_first: Grey comes before the jitter.
    """
    planes = images.unbind(1)
    if gray_first:
        planes = _grayscale(planes, gray)
    for which, factor in zip(SEQUENCE, factors.unbind(1), strict=True):
        planes = _STEPS[which](planes, factor[:, None, None])
    if not gray_first:
        planes = _grayscale(planes, gray)
    return torch.stack(planes, dim=1)


def compiled_color(images: Tensor, factors: Tensor, gray: Tensor, gray_first: bool) -> Tensor | None:
    """Return ``color`` of these arguments by compiled code, or None where it could not be compiled.

    The first batch of a size compiles; the number of images is left open, so that no other batch does.
    """
    return _function(gray_first, images.shape[1:], images.device.type)(images, factors, gray, gray_first)


@cache
def _function(gray_first: bool, shape: torch.Size, device: str) -> Callable[..., Tensor | None]:
    """Return compiled code for images of one shape."""
    # A copy, as torch counts and limits the compilations of a function
    copy = FunctionType(color.__code__.replace(), color.__globals__)
    function = torch.compile(copy, fullgraph=True)
    state = {"works": False, "failed": False}

    def run(*arguments: Any) -> Tensor | None:
        if state["failed"]:
            return None
        for argument in arguments[:3]:
            torch._dynamo.mark_dynamic(argument, 0)
        start = time.perf_counter()
        try:
            result: Tensor = function(*arguments)
        except Exception as error:  # of the compiler, in any of its many types
            if state["works"]:
                raise
            state["failed"] = True
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            logger.warning("augment.compile: the views are made without compiled code, as it failed: %s", reason)
            return None
        if not state["works"]:
            state["works"] = True
            seconds = time.perf_counter() - start
            logger.info("augment.compile: compiled the colours of %s pixels in %.0f s", list(shape[1:]), seconds)
        return result

    return run


Planes = tuple[Tensor, ...]  # one ``[B,h,w]`` a channel; factors are ``[B,1,1]``


def _brightness(planes: Planes, factor: Tensor) -> Planes:
    return tuple((plane * factor).clamp(0, 1) for plane in planes)


def _contrast(planes: Planes, factor: Tensor) -> Planes:
    mean = _luminance(planes).mean(dim=(1, 2), keepdim=True)
    return tuple(operations.blend(plane, mean, factor) for plane in planes)


def _saturation(planes: Planes, factor: Tensor) -> Planes:
    if len(planes) == 1:
        return planes
    luminance = _luminance(planes)
    return tuple(operations.blend(plane, luminance, factor) for plane in planes)


def _hue(planes: Planes, turns: Tensor) -> Planes:
    if len(planes) == 1:
        return planes
    hue, chroma, low = operations.hexcone(*planes)
    turned = [operations.channel_of_hue(hue + turns, own, chroma, low) for own in operations.OWN_HUES]
    # no turn would give the same up to rounding
    return tuple(torch.where(turns != 0, new, old) for new, old in zip(turned, planes, strict=True))


def _grayscale(planes: Planes, gray: Tensor) -> Planes:
    luminance = _luminance(planes)
    return tuple(torch.where(gray[:, None, None], luminance, plane) for plane in planes)


def _luminance(planes: Planes) -> Tensor:
    return planes[0] if len(planes) == 1 else operations.weigh(*planes)


_STEPS: tuple[Callable[[Planes, Tensor], Planes], ...] = (_brightness, _contrast, _saturation, _hue)
