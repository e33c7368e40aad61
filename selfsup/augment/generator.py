"""Turns a batch of images into views, on the device the batch is on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.augment.base import Drawn, Operation
from selfsup.augment.compiled import compiled_pass
from selfsup.augment.config import AugmentConfig
from selfsup.augment.extra import apply_extra, build_extra
from selfsup.augment.operations.flip import Flip
from selfsup.augment.recipes import RECIPES, ViewRecipe, view_recipes
from selfsup.errors import UserError
from selfsup.functional.geometry import compose, crop_to_source
from selfsup.ragged import Images, cut
from selfsup.random import fold_in
from selfsup.types import Normalization, Size, View, as_size, height_width
from selfsup.unit_range import WHITE, unit_range

IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SMALL_IMAGE = 64  # largest side that takes a recipe's small version by itself
LOCAL_SIDE = 3 / 7  # of the image's side: SwAV's and DINO's 96 of 224
COMPILING_PAYS = 2 * 10**9  # pixels of views: at 7 to 25 ns saved a pixel on two cores, about twice what it takes
# Float source values that views are made from in one pass, 8 MiB: with more, calling the operations is not what takes
# time, and the memory of the results is
VALUES_TOGETHER = 2**21
CACHED_VALUES = 2**18  # numbers that an operation works on at a time on a CPU: 1 MiB


class ViewGenerator(nn.Module):
    """Makes the views of a batch: new ones at every call, or with a seed a function of (seed, image's index, view).

    Args:
        recipes: One per view.
        sizes: Side in pixels, or (height, width), one per view.
        normalization: Statistics to normalise with. Three values meet one channel as their mean.
        extra: Kornia augmentations applied last before normalisation, see ``AugmentConfig.extra``.
        compiled: Compile the colour operations, see ``AugmentConfig.compile``.
    """

    def __init__(
        self,
        recipes: Sequence[ViewRecipe],
        sizes: Sequence[Size],
        normalization: Normalization = IMAGENET,
        extra: Sequence[Mapping[str, Any]] = (),
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.recipes = tuple(recipes)
        self.sizes = tuple(sizes)
        self.normalization = normalization
        self.extra = build_extra(extra)
        self.compiled = compiled

    def forward(
        self,
        images: Tensor,
        seed: int | None = None,
        index: Tensor | None = None,
        step: int = 0,
        size: Tensor | None = None,
    ) -> tuple[View, ...]:
        """Return the views of the images.

        Without a seed every call draws new views, from torch's generator of the CPU (``torch.manual_seed`` repeats
        them). With one, the built-in operations depend on ``seed`` and ``index`` only: an image has the same views in
        any batch and any order, and torch's generators stay untouched. ``step`` reaches the extra Kornia
        augmentations, whose parameters are drawn for the batch as a whole. Where an extra augmentation moves pixels in
        a way that is not affine, ``to_source`` is NaN.

        Args:
            images: uint8, uint16 or float in [0, 1], ``[B,C,H,W]``; with ``size`` ``[C,P]``. Of other channels than
                three, operations that need colour leave them as they are (:func:`colors_left_out`).
            seed: Fold the epoch into it (``fold_in``) to see new views in every epoch.
            index: int64 ``[B]``, a stable number of each image; None takes the position in the batch. On the CPU it
                spares a wait for the device.
            step: A number of the batch and the rank.
            size: int64 ``[B,2]`` on the CPU: height and width of each image, where they are no squares of one size
                (``selfsup.ragged``).

        Raises:
            ValueError: Images or index of another shape or type.
            UserError: Statistics of another number of channels.
        """
        _check(images, index, size)
        channels = images.shape[1 if size is None else 0]
        if channels != 1 and len(self.normalization.mean) not in (1, channels):
            raise UserError(
                f"data.mean: there are statistics of {len(self.normalization.mean)} channels for images of {channels}; "
                "give one a channel (selfsup data NAME --statistics measures them)."
            )
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
        count = len(images) if size is None else len(size)
        index = torch.arange(count) if index is None else index.cpu()
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            source = Images(unit_range(images) if size is None else images, size)
            most = max(1, VALUES_TOGETHER // max(1, images.numel()))
            made = (self._make(source, numbers, seed, index) for numbers in self._alike(most))
            return tuple(
                self._finish(image, to_source, number, seed, step)
                for number, (image, to_source) in enumerate(itertools.chain.from_iterable(made))
            )

    def _alike(self, most: int) -> Iterator[list[int]]:
        """Yield runs of at most ``most`` neighbouring views with one recipe and one size."""
        for _, run in itertools.groupby(range(len(self.recipes)), lambda n: (self.recipes[n], self.sizes[n])):
            numbers = list(run)
            yield from (numbers[first : first + most] for first in range(0, len(numbers), most))

    def _make(self, source: Images, numbers: list[int], seed: int, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Return image and ``to_source`` of views that are alike, made in one pass."""
        recipe, size, count = self.recipes[numbers[0]], self.sizes[numbers[0]], len(numbers)
        (images, shapes), device = source, source.pixels.device
        channels = images.shape[1 if shapes is None else 0]
        operations = [o for o in recipe.operations if channels == 3 or not o.needs_color]
        height: int | Tensor
        width: int | Tensor
        height, width = images.shape[-2:] if shapes is None else shapes.repeat(count, 1).unbind(1)
        box, drawn = recipe.draw([fold_in(seed, number) for number in numbers], index, height, width)
        flip = torch.zeros(len(box), dtype=torch.bool)
        if operations and isinstance(operations[0], Flip):  # part of the crop's matrices
            flip = drawn[operations.pop(0).name].chosen
        if shapes is None:
            inside, repeated = box, images.expand(count, -1, -1, -1, -1).flatten(0, 1)  # one view takes no copy
        else:  # a crop sees nothing beyond its box
            inside, repeated = box * torch.tensor([0, 0, 1, 1]), unit_range(cut(source, box))
        image = recipe.crop.apply(repeated, inside.to(device), flip.to(device), height_width(size))
        to_source = crop_to_source(box, flip, height, width).to(device)
        for has_planes, run in itertools.groupby(operations, lambda o: o.on_planes is not Operation.on_planes):
            together = list(run)
            # code for one image is another
            if self.compiled and has_planes and len(image) > 1 and any(o.p > 0 for o in together):
                result = compiled_pass(image, together, drawn)
                if result is not None:
                    image = result
                    continue
            for operation in together:
                perform(operation, drawn[operation.name], image, to_source)
        return zip(image.chunk(count), to_source.chunk(count), strict=True)

    def _finish(self, image: Tensor, to_source: Tensor, number: int, seed: int, step: int) -> View:
        """Apply what comes after the built-in operations."""
        if len(self.extra):
            image, to_source = apply_extra(self.extra, image, to_source, fold_in(fold_in(seed, step), number))
        mean, std = (
            image.new_tensor(values).view(1, -1, 1, 1) for values in (self.normalization.mean, self.normalization.std)
        )
        if image.shape[1] == 1:
            mean, std = mean.mean(dim=1, keepdim=True), std.mean(dim=1, keepdim=True)
        return View(image.sub_(mean).div_(std), to_source)


