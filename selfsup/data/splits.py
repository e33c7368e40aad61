"""From a source to the parts an experiment uses: the hold-out is set aside, then ``limit`` is taken."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from selfsup.data.base import DataConfig, ImageDataset, SourceSplits, Splits
from selfsup.data.location import roots
from selfsup.data.membership import HOLDOUT, PRETRAIN, TEST, TRAIN, Membership, draw, draw_for_test
from selfsup.errors import UserError
from selfsup.registry import sources

logger = logging.getLogger(__name__)

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

    The hold-out is left out of both ``train`` and ``pretrain``. ``limit`` draws from what remains, so that a larger
    limit contains a smaller one; where the source has further unlabelled images it limits ``pretrain`` likewise. Where
    the source has a split for choices (``val`` beside ``test``), that is the hold-out, and nothing is set aside.
    ``labelled=false`` takes the labels away from every part.

    Each image of a source with ``keys`` has a number in [0, 1), a function of its key and ``subset_seed``: those below
    ``holdout`` are the hold-out, and ``limit`` takes the smallest of the others. Without keys, or with
    ``membership=position``, both come from a permutation of the number of images: the hold-out is
    ``round(holdout * N)`` of the ``N`` training images, at least one unless ``holdout`` is 0.

    Raises:
        UserError: ``limit`` or ``holdout`` is outside what the source has, or the source cannot be read.
    """
    source: SourceSplits = _labelled(sources[config.name].target(config), config)
    undrawn = source.train
    every = source.train if source.pretrain is None else source.pretrain
    count = len(source.train)
    fraction = config.holdout if source.holdout is None else 0.0
    by_image = config.membership == "image" and every.keys is not None
    if not by_image and source.pretrain is None:  # the draw depends on how many images can be decoded
        every = source.train.first(torch.arange(count))
        source, count = replace(source, train=every), len(every)
    if by_image:
        assert every.keys is not None
        holdout, rest, unlabelled = _by_key(draw(every.keys, config.subset_seed), count, fraction)
    else:
        holdout, rest, unlabelled = _by_position(len(every), count, fraction, config.subset_seed)
    if not len(rest):
        raise UserError(
            f"data.holdout is {config.holdout}, which leaves nothing of {count} training images; "
            "lower it or add images."
        )
    if fraction and not len(holdout):
        logger.warning(
            "data.holdout=%g sets none of the %d training images aside for choices; raise it, or set data.holdout=0 "
            "to go without",
            config.holdout,
            count,
        )
    if source.pretrain is None:
        train = pretrain = _limited(source.train, rest, config.limit)
    else:
        pretrain = _limited(source.pretrain, unlabelled, config.limit)
        train = _limited(source.train, rest, config.limit and min(config.limit, len(rest)))
    held_out = source.train.subset(holdout) if source.holdout is None else source.holdout
    if source.found is not None:
        for part in (undrawn, source.test, source.holdout):
            if part is not None:
                source.found.undecodable(part.undecodable())
        said = source.found.splits["train"][1] + ("" if config.limit is None else f", data.limit={config.limit}")
        source.found.splits["train"] = (len(pretrain), said)
        if source.holdout is None and len(held_out):
            source.found.splits["holdout"] = (len(held_out), f"drawn from train, data.holdout={config.holdout:g}")
    splits = Splits(pretrain, train, held_out, source.test, source.found)
    return replace(splits, membership=_membership(config, source, splits, by_image))


