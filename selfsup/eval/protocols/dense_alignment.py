"""Alignment and uniformity of places: what the cells of a feature map do between two views of an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.eval.features import check_finite
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.shown import MatchedViews
from selfsup.eval.subject import Subject, evenly
from selfsup.eval.viewing import augmented, recipe_name
from selfsup.functional.dense import dense_alignment, dense_match, match_accuracy, pixpro_mask
from selfsup.functional.diagnostics import uniformity
from selfsup.settings import setting
from selfsup.unit_range import shown_channels

CELLS = 4096  # places whose uniformity is measured; its cost grows with their square
ROWS = 4  # images in the picture


@dataclass
class DenseAlignmentSettings:
    """Which views are compared, and when two cells show the same place.

    Attributes:
        recipe: Name of the recipe whose views are drawn; None is SimCLR's for the size of the images.
        images: Most images that are used.
        threshold: Distance of the centres of two cells, in diagonals of the larger one, below which they show the same
            place.
    """

    recipe: str | None = None
    images: int = setting(512, least=1)
    threshold: float = setting(0.7, above=0.0)


@protocol("dense_alignment", DenseAlignmentSettings, needs=("network", "dense"))
def evaluate(subject: Subject, settings: DenseAlignmentSettings) -> Iterator[Record]:
    """Alignment, uniformity and matching of the places of two views of an image.

    The dense analogue of alignment and uniformity (arXiv:2210.08819; only its abstract was at hand, so that which
    cells correspond, and the third measure, are ours):

    - ``alignment``: ``mean ‖u - v‖²`` of L2-normalised cells that show the same place; 0 is perfect.
    - ``uniformity``: ``log mean exp(-2 ‖u - u'‖²)`` over pairs of at most 4,096 cells of all images, drawn with the
      seed; lower is more even.
    - ``match_accuracy``: how often the most similar cell of the other view shows the same place, both ways; ``chance``
      is what a cell drawn at random would give.

    Images of the hold-out are used, or training images where there is none.
    """
    split = "holdout" if len(subject.splits.holdout) else "train"
    images = evenly(getattr(subject.splits, split), settings.images)
    recipe = recipe_name(settings.recipe, images.image_size, "eval.dense_alignment.recipe")
    dense: Any = subject.network.forward_dense
    maps: list[list[Tensor]] = [[], []]
    masks: list[Tensor] = []
    pictures: list[Tensor] = []
    with augmented(subject.encoder, subject.network, images, recipe, 2, subject.seed) as batches:
        for views, _ in batches:
            for kept, view in zip(maps, views, strict=True):
                kept.append(dense(view.image).float().cpu())
            rows, columns = maps[0][-1].shape[2:]
            if rows != columns:
                raise UserError(
                    f"data.image_size: dense_alignment compares square maps and this one is {rows} × {columns}; give "
                    "one side."
                )
            first_box, second_box = (view.to_source.float().cpu() for view in views)
            masks.append(pixpro_mask(first_box, second_box, rows, settings.threshold))
            if len(pictures) < ROWS:
                pictures += list(torch.stack([view.image[:ROWS].float().cpu() for view in views], 1))
    first, second, mask = torch.cat(maps[0]), torch.cat(maps[1]), torch.cat(masks)
    if not mask.any():
        raise UserError(
            "eval.dense_alignment.threshold: no two cells of the views show the same place; raise it, or the size of "
            "the images."
        )
    cells = first.permute(0, 2, 3, 1).flatten(0, 2)
    check_finite(cells, f"maps of augmented images of '{images.name}'")
    drawn = torch.randperm(len(cells), generator=torch.Generator().manual_seed(subject.seed))[:CELLS].sort().values
    how = {"recipe": recipe, "images": len(images), "side": rows, "threshold": settings.threshold}
    yield Record(split=split, metric="alignment", value=dense_alignment(first, second, mask).item(), how=how)
    yield Record(split=split, metric="uniformity", value=uniformity(cells[drawn]).item(), how=how)
    both = (match_accuracy(first, second, mask), match_accuracy(second, first, mask.transpose(1, 2)))
    right = torch.stack(both).mean().item()
    chance = mask[mask.any(2)].double().mean().item()
    own = {"chance": chance}
    yield Record(split=split, metric="match_accuracy", value=right, unit=FRACTION, how=how, found=own)
    shown = torch.stack(pictures[:ROWS])
    match = dense_match(first[:ROWS], second[:ROWS])
    statistics = subject.encoder.normalization(images)
    subject.shown["dense_alignment"] = lambda: MatchedViews(
        shown_channels(_unnormalised(shown, statistics)), match, mask[:ROWS]
    )


def _unnormalised(images: Tensor, statistics: Any) -> Tensor:
    mean, std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (statistics.mean, statistics.std))
    return (images * std + mean).clamp(0, 1)