def two_crop(recipe: str = "simclr", size: Size = 224, normalization: Normalization = IMAGENET) -> ViewGenerator:
    """Return a generator of two views of one size.

    Called as ``generator(images, seed=None, index=None)``: without a seed every call draws anew, with one the views
    are a function of (seed, index). ``index`` is the position in the dataset, so that batches differ; without it the
    position in the batch stands for it.

    Raises:
        UserError: No such recipe.
    """
    return multi_crop(recipe, (size,), (2,), normalization)


def multi_crop(
    recipe: str = "swav",
    sizes: Sequence[Size] = (224, 96),
    counts: Sequence[int] = (2, 6),
    normalization: Normalization = IMAGENET,
) -> ViewGenerator:
    """Return a generator of ``counts[g]`` views of side ``sizes[g]`` for every group ``g``, in this order.

    A size may be (height, width).

    It is called as that of :func:`two_crop`.

    Raises:
        UserError: No such recipe, or sizes and counts that do not go together.
    """
    largest = max((max(height_width(size)) for size in sizes), default=0)
    return build_views(AugmentConfig(recipe, False, list(sizes), list(counts)), largest, normalization)


def build_views(
    config: AugmentConfig,
    image_size: int | Sequence[int],
    normalization: Normalization,
    training_images: int = 0,
    side_step: int = 1,
) -> ViewGenerator:
    """Return the generator that a config describes.

    Args:
        config: See ``AugmentConfig``.
        image_size: ``data.image_size``, from which the default sizes of the views follow; no side above 64 selects the
            recipe's ``_small`` version unless the config decides.
        normalization: Statistics of the data.
        training_images: Images that views will be made of, over all epochs: whether compiling pays. A number that
            follows from the configuration, not a timing, so that a resumed run decides as it did before.
        side_step: What the default side of a second group is made a multiple of, for networks that cut patches.

    Raises:
        UserError: A setting that does not exist or does not fit.
    """
    counts = list(config.counts)
    sides = height_width(image_size)
    local = [max(side_step, round(side * LOCAL_SIDE / side_step) * side_step) for side in sides]
    default_sizes = [as_size(sides), as_size(local)][: len(counts)]
    sizes = default_sizes if config.sizes is None else [as_size(size) for size in config.sizes]
    if len(sizes) != len(counts):
        one = f" Views of {sizes[0]}×{sizes[1]} are written [[{sizes[0]},{sizes[1]}]]." if len(sizes) == 2 else ""
        raise UserError(
            f"augment.sizes has {len(sizes)} entries and augment.counts {len(counts)}; give one per size.{one}"
        )
    if not sizes or min(min(height_width(size)) for size in sizes) < 2 or min(counts) < 1:
        raise UserError(
            f"augment.sizes {config.sizes or default_sizes} must be at least 2 and augment.counts {counts} at least 1."
        )
    small = max(sides) <= SMALL_IMAGE if config.small is None else config.small
    small_name = f"{config.recipe}_small"
    name = small_name if small and small_name in RECIPES else config.recipe
    recipes = view_recipes(name, counts, config.override, config.local_override, config.operations)
    view_sizes = [size for size, count in zip(sizes, counts, strict=True) for _ in range(count)]
    pixels = training_images * sum(math.prod(height_width(size)) for size in view_sizes)
    compiled = pixels >= COMPILING_PAYS if config.compile is None else config.compile
    return ViewGenerator(recipes, view_sizes, normalization, config.extra, compiled)


