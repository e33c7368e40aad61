"""What the features do when one augmentation changes the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.augment import RECIPES, ViewGenerator, ViewRecipe
from selfsup.bars import progress_bar
from selfsup.data.loader import eval_batches
from selfsup.errors import UserError
from selfsup.eval.encoder import frozen, input_channels
from selfsup.eval.features import check_finite
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly
from selfsup.functional.diagnostics import alignment, lidar, orthogonal_equivariance
from selfsup.random import fold_in
from selfsup.settings import setting
from selfsup.types import height_width

SHARED_DRAWS = 4  # operations applied to all images alike, for the equivariance
LIDAR_VIEWS = 10
SMALL_IMAGE = 64  # largest side that takes the recipe for small images, as in training
COLOUR_ONLY = ("saturation", "hue", "gray")
WITHOUT_CHOICE = ("flip", "gray", "solarize")  # applied or not: there is nothing to draw


@dataclass
class InvarianceSettings:
    """What is changed.

    Attributes:
        images: Most images whose features are compared before and after each augmentation.
    """

    images: int = setting(512, least=3)


@protocol("invariance", InvarianceSettings, needs=("network",), shown=("operation",))
def evaluate(subject: Subject, settings: InvarianceSettings) -> Iterator[Record]:
    """Whether features stay, or move alike, when one augmentation changes the images.

    For every operation of the SimCLR recipe, whatever recipe the network was trained with, and for all of them
    together, of ``f`` the unchanged and ``g`` the changed images' L2-normalised features:

    - ``cosine``: ``mean_i f_i·g_i``, parameters drawn for each image.
    - ``invariance``: ``(cosine - other) / (1 - other)`` with ``other = mean_{i≠j} f_i·g_j``. 1 when the operation
      moves nothing, 0 when an image is as far from its changed self as from the others.
    - ``equivariance``: :func:`~selfsup.functional.diagnostics.orthogonal_equivariance` with the same parameters for all
      images, mean over 4 draws: whether features move, where they do, all in one way.

    For ``all`` also ``alignment`` of two views and ``lidar`` of ten, both on views of the whole recipe. Images of the
    hold-out are used, or training images where there is none.
    """
    encoder, backbone, seed = subject.encoder, subject.network, subject.seed
    split = "holdout" if len(subject.splits.holdout) >= 3 else "train"
    images = evenly(getattr(subject.splits, split), settings.images)
    if len(images) < 3:
        raise UserError("eval.invariance.images: invariance needs at least 3 images; give it more.")
    name = "simclr_small" if max(height_width(images.image_size)) <= SMALL_IMAGE else "simclr"
    recipe = RECIPES[name][0][0]
    channels = input_channels(backbone, images)
    tried = operations(recipe, images.channels)
    shared = {operation: 1 if operation in WITHOUT_CHOICE else SHARED_DRAWS for operation in tried}
    passes = 1 + sum(1 + draws for draws in shared.values()) + LIDAR_VIEWS
    normalization = encoder.normalization(images)
    values: list[tuple[str, str, float]] = []
    decoded = list(eval_batches(images, encoder.batch_size, encoder.workers))  # once, for all the passes
    with (
        frozen(backbone, encoder.device) as (where, dtype),
        progress_bar(total=passes * len(images), desc="invariance", unit="image", disable=not encoder.progress) as bar,
    ):

        def encode(view: ViewRecipe, draw: int, together: bool = False) -> Tensor:
            generator = ViewGenerator([view], [images.image_size], normalization)
            features = []
            for batch in decoded:
                source, shapes = batch.image.to(where), batch.size
                if source.shape[1 if shapes is None else 0] == 1 and channels == 3:
                    source = source.expand(-1, 3, -1, -1) if shapes is None else source.expand(3, -1)
                # images of one index get the same parameters
                index = torch.zeros_like(batch.index) if together else batch.index
                changed = generator(source, seed=fold_in(seed, draw), index=index, size=shapes)[0].image
                features.append(backbone(changed.to(dtype, memory_format=torch.channels_last)).float())
                bar.update(len(index))
            found = torch.cat(features)
            check_finite(found, f"features of augmented images of '{images.name}'")
            return found

        still = encode(unchanged(recipe), 0)
        if _cosines(still, still)[1] > 1 - 1e-5:
            raise UserError("checkpoint: the network gives all images the same features; it has collapsed.")
        for operation, view in tried.items():
            own, other = _cosines(still, encode(view, 0))
            moved = [orthogonal_equivariance(still, encode(view, draw, True)) for draw in range(shared[operation])]
            values.append((operation, "cosine", own))
            values.append((operation, "invariance", (own - other) / (1 - other)))
            values.append((operation, "equivariance", torch.stack(moved).mean().item()))
        views = torch.stack([encode(recipe, 1 + draw) for draw in range(LIDAR_VIEWS)], 1)
        values.append(("all", "alignment", alignment(views[:, 0], views[:, 1]).item()))
        values.append(("all", "lidar", lidar(views).item()))
    how = {"recipe": name, "images": len(images), "dim": still.shape[1]}
    for operation, metric, value in values:
        yield Record(split=split, metric=metric, value=value, how={"operation": operation, **how})


def operations(recipe: ViewRecipe, channels: int = 3) -> dict[str, ViewRecipe]:
    """Return recipes that differ from an unchanged view in one operation each, and ``all``, the whole recipe.

    The strengths are those of ``recipe``; probabilities are 1, so that every image is changed. Operations on colour are
    left out for other channels than three.

    Args:
        recipe: Whose strengths are taken.
        channels: Of the images.
    """
    still = unchanged(recipe)
    found = {"crop": ViewRecipe((), recipe.crop)}
    for operation in recipe.operations:
        found |= {name: ViewRecipe([alone], still.crop) for name, alone in operation.alone().items()}
    if channels != 3:
        found = {name: view for name, view in found.items() if name not in COLOUR_ONLY}
    return found | {"all": recipe}


def unchanged(recipe: ViewRecipe) -> ViewRecipe:
    """Return the recipe with every operation off: the central square of the image, resized."""
    return ViewRecipe((), recipe.crop, scale=(1.0, 1.0), ratio=(1.0, 1.0))


def _cosines(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return the mean cosine of the same rows and that of different rows."""
    u, v = F.normalize(first, dim=1).double(), F.normalize(second, dim=1).double()
    same = (u * v).sum()
    return (same / len(u)).item(), ((u.sum(0) @ v.sum(0) - same) / (len(u) * (len(u) - 1))).item()
