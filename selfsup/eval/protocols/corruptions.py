"""Corruptions: the accuracy that is kept when the scored images are blurred, noisy, in fog."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset, Read
from selfsup.errors import UserError
from selfsup.eval.corrupting import CORRUPTIONS, STRENGTHS, corrupt
from selfsup.eval.cropping import crop_centre
from selfsup.eval.features import FeatureSet, known_labels
from selfsup.eval.linear import linear_probe
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly
from selfsup.eval.voting import knn_grid, search_settings
from selfsup.ragged import Images, central_squares
from selfsup.settings import setting
from selfsup.types import size_words
from selfsup.unit_range import unit_range

ALL = "mean of all"


@dataclass
class CorruptionsSettings:
    """What is corrupted, and how.

    Attributes:
        names: Corruptions; None is all fifteen.
        strengths: Some of 1 to 5.
        images: Most scored images, spaced evenly; None is all. Each is seen once for every corruption and strength.
    """

    names: list[str] | None = None
    strengths: list[int] = setting(list(STRENGTHS), least=1, most=5)
    images: int | None = setting(2000, least=1)


class CorruptedDataset(ImageDataset):
    """The images of a dataset as the network sees them, corrupted.

    Args:
        dataset: The images.
        resize: Short side before the centre is cut, as of ``Encoder``, whose own has to be None then.
        corruption, strength, seed: As of ``corrupt``.
    """

    def __init__(self, dataset: ImageDataset, resize: int | None, corruption: str, strength: int, seed: int) -> None:
        self._dataset, self.resize = dataset, resize
        self.corruption, self.strength, self.seed = corruption, strength, seed
        self.facts, self.labels, self.index = dataset.facts, dataset.labels, dataset.index
        self.keys, self.targets, self.resident = dataset.keys, dataset.targets, dataset.resident

    def read(self, positions: Tensor) -> Tensor:
        return self.read_decodable(positions).image

    def read_decodable(self, positions: Tensor) -> Read:
        images, decoded, size = self._dataset.read_decodable(positions)
        how: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
        stored = central_squares(Images(images, size))
        # of 8 bits as ever; corruptions are made of these, so deeper pixels are lowered to them
        levels = stored.float() if stored.dtype == torch.uint8 else unit_range(stored) * 255
        cut = crop_centre(levels, self.image_size, self.resize, **how)
        pixels = cut.round().clamp(0, 255).to(torch.uint8)
        return Read(corrupt(pixels, self.corruption, self.strength, self.index[positions], self.seed), decoded)

    def report_undecodable(self, positions: Tensor) -> None:
        self._dataset.report_undecodable(positions)

    def subset(self, positions: Tensor) -> CorruptedDataset:
        part = self._dataset.subset(positions)
        return CorruptedDataset(part, self.resize, self.corruption, self.strength, self.seed)


@protocol(
    "corruptions", CorruptionsSettings, needs=("labels",), by_name=True, shown=("classifier", "corruption", "clean")
)
def evaluate(subject: Subject, settings: CorruptionsSettings) -> Iterator[Record]:
    """Accuracy of kNN and linear probe on corrupted images, with clean training images: mean, and of each corruption.

    The features of a corruption are computed, scored and dropped.
    """
    names = list(CORRUPTIONS) if settings.names is None else list(settings.names)
    unknown = [name for name in names if name not in CORRUPTIONS]
    if unknown or not names or not settings.strengths:
        raise UserError(
            f"eval.corruptions: {f'there is no {unknown[0]}' if unknown else 'there is nothing to do'}; names are some "
            f"of {', '.join(CORRUPTIONS)}, strengths some of 1 to 5."
        )
    split, whole = subject.scored
    if not isinstance(whole.image_size, int):
        raise UserError(
            f"eval.corruptions: data.image_size is {size_words(whole.image_size)}, and the corruptions are made for "
            "squares; leave the protocol out, or evaluate at one side."
        )
    images = whole if settings.images is None else evenly(whole, settings.images)
    encoder = replace(subject.encoder, progress=False)
    score = _scorers(subject)
    clean = score(encoder.features(images))
    resize, encoder = encoder.resize, replace(encoder, resize=None)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in clean}
    work = [(name, strength) for name in names for strength in settings.strengths]
    for name, strength in progress_bar(work, desc="corruptions", unit="set", disable=not subject.encoder.progress):
        values = score(encoder.features(CorruptedDataset(images, resize, name, strength, subject.seed)))
        for classifier, value in values.items():
            found[classifier].setdefault(name, []).append(value)
    features = subject.features
    for classifier, own in found.items():
        means = {name: sum(values) / len(values) for name, values in own.items()}
        means[ALL] = sum(means.values()) / len(means)
        for name, mean in sorted(means.items(), key=lambda item: item[0] != ALL):
            how: dict[str, Any] = {"classifier": classifier, "corruption": name, "strengths": list(settings.strengths)}
            how |= {"corrupted_images": len(images), "primary": name == ALL, **features.how}
            how |= {"corruptions": names} if name == ALL else {}
            more = {"clean": clean[classifier]}
            more |= {"kept": mean / clean[classifier]} if clean[classifier] else {}
            strengths = {"of_strengths": own[name]} if name in own else {}
            yield Record(split=split, metric="top1", value=mean, unit=FRACTION, how=how, found={**more, **strengths})


def _scorers(subject: Subject) -> Callable[[FeatureSet], dict[str, float]]:
    """Return what gives the accuracy of features by kNN and by the linear probe, both of the clean training images."""
    config, features = subject.config, subject.features
    votes, probe = config.of("knn"), config.of("linear_probe")
    held = features.holdout if features.scored[0] == "test" else None
    classifier = linear_probe(
        features.train,
        features.scored[1],
        holdout=held,
        learning_rates=probe.learning_rates,
        weight_decays=probe.weight_decays,
        epochs=probe.epochs,
        batch_size=probe.batch_size,
        seed=subject.seed,
        device=subject.encoder.device,
        progress=False,
    ).classifier

    def score(scored: FeatureSet) -> dict[str, float]:
        ks, temperatures = votes.k[:1], votes.temperatures[:1]
        (nearest,) = knn_grid(
            features.train, scored, ks, temperatures, weights=("distance",), **search_settings(config)
        )
        right = classifier.predict(scored.features) == known_labels(scored, "corrupted")
        return {"knn": nearest.accuracy, "linear_probe": right.double().mean().item()}

    return score