def colors_left_out(views: ViewGenerator, channels: int) -> list[str]:
    """Return what the views leave out as it needs three channels: operations by name, parts as ``jitter.hue``."""
    if channels == 3:
        return []
    operations = itertools.chain(*(recipe.operations for recipe in views.recipes))
    return list(dict.fromkeys(name for o in operations if o.p > 0 for name in o.of_color()))


def perform(operation: Operation, drawn: Drawn, image: Tensor, to_source: Tensor) -> None:
    """Replace the chosen images, and their ``to_source``, by what the operation makes of them."""
    for function, chosen, parameters in operation.steps(drawn, image.device):
        position = chosen.nonzero().squeeze(1).to(image.device)
        own = {name: value.to(image.device) for name, value in parameters.items()}
        # On a CPU the operation's intermediate results then stay in the cache
        portion = max(1, CACHED_VALUES // math.prod(image.shape[1:]) if image.device.type == "cpu" else len(position))
        for start in range(0, len(position), portion):
            part = position[start : start + portion]
            # whole rows of memory, which indexing with [] moves at half the speed
            changed = function(image.index_select(0, part), **{name: value[part] for name, value in own.items()})
            image.index_copy_(0, part, changed)
    position = drawn.chosen.nonzero().squeeze(1)
    movement = operation.movement(**{name: value[position] for name, value in drawn.parameters.items()})
    if movement is not None:
        moved = movement.to(to_source).expand(len(position), 2, 3)
        to_source[position] = compose(to_source[position], moved)


def _check(images: Tensor, index: Tensor | None, size: Tensor | None) -> None:
    if size is None and (images.ndim != 4 or not images.shape[1]):
        raise ValueError(f"images must be [B,C,H,W], not {list(images.shape)}")
    if size is not None and (
        images.ndim != 2 or size.ndim != 2 or size.shape[1] != 2 or images.shape[1] != int(size.prod(1).sum())
    ):
        raise ValueError(f"images {list(images.shape)} do not hold the pixels of {len(size)} images of these sizes")
    if images.dtype not in WHITE and not images.is_floating_point():
        raise ValueError(f"images must be uint8, uint16, or float in [0, 1], not {images.dtype}")
    count = len(images) if size is None else len(size)
    if index is not None and (index.shape != (count,) or index.dtype != torch.int64):
        raise ValueError(
            f"index must be int64 with one entry per image ({count}), not {index.dtype} {list(index.shape)}"
        )
