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
    limits ``pretrain`` likewise. Where the source has a split for choices (``val`` beside ``test``), that is the
    hold-out, and nothing is set aside. ``labelled=false`` takes the labels away from every part.

    Raises:
        UserError: ``limit`` or ``holdout`` is outside what the source has, or the source cannot be read.
    """
    if not 0 <= config.holdout < 1:
        raise UserError(f"data.holdout is {config.holdout}; set a fraction from 0 (none) to below 1.")
    source: SourceSplits = _labelled(sources[config.name].target(config), config)
    count = len(source.train)
    held = max(1, round(config.holdout * count)) if config.holdout and source.holdout is None else 0
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
    held_out = source.train.subset(holdout) if source.holdout is None else source.holdout
    if source.found is not None:
        source.found.splits["train"] = (len(pretrain), source.found.splits["train"][1])
        if source.holdout is None and len(held_out):
            source.found.splits["holdout"] = (len(held_out), f"drawn from train, data.holdout={config.holdout:g}")
    return Splits(pretrain, train, held_out, source.test, source.found)


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


def _labelled(source: SourceSplits, config: DataConfig) -> SourceSplits:
    """Take the labels away where ``data.labelled`` is false; ask for them where it is true."""
    if config.labelled and source.train.labels is None:
        raise UserError(f"data.labelled is true, but the images of {config.name} have no labels; set null or false.")
    if config.labelled is not False:
        return source
    parts = (source.train, source.test, source.pretrain, source.holdout)
    train, test, pretrain, holdout = (None if part is None else part.without_labels() for part in parts)
    assert train is not None
    if source.found is not None:
        source.found.labels, source.found.classes, source.found.without_label = None, (), 0
    return SourceSplits(train, test, pretrain, holdout, source.found)


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
