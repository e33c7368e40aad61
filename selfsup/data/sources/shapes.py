"""Drawn scenes: one of ten shapes over a cluttered background, with the mask of its pixels; nothing to download.

The task is made for self-supervised learning at a small scale. The object is what two crops of an image share:
it covers much of the image, and its outline is crisp. The background is a lit
tint with fine noise, so that it says little about which image a crop is from. Colour, texture,
position, size and rotation are drawn apart from the class, so that raw pixels say little about the class.

Every scene is a function of (seed, index) alone and is described in the unit square, so that image ``i`` is the same
in every batch, and the same scene at every size. With ``objects`` above 1 there are others behind the object, for
methods that learn from places rather than from whole images.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import DataConfig, SourceSplits
from selfsup.data.drawn import Canvas, DrawnDataset
from selfsup.data.outlines import CLASSES, OUTLINES, length
from selfsup.data.resident import ResidentDataset
from selfsup.errors import UserError
from selfsup.random import fold_in, uniform
from selfsup.registry import sources
from selfsup.settings import setting

SMALLEST = 32  # below this side the outlines can no longer be distinguished
TEST_START = 2**40  # test scenes are those from this index on, so that either split may grow without moving the other


@dataclass
class ShapesConfig(DataConfig):
    """Settings of the drawn scenes.

    Attributes:
        train_size, test_size: Number of scenes.
        seed: Seed of the scenes; apart from the run's ``seed``.
        objects: Objects in a scene, each the smaller the more there are. They may overlap; the label is that of the
            one in front, which hides what is behind it, and the mask tells the class of whatever is seen.
    """

    name: str = "shapes"
    train_size: int = setting(10000, least=1)
    test_size: int = setting(2000, least=1)
    seed: int = 0
    objects: int = setting(1, least=1)
    mean: list[float] = field(default_factory=lambda: [0.455, 0.455, 0.455])
    std: list[float] = field(default_factory=lambda: [0.2, 0.2, 0.2])


@sources.register("shapes", ShapesConfig)
def shapes(config: ShapesConfig) -> SourceSplits:
    """Ten drawn shapes over clutter, with masks; any size from 32 pixels, nothing to download."""

    def split(name: str, start: int, count: int) -> ResidentDataset:
        canvas = _canvas(start, count, config.seed, config.image_size, config.objects)
        return DrawnDataset(canvas, config.facts(name, classes=CLASSES))

    if not isinstance(config.image_size, int):
        raise UserError(f"data.image_size is {config.image_size}; shapes are drawn as squares, of one side.")
    if config.image_size < SMALLEST:
        raise UserError(f"data.image_size is {config.image_size}; shapes are drawn from {SMALLEST} pixels on.")
    return SourceSplits(
        train=split("train", 0, config.train_size),
        test=split("test", TEST_START, config.test_size),
    )


@lru_cache(maxsize=4)
def _canvas(start: int, count: int, seed: int, size: int, objects: int) -> Canvas:
    """Keep what was drawn last: a process that trains and then evaluates wants the same scenes again."""
    index = torch.arange(start, start + count)

    def draw(rows: Tensor) -> tuple[Tensor, Tensor]:
        images, _, masks = draw_scenes(index[rows], seed, size, objects)
        return images, masks

    return Canvas(_labels(_Dice(index, seed)), size, draw)


def draw_scenes(index: Tensor, seed: int, size: int, objects: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the scenes with the numbers ``index``.

    Args:
        index: int64 ``[n]``; scene ``i`` depends on ``i``, ``seed`` and ``size`` only.
        seed: Seed of the family of scenes.
        size: Side in pixels, at least 32.
        objects: Number of objects in each; every one has ``1 / objects`` of the area that a single one would have.

    Returns:
        Images uint8 ``[n,3,size,size]``, labels int64 ``[n]`` of the objects in front, and masks uint8
        ``[n,size,size]`` that hold 0 on the background and 1 + class on the objects.

    Raises:
        ValueError: ``size`` is below 32.
    """
    if size < SMALLEST:
        raise ValueError(f"scenes are drawn from {SMALLEST} pixels on, not {size}")
    images = torch.empty(len(index), 3, size, size, dtype=torch.uint8)
    labels = torch.empty(len(index), dtype=torch.int64)
    masks = torch.empty(len(index), size, size, dtype=torch.uint8)
    chunks = torch.split(torch.arange(len(index)), max(1, 2**17 // size**2))  # what stays in the cache

    def draw(rows: Tensor) -> int:
        images[rows], labels[rows], masks[rows] = _draw(index[rows], seed, size, objects)
        return len(rows)

    # One thread a chunk. Threads within the many small operations would wait for each other at every one of them,
    # which on a busy machine is a hundred times slower.
    threads = torch.get_num_threads()
    try:
        with (
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            progress_bar(total=len(index), desc="drawing shapes", unit="image", delay=2) as progress,
        ):
            for count in pool.map(draw, chunks):
                progress.update(count)
    finally:
        torch.set_num_threads(threads)
    return images, labels, masks


def _draw(index: Tensor, seed: int, size: int, objects: int) -> tuple[Tensor, Tensor, Tensor]:
    # Whatever is computed per pixel uses only + - * / sqrt, min, max and floor, which round the same in vector and
    # scalar code: the image cannot depend on its place in the batch. Sines are taken of parameters, in float64.
    dice = _Dice(index, seed)
    centres = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    front = _Pose(dice, objects)
    image = _background(dice, centres)
    masks = torch.zeros(len(index), size, size, dtype=torch.int64)
    for number in range(objects - 1, -1, -1):  # from the back to the front
        own = _Dice(index, fold_in(seed, -number)) if number else dice
        pose = _Pose(own, objects) if number else front
        u, v, distance = _outline(pose, centres)
        image = _paint(image, _surface(own, u, v), _coverage(distance * size))
        masks = torch.where(distance < 0, (pose.labels + 1)[:, None, None], masks)
    return (image.clamp(0, 1) * 255 + 0.5).to(torch.uint8), front.labels, masks.to(torch.uint8)


def _labels(dice: _Dice) -> Tensor:
    """Return the class of one object of each image, the first roll of its dice."""
    return dice.uniform(0, len(CLASSES)).long()


class _Pose:
    """Class, size, turn and place of one object of each image."""

    def __init__(self, dice: _Dice, objects: int) -> None:
        self.labels = _labels(dice)
        self.radius = dice.uniform(0.24, 0.425) / math.sqrt(objects)
        self.turn = dice.uniform(0, 2 * math.pi)
        room = (0.5 - self.radius) + 0.1
        self.jitter = dice.uniform(-1, 1, 2) * room[:, None]


def _outline(pose: _Pose, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the object's own coordinates of every pixel, and the signed distance to its outline: ``[n,S,S]`` each."""
    x = centres[None, None, :] - _plane(0.5 + pose.jitter[:, 0])
    y = centres[None, :, None] - _plane(0.5 + pose.jitter[:, 1])
    cos, sin, scale = _plane(pose.turn.cos()), _plane(pose.turn.sin()), _plane(pose.radius)
    u, v = (x * cos + y * sin) / scale, (y * cos - x * sin) / scale
    distance = torch.empty_like(u)
    for label, outline in enumerate(OUTLINES):
        rows = (pose.labels == label).nonzero().squeeze(1)
        if len(rows):
            distance[rows] = outline(u[rows], v[rows])
    distance *= scale
    return u, v, distance


class _Dice:
    """Uniform numbers of each image, a function of (seed, image, how often it was rolled before)."""

    def __init__(self, index: Tensor, seed: int) -> None:
        self._index, self._seed, self._rolls = index.to(torch.int64), seed, 0

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return float64 ``[n,*shape]`` in ``[low, high)``."""
        self._rolls += 1
        numbers = uniform(fold_in(self._seed, self._rolls), self._index, math.prod(shape))
        return (low + (high - low) * numbers).reshape(len(self._index), *shape)


def _plane(values: Tensor) -> Tensor:
    return values.float()[:, None, None]


def _smooth(t: Tensor) -> Tensor:
    t = t.clamp(0, 1)
    return t * t * (3 - 2 * t)


def _coverage(distance: Tensor) -> Tensor:
    """Return how much of a pixel lies inside: distance in pixels, negative inside, softened over one pixel."""
    return _smooth(0.5 - distance)


def _paint(image: Tensor, colour: Tensor, coverage: Tensor) -> Tensor:
    return image + (colour - image) * coverage[:, None]


# --- background -------------------------------------------------------------------------------------------------


def _background(dice: _Dice, centres: Tensor) -> Tensor:
    """Return a tint, lit from one side, with fine noise and a few small blobs and strokes: float ``[n,3,S,S]``.

    The noise is fine on purpose. Coarse noise is a pattern that two crops share too, and then tells an image from
    others more easily than the object does.
    """
    tint = dice.uniform(0.25, 0.7, 3).float()[:, :, None, None]
    slope = dice.uniform(-0.4, 0.4, 2).float()[:, :, None, None]
    light = slope[:, :1] * (centres[None, None, None, :] - 0.5) + slope[:, 1:] * (centres[None, None, :, None] - 0.5)
    image = tint + light + _noise(dice, 1, 16, centres, 0.25) + _noise(dice, 3, 16, centres, 0.12)
    x, y = centres[None, None, :], centres[None, :, None]
    for softness, width, reach in ((0.06, 0.05, 0.05), (0.06, 0.05, 0.05), (0.02, 0.012, 0.15), (0.02, 0.012, 0.15)):
        middle = dice.uniform(0, 1, 2)
        angle = dice.uniform(0, math.pi)
        half = dice.uniform(0.5 * reach, reach)
        cos, sin = _plane(angle.cos()), _plane(angle.sin())
        dx, dy = x - _plane(middle[:, 0]), y - _plane(middle[:, 1])
        along, across = dx * cos + dy * sin, dy * cos - dx * sin
        distance = length((along.abs() - _plane(half)).clamp(min=0), across) - width
        colour = dice.uniform(0.2, 0.7, 3).float()[:, :, None, None]
        image = _paint(image, colour, _smooth(0.5 - distance / softness))
    return image


def _noise(dice: _Dice, channels: int, cells: int, centres: Tensor, amplitude: float) -> Tensor:
    """Return value noise on a lattice of ``cells`` cells, smoothly interpolated: float ``[n,channels,S,S]``."""
    lattice = dice.uniform(-amplitude, amplitude, channels, cells + 1, cells + 1).float()
    cell = (centres * cells).floor()
    weight = _smooth(centres * cells - cell)
    low = cell.long()
    rows = lattice[:, :, low] + (lattice[:, :, low + 1] - lattice[:, :, low]) * weight[:, None]
    left, right = rows[..., low], rows[..., low + 1]
    return left + (right - left) * weight


# --- surface of the object --------------------------------------------------------------------------------------


def _surface(dice: _Dice, u: Tensor, v: Tensor) -> Tensor:
    """Return the object's two colours, mixed by one of six textures: float ``[n,3,S,S]``."""
    kind = dice.uniform(0, 6).long()
    period = _plane(dice.uniform(0.4, 0.8))
    angle = dice.uniform(0, 2 * math.pi)
    phase = dice.uniform(0, 1, 2)
    cos, sin = _plane(angle.cos()), _plane(angle.sin())
    across = (u * cos + v * sin) / period + _plane(phase[:, 0])
    along = (v * cos - u * sin) / period + _plane(phase[:, 1])
    cells = 6
    grain = dice.uniform(0, 1, cells, cells).float()

    mix = torch.zeros_like(u)
    for texture, rows in ((t, (kind == t).nonzero().squeeze(1)) for t in range(6)):
        if not len(rows):
            continue
        a, b = across[rows], along[rows]
        if texture == 1:  # stripes
            mix[rows] = _wave(a)
        elif texture == 2:  # checks
            mix[rows] = 0.5 + 2 * (_wave(a) - 0.5) * (_wave(b) - 0.5)
        elif texture == 3:  # dots
            mix[rows] = _smooth(2.5 - 6 * length(a - a.floor() - 0.5, b - b.floor() - 0.5))
        elif texture == 4:  # noise
            column, row = a.floor().long() % cells, b.floor().long() % cells
            mix[rows] = grain[rows].flatten(1).gather(1, (row * cells + column).flatten(1)).view_as(a)
        elif texture == 5:  # gradient
            mix[rows] = _smooth(0.5 + 0.6 * (u[rows] * cos[rows] + v[rows] * sin[rows]))

    # The object is brighter or darker than the background in every channel, so that its outline shows everywhere; the
    # second colour differs in one channel. Stronger colours and textures would tell images apart without the shape,
    # and contrastive learning would stop there.
    bright = dice.uniform(0, 1, 1) < 0.5
    first = torch.where(bright, dice.uniform(0.75, 1, 3), dice.uniform(0, 0.15, 3))
    channel = torch.arange(3) == dice.uniform(0, 3, 1).long()
    second = first + 0.2 * torch.where(bright, -1, 1) * channel
    first, second = first.float()[:, :, None, None], second.float()[:, :, None, None]
    return first + (second - first) * mix[:, None]


def _wave(t: Tensor) -> Tensor:
    """Return a smooth wave of period 1 between 0 and 1."""
    return _smooth(((t - t.floor() - 0.5).abs() * 2 - 0.5) * 2 + 0.5)
