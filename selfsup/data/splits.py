"""From a source to the parts an experiment uses: the hold-out is set aside, then ``limit`` is taken."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from selfsup.data.base import DataConfig, ImageDataset, SourceSplits, Splits
from selfsup.errors import UserError
from selfsup.registry import sources

#: What a folder or a part of a shard's name may say of the split, in any case, and the split it means.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


def split_of(name: str) -> str | None:
    """Return the split that a word names: ``train``, ``test``, ``val``, or None where it names none."""
    return SPLIT_NAMES.get(name.lower())


def choose_test(there: Collection[str], wanted: str | None) -> str | None:
    """Return the split to test on: the one that ``data.test_split`` asks for, or else ``test`` before ``val``.

    Args:
        there: The splits that the source has, as ``split_of`` says them.
        wanted: ``data.test_split``, in any spelling that ``split_of`` knows.

    Returns:
        ``test`` or ``val``; None where the source has neither and none is asked for.

    Raises:
        UserError: The split that is asked for is not there, or is the training split.
    """
    if wanted is None:
        return next((split for split in ("test", "val") if split in there), None)
    split = split_of(wanted)
    if split not in there or split == "train":
        raise UserError(
            f"data.test_split is {wanted}, but data.root has the splits: {', '.join(sorted(there)) or 'none'}; choose "
            "test or val where it is there, or set data.test_split=null."
        )
    return split


def load_splits(config: DataConfig) -> Splits:
    """Load a source and take its hold-out and its limited training part.

    The hold-out is ``round(holdout * N)`` of the ``N`` training images, at least one unless ``holdout`` is 0. It is
    drawn with ``subset_seed`` and left out of both ``train`` and ``pretrain``. ``limit`` draws from what remains with
    the same seed, so that a larger limit contains a smaller one; where the source has further unlabelled images it
    limits ``pretrain`` likewise.

    Raises:
        UserError: ``limit`` or ``holdout`` is outside what the source has, or the source cannot be read.
    """
    if not 0 <= config.holdout < 1:
        raise UserError(f"data.holdout is {config.holdout}; set a fraction from 0 (none) to below 1.")
    source: SourceSplits = sources[config.name].target(config)
    count = len(source.train)
    held = max(1, round(config.holdout * count)) if config.holdout else 0
    if held >= count:
        raise UserError(
            f"data.holdout is {config.holdout}, which leaves nothing of {count} training images; "
            "lower it or add images."
        )
    order = _shuffled(count, config.subset_seed)
    holdout, rest = order[:held].sort().values, order[held:]
    if source.pretrain is None:
        train = pretrain = _limited(source.train, rest, config.limit)
    else:
        every = torch.cat([rest, torch.arange(count, len(source.pretrain))])
        every = every[_shuffled(len(every), config.subset_seed)]
        pretrain = _limited(source.pretrain, every, config.limit)
        train = _limited(source.train, rest, config.limit and min(config.limit, len(rest)))
    return Splits(pretrain, train, source.train.subset(holdout), source.test)


def _limited(dataset: ImageDataset, order: Tensor, limit: int | None) -> ImageDataset:
    if limit is not None:
        if limit < 1:
            raise UserError(f"data.limit is {limit}; set it to at least 1, or null for all images.")
        if limit > len(order):
            raise UserError(
                f"data.limit is {limit} but only {len(order)} training images are left of '{dataset.name}' after the "
                "hold-out; lower data.limit or data.holdout, or set data.limit=null."
            )
        order = order[:limit]
    return dataset.subset(order.sort().values)


def draw_test(count: int, fraction: float) -> tuple[list[int], list[int]]:
    """Set a fraction of ``count`` images aside for testing where a source has no split for it.

    Returns:
        The positions of the training images and of the test images, both ascending.

    Raises:
        UserError: Nothing is left to train on.
    """
    # Fixed, not subset_seed: what is tested must not change with a setting of the training images
    order = _shuffled(count, 0).tolist()
    tested = set(order[: round(fraction * count)])
    if len(tested) == count:
        raise UserError(f"data.test_fraction is {fraction}, which leaves no training image; lower it.")
    return [position for position in range(count) if position not in tested], sorted(tested)


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
