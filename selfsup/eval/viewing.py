"""Augmented views of the images that are judged, for protocols on what augmentation does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from selfsup.augment import RECIPES, View, ViewGenerator
from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.data.loader import eval_batches
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder, frozen, input_channels
from selfsup.registry import nearest
from selfsup.types import Batch, Size, height_width

SMALL_IMAGE = 64  # largest side that takes the recipe for small images, as in training


def recipe_name(asked: str | None, size: Size, setting: str) -> str:
    """Return the name of a recipe: the one asked for, or SimCLR's for images of this size.

    Raises:
        UserError: There is none of this name; ``setting`` is where it was asked for.
    """
    if asked is None:
        return "simclr_small" if max(height_width(size)) <= SMALL_IMAGE else "simclr"
    if asked not in RECIPES:
        raise UserError(f"{setting}: there is no recipe '{asked}'.{nearest(asked, RECIPES)}")
    return asked


@contextmanager
def augmented(
    encoder: Encoder, network: nn.Module, images: ImageDataset, recipe: str, count: int, seed: int
) -> Iterator[Iterator[tuple[tuple[View, ...], Batch]]]:
    """Give the views of the images with their batch, batch by batch and as the network takes them, while it is frozen.

    Args:
        encoder: How to run.
        network: The network.
        images: Where the images come from.
        recipe: A name of ``RECIPES``; of its first size all views are drawn, in turn from its recipes.
        count: Views of each image.
        seed: Of the draws, which are a function of it, the image's index and the view.
    """
    channels = input_channels(network, images)
    group = RECIPES[recipe][0]
    recipes = [group[view % len(group)] for view in range(count)]
    generator = ViewGenerator(recipes, [images.image_size] * count, encoder.normalization(images))
    with (
        frozen(network, encoder.device) as (where, dtype),
        progress_bar(total=len(images), desc="views", unit="image", disable=not encoder.progress) as bar,
    ):

        def batches() -> Iterator[tuple[tuple[View, ...], Batch]]:
            for batch in eval_batches(images, encoder.batch_size, encoder.workers):
                source, shapes = batch.image.to(where), batch.size
                if source.shape[1 if shapes is None else 0] == 1 and channels == 3:
                    source = source.expand(-1, 3, -1, -1) if shapes is None else source.expand(3, -1)
                views = generator(source, seed=seed, index=batch.index, size=shapes)
                yield tuple(View(view.image.to(dtype), view.to_source) for view in views), batch
                bar.update(len(batch.index))

        yield batches()
