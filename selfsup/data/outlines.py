"""The outlines of ten shapes: signed distance, negative inside, about the origin and reaching to radius 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CLASSES = ("disc", "ring", "square", "triangle", "star", "cross", "heart", "arrow", "crescent", "corner")


def length(x: Tensor, y: Tensor) -> Tensor:
    """Return the Euclidean length, in operations that round alike everywhere."""
    return (x * x + y * y).sqrt()


def _box(x: Tensor, y: Tensor, half_x: float, half_y: float) -> Tensor:
    dx, dy = x.abs() - half_x, y.abs() - half_y
    return length(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0)


def _convex(x: Tensor, y: Tensor, corners: Sequence[tuple[float, float]]) -> Tensor:
    """Return the largest distance from the sides' lines; corners in the order in which the inside is on the left."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        side = math.hypot(x1 - x0, y1 - y0)
        sides.append(((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / side)
    return torch.stack(sides).amax(0)


def _polar(radius: float, degrees: float) -> tuple[float, float]:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return length(x, y) - 0.88


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (length(x, y) - 0.72).abs() - 0.2


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.74, 0.74)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return _convex(x, y, [_polar(1.05, degrees) for degrees in (90, 210, 330)])


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Reflections fold the plane into the tenth that holds the side from the tip at 90° to the notch at 54°
    x = x.abs()
    for normal_x, normal_y in (_polar(1, -36), _polar(1, 216)):
        beyond = (x * normal_x + y * normal_y).clamp(min=0) * 2
        x, y = x - beyond * normal_x, y - beyond * normal_y
    x = x.abs()
    (tip_x, tip_y), (notch_x, notch_y) = (0.0, 1.05), _polar(0.44, 54)
    side = math.hypot(notch_x - tip_x, notch_y - tip_y)
    return ((x - tip_x) * (tip_y - notch_y) + (y - tip_y) * (notch_x - tip_x)) / side


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.95, 0.27), _box(x, y, 0.27, 0.95))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    # A square on its corner and a disc on each of its two upper sides
    half = 0.5
    body = _box((x + y + 0.2) * math.sqrt(0.5), (y + 0.2 - x) * math.sqrt(0.5), half, half)
    middle = half * math.sqrt(0.5)
    lobes = length(x.abs() - middle, y + 0.2 - middle) - half
    return torch.minimum(body, lobes)


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    head = _convex(x, y, [(0.0, 1.0), (-0.75, 0.1), (0.75, 0.1)])
    return torch.minimum(head, _box(x, y + 0.42, 0.2, 0.56))


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(length(x + 0.1, y) - 0.92, 0.72 - length(x - 0.38, y))


def _corner(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x + 0.46, y, 0.24, 0.82), _box(x, y + 0.58, 0.7, 0.24))


#: By class: the signed distance of points of a shape's own coordinates to its outline.
OUTLINES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _disc,
    _ring,
    _square,
    _triangle,
    _star,
    _cross,
    _heart,
    _arrow,
    _crescent,
    _corner,
)