def _by_key(numbers: Tensor, count: int, holdout: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions: of the hold-out, of the other training images and of all others, the last two as limits draw.

    Args:
        numbers: float ``[N]`` in [0, 1), of every image.
        count: Training images among them, which come first.
        holdout: Numbers of training images below it are of the hold-out.
    """
    order = numbers.argsort(stable=True)
    held = (order < count) & (numbers[order] < holdout)
    return order[held].sort().values, order[(order < count) & ~held], order[~held]


def _by_position(total: int, count: int, holdout: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``_by_key`` does, from permutations of the numbers of images."""
    held = max(1, round(holdout * count)) if holdout else 0
    order = _shuffled(count, seed)
    every = torch.cat([order[held:], torch.arange(count, total)])
    return order[:held].sort().values, order[held:], every[_shuffled(len(every), seed)]


def _membership(config: DataConfig, source: SourceSplits, splits: Splits, by_image: bool) -> Membership:
    """Return which image of a source is of which part."""
    every = source.train if source.pretrain is None else source.pretrain
    bits = torch.zeros(len(every), dtype=torch.uint8)
    for part, bit in ((splits.pretrain, PRETRAIN), (splits.train, TRAIN)):
        bits[torch.isin(every.index, part.index)] |= bit
    if source.holdout is None:
        bits[torch.isin(every.index, splits.holdout.index)] |= HOLDOUT
    keys, parts = [_keys(every, 0)], [bits]
    for number, other, bit in ((1, source.test, TEST), (2, source.holdout, HOLDOUT)):
        if other is not None:
            keys.append(_keys(other, number))
            parts.append(torch.full((len(other),), bit, dtype=torch.uint8))
    folders = [str(folder.resolve()) for folder in roots(config)]
    rule = "image" if by_image else "position"
    return Membership(config.name, folders, rule, torch.cat(keys), torch.cat(parts), keyless=every.keys is None)


def _keys(part: ImageDataset, number: int) -> Tensor:
    # without keys an image is known by its index, which each split of a source counts from 0
    return part.index + (number << 48) if part.keys is None else part.keys


def _limited(dataset: ImageDataset, order: Tensor, limit: int | None) -> ImageDataset:
    part = dataset.first(order, limit) if limit is None or limit <= len(order) else None
    if part is None or (limit is not None and len(part) < limit):
        raise UserError(
            f"data.limit is {limit} but only {len(order if part is None else part)} training images are left of "
            f"'{dataset.name}' after the hold-out; lower data.limit or data.holdout, or set data.limit=null."
        )
    return part


def _labelled(source: SourceSplits, config: DataConfig) -> SourceSplits:
    """Take the labels away where ``data.labelled`` is false; ask for them where it is true."""
    if config.labelled and source.train.labels is None and source.train.targets is None:
        raise UserError(f"data.labelled is true, but the images of {config.name} have no labels; set null or false.")
    if config.labelled is not False:
        return source
    parts = (source.train, source.test, source.pretrain, source.holdout)
    train, test, pretrain, holdout = (None if part is None else part.without_labels() for part in parts)
    assert train is not None
    if source.found is not None:
        source.found.labels, source.found.classes, source.found.without_label = None, (), 0
        source.found.targets = None
    return SourceSplits(train, test, pretrain, holdout, source.found)


def draw_test(keys: Tensor, fraction: float, membership: str) -> tuple[list[int], list[int]]:
    """Set a fraction of the images aside for testing where a source has no split for it.

    Args:
        keys: int64 ``[N]``, of the images (``selfsup.data.membership``).
        fraction: ``data.test_fraction``.
        membership: ``data.membership``: ``image`` draws each image by its key, ``position`` a share of their number.

    Returns:
        The positions of the training images and of the test images, both ascending.

    Raises:
        UserError: Nothing is left to train on.
    """
    count = len(keys)
    tested = torch.zeros(count, dtype=torch.bool)
    if membership == "position":
        tested[_shuffled(count, 0)[: round(fraction * count)]] = True
    else:
        tested = draw_for_test(keys) < fraction
    if tested.all():
        raise UserError(f"data.test_fraction is {fraction}, which leaves no training image; lower it.")
    if fraction and not tested.any():
        logger.warning(
            "data.test_fraction=%g sets none of the %d images aside for testing; raise it, or give the test images a "
            "folder or shards named test",
            fraction,
            count,
        )
    return (~tested).nonzero().flatten().tolist(), tested.nonzero().flatten().tolist()


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
