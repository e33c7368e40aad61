"""What is judged: a network and the parts of a source, with what all protocols share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsup.data.base import ImageDataset, Splits
from selfsup.errors import UserError
from selfsup.eval.config import EvalConfig
from selfsup.eval.cropping import enlarged
from selfsup.eval.encoder import Encoder
from selfsup.eval.feature_choices import ChosenFeatures
from selfsup.eval.features import FeatureSet
from selfsup.eval.shown import feature_map, nearest_images
from selfsup.types import Size, size_words

SPLIT_OFF = 0.1  # of the training images, for choices where there is no hold-out
NOTHING_TO_SCORE = "data.holdout: the source has no test images; set aside some of the training images (0.1)."


@dataclass(frozen=True)
class SplitFeatures:
    """Features of the parts of a source.

    Attributes:
        train: Bank of the kNN and training features of the probes.
        holdout: Features for choices, or None when no images were set aside.
        test: Features for the reported number, or None when the source has no test images.
        how: What records say of them: number of images of each part, width of the features, a lowered precision.
    """

    train: FeatureSet
    holdout: FeatureSet | None
    test: FeatureSet | None
    how: dict[str, Any]

    @property
    def scored(self) -> tuple[str, FeatureSet]:
        """Name and features of the part that numbers are reported on: test, or the hold-out where there is none.

        Raises:
            UserError: There is neither.
        """
        if self.test is not None:
            return "test", self.test
        if self.holdout is not None:
            return "holdout", self.holdout
        raise UserError(NOTHING_TO_SCORE)


def extract_splits(encoder: Encoder, splits: Splits, cache_dir: str | Path | None = None) -> SplitFeatures:
    """Compute the features of every labelled part once, for all protocols.

    Args:
        encoder: The network, or the raw pixels.
        splits: The parts of a source.
        cache_dir: Folder that keeps the features, each part as soon as it is there; or None.

    Raises:
        UserError: As :meth:`Encoder.features`.
    """

    def compute(part: str) -> FeatureSet:
        cache = None if cache_dir is None else Path(cache_dir) / f"{part}.pt"
        return encoder.features(getattr(splits, part), cache)

    train = compute("train")
    holdout = compute("holdout") if len(splits.holdout) else None
    test = None if splits.test is None else compute("test")
    held, tested = (0 if part is None else len(part) for part in (holdout, test))
    how: dict[str, Any] = {"dim": train.features.shape[1], **image_counts(len(train), held, tested)}
    if encoder.lowered is not None:
        how["precision"] = str(encoder.lowered).removeprefix("torch.")
    return SplitFeatures(train, holdout, test, how)


def choice_splits(encoder: Encoder, splits: Splits, choices: Sequence[str]) -> dict[str, SplitFeatures]:
    """Compute several features of every part in one pass, by name; see ``ChosenFeatures``.

    Args:
        encoder, splits: As ``extract_splits``.
        choices: Such as ``["pooled", "last_4"]``.

    Raises:
        UserError: As ``ChosenFeatures``.
    """
    assert encoder.network is not None
    network = ChosenFeatures(encoder.network, choices)
    together = extract_splits(replace(encoder, network=network), splits)
    parts = [
        None if part is None else network.split(part) for part in (together.train, together.holdout, together.test)
    ]
    found = {}
    for name in choices:
        train, holdout, test = (None if part is None else part[name] for part in parts)
        assert train is not None
        found[name] = SplitFeatures(train, holdout, test, together.how | {"dim": train.features.shape[1]})
    return found


@dataclass
class Subject:
    """What is judged and how: everything that protocols need.

    Attributes:
        encoder: The network and how to run it.
        splits: The parts of a source.
        config: What all protocols share.
        head: What the method trained on top of the backbone, for the layers; None looks at the backbone alone.
        epoch: Epochs the checkpoint was trained for, for the records.
        seed: Of everything random.
        cache_dir: Folder that keeps the features, or None.
        shown: What figures show, by their name: functions, so that nothing is computed for a figure that is not drawn.
        extraction_seconds: Time that the pooled features took, which no protocol is charged with.
    """

    encoder: Encoder
    splits: Splits
    config: EvalConfig
    head: nn.Module | None = None
    epoch: int | None = None
    seed: int = 0
    cache_dir: Path | None = None
    shown: dict[str, Callable[[], Any]] = field(default_factory=dict)
    extraction_seconds: float = 0.0

    @property
    def features(self) -> SplitFeatures:
        """Pooled features of every part, computed when the first protocol asks for them.

        Raises:
            UserError: As ``extract_splits``; the same for every protocol that asks, after one extraction.
        """
        if isinstance(self._extracted, UserError):
            raise self._extracted
        return self._extracted

    @cached_property
    def _extracted(self) -> SplitFeatures | UserError:
        start = time.perf_counter()
        try:
            found = extract_splits(self.encoder, self.splits, self.cache_dir)
        except UserError as error:
            return error
        finally:
            self.extraction_seconds += time.perf_counter() - start
        bank = found.train, self.splits.train
        self.shown["feature_map"] = cache(lambda: feature_map(*self.asked(found), found.scored[0]))
        self.shown["neighbours"] = lambda: nearest_images(bank, self.asked(found))
        return found

    def asked(self, features: SplitFeatures) -> tuple[FeatureSet, ImageDataset]:
        """Return the features that are scored, and the images they are of."""
        split, scored = features.scored
        return scored, getattr(self.splits, split)

    @property
    def network(self) -> nn.Module:
        """The backbone of protocols that look into it.

        Raises:
            UserError: Raw pixels have none.
        """
        if self.encoder.network is None:
            raise UserError("raw pixels have no network to look into.")
        return self.encoder.network

    @property
    def scored(self) -> tuple[str, ImageDataset]:
        """Name and images of the part that numbers are reported on: test, or the hold-out where there is none.

        Raises:
            UserError: There is neither.
        """
        if self.splits.test is not None:
            return "test", self.splits.test
        if len(self.splits.holdout):
            return "holdout", self.splits.holdout
        raise UserError(NOTHING_TO_SCORE)

    @property
    def chosen_on(self) -> ImageDataset | None:
        """The hold-out where choices can be made on it: there is one, and it is not what is scored."""
        return self.splits.holdout if self.splits.test is not None and len(self.splits.holdout) else None

    @property
    def unseen(self) -> tuple[str, ImageDataset]:
        """Name and images of the hold-out, or of the test part where there is none: for what a choice is made by.

        Raises:
            UserError: There is neither.
        """
        return ("holdout", self.splits.holdout) if len(self.splits.holdout) else self.scored

    @property
    def how(self) -> dict[str, Any]:
        """What every record says of the images and the run."""
        size = self.splits.train.image_size
        images = {
            "data": self.splits.train.name,
            "image_size": size if isinstance(size, int) else list(size),
            "crop": crop_words(size, self.encoder.resize),
        }
        return images | {"epoch": self.epoch, "seed": self.seed}

    @property
    def all_images(self) -> dict[str, int]:
        """What records of protocols that see all images say of their numbers."""
        tested = 0 if self.splits.test is None else len(self.splits.test)
        return image_counts(len(self.splits.train), len(self.splits.holdout), tested)


def crop_words(size: Size, resize: int | None) -> str:
    """Return what records say of how images are brought to the size that is evaluated."""
    if not isinstance(size, int):
        return f"cover {size_words(enlarged(size, resize))}, centre crop {size_words(size)}"
    return f"short side {resize or size}, centre crop {size}"


def image_counts(train: int, holdout: int, test: int) -> dict[str, int]:
    """Return what records say of the numbers of images."""
    return {"train_images": train, "holdout_images": holdout, "test_images": test}


def set_aside(
    train: ImageDataset, holdout: ImageDataset | None, most: int, seed: int, name: str
) -> tuple[ImageDataset, ImageDataset, str]:
    """Return the images that a protocol trains on, those that it chooses on, and in words which these are.

    Args:
        train: At most ``most`` of these, drawn with ``seed``, are taken.
        holdout: Images to choose on; None sets 10 % of those that were drawn aside.
        most: Number of images.
        seed: Of the draw.
        name: Of the protocol.

    Raises:
        UserError: Too few images to set some aside.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:most]
    words = "holdout"
    if holdout is None:
        aside = round(SPLIT_OFF * len(order))
        if not 1 <= aside < len(order):
            raise UserError(f"{name}: {len(order)} training images leave none to choose on; set data.holdout.")
        holdout, order = train.subset(order[:aside].sort().values), order[aside:]
        words = f"{SPLIT_OFF:.0%} of train ({aside} images)"
    return train.subset(order.sort().values), holdout, words


def evenly(dataset: ImageDataset, most: int) -> ImageDataset:
    """Return at most so many images, spaced evenly."""
    if len(dataset) <= most:
        return dataset
    return dataset.subset(torch.linspace(0, len(dataset) - 1, most).round().long())
