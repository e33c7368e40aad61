"""Scenes in which several cues may say the same: shape, colour, size and place of one object."""

from __future__ import annotations

import math
from itertools import permutations

import torch
from torch import Tensor

from selfsup.data.outlines import CLASSES, OUTLINES
from selfsup.random import fold_in, uniform

CUES = ("shape", "colour", "size", "place")
VALUES = 4  # of every cue
SHAPES = ("disc", "square", "triangle", "cross")
COLOURS = ((0.85, 0.15, 0.15), (0.15, 0.75, 0.15), (0.2, 0.3, 0.95), (0.85, 0.8, 0.1))
RADII = (0.1, 0.14, 0.19, 0.25)
PLACES = ((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72))
NOISE = 0.15


def equal_cues(count: int) -> Tensor:
    """Return the values of the cues where all say the same: int64 ``[count,4]``, rows (v, v, v, v) in turn."""
    return (torch.arange(count) % VALUES)[:, None].expand(-1, len(CUES)).contiguous()


def opposed_cues(count: int) -> Tensor:
    """Return the values of the cues where no two agree: int64 ``[count,4]``, all 24 permutations in turn."""
    rows = torch.tensor(list(permutations(range(VALUES))))
    return rows[torch.arange(count) % len(rows)]


def draw_cues(values: Tensor, seed: int, size: int) -> Tensor:
    """Draw scenes: an object of the shape, colour, size and place that the cues say, over grey noise.

    Radius, place and colour are moved a little at random and the object is turned by up to 15 degrees, so that no two
    scenes are equal. Scene ``i`` depends on ``i``, its values, ``seed`` and ``size`` only.

    Args:
        values: int64 ``[n,4]`` from 0 to 3: shape, colour, size, place.
        seed: Of the random parts.
        size: Side in pixels.

    Returns:
        uint8 ``[n,3,size,size]``.
    """
    index = torch.arange(len(values))
    dice = (2 * uniform(fold_in(seed, 1), index, 7) - 1).float()
    radius = torch.tensor(RADII)[values[:, 2]] * (1 + 0.06 * dice[:, 0])
    middle = torch.tensor(PLACES)[values[:, 3]] + 0.03 * dice[:, 1:3]
    turn = dice[:, 3] * math.pi / 12
    colour = torch.tensor(COLOURS)[values[:, 1]] + 0.06 * dice[:, 4:7]
    centres = (torch.arange(size) + 0.5) / size
    x, y = centres[None, None, :] - middle[:, 0, None, None], centres[None, :, None] - middle[:, 1, None, None]
    cos, sin, scale = (part[:, None, None] for part in (turn.cos(), turn.sin(), radius))
    u, v = (x * cos + y * sin) / scale, (x * sin - y * cos) / scale  # shapes stand upright where y grows upwards
    distance = torch.empty_like(u)
    for number, name in enumerate(SHAPES):
        rows = values[:, 0] == number
        distance[rows] = OUTLINES[CLASSES.index(name)](u[rows], v[rows])
    inside = (0.5 - distance * scale * size).clamp(0, 1)[:, None]
    noise = (2 * uniform(fold_in(seed, 2), index, size * size) - 1).float().view(-1, 1, size, size)
    scene = torch.lerp((0.5 + NOISE * noise).expand(-1, 3, -1, -1), colour[:, :, None, None], inside)
    return (255 * scene.clamp(0, 1) + 0.5).to(torch.uint8)
