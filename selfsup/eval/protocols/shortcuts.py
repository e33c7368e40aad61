"""Which cue a classifier takes on frozen features when several would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.data.cues import CUES, VALUES, draw_cues, equal_cues, opposed_cues
from selfsup.data.resident import ResidentDataset
from selfsup.errors import UserError
from selfsup.eval.protocols.ridge import fit_ridge
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.shown import CueScenes
from selfsup.eval.subject import Subject
from selfsup.random import fold_in
from selfsup.settings import setting
from selfsup.types import ImageFacts, Size


@dataclass
class ShortcutsSettings:
    """How many scenes are drawn, and how they are classified.

    Attributes:
        images: Scenes of each of the three sets.
        penalty: Of the ridge regression on standardised features.
    """

    images: int = setting(960, least=96)
    penalty: float = setting(0.01, above=0.0)


@protocol("shortcuts", ShortcutsSettings, shown=("cue",))
def evaluate(subject: Subject, settings: ShortcutsSettings) -> Iterator[Record]:
    """Which of shape, colour, size and place a classifier on the features prefers when all of them tell the class.

    Scenes of one object are drawn in which every cue has four values (after WCST-ML, arXiv:2110.03095, of which only
    the abstract was at hand; there networks are trained on such scenes, here frozen features are judged). A ridge
    regression is fitted where all cues say the same, and asked where no two agree:

    - ``preference``: share of those scenes in which the answer is that of the cue. The four add to 1; ¼ is none.
    - ``recoverable``: accuracy for the cue of a ridge regression that was fitted on the other scenes without agreement,
      half of them each way: whether the features hold it at all; ¼ is chance.

    The images of the run are not looked at, but for their size and statistics. Needs three channels.
    """
    size, channels = subject.splits.train.image_size, subject.splits.train.channels
    if not isinstance(size, int):
        raise UserError(f"data.image_size is {size}; shortcuts draws squares, of one side.")
    if channels != 3:
        raise UserError(f"data.channels is {channels}; shortcuts draws colours and needs 3.")
    count = settings.images - settings.images % 48  # whole permutations in either half
    equal, opposed = equal_cues(count), opposed_cues(count)
    seeds = fold_in(subject.seed, 0), fold_in(subject.seed, 1)
    scenes = draw_cues(equal, seeds[0], size), draw_cues(opposed, seeds[1], size)
    first, second = (subject.encoder.features(_dataset(part, subject, size)).features.double() for part in scenes)
    if not (first.std(0, correction=0) > 0).any():
        raise UserError("checkpoint: the network gives all drawn scenes the same features; it has collapsed.")
    how = {"images": count, "penalty": settings.penalty, "dim": first.shape[1]}
    answer = _classify(first, equal[:, 0], second, settings.penalty)
    halves = torch.arange(count) % 48 < 24
    for place, cue in enumerate(CUES):
        truth = opposed[:, place]
        value = (answer == truth).double().mean().item()
        yield Record(split="drawn", metric="preference", value=value, unit=FRACTION, how={"cue": cue, **how})
        right = torch.empty(count, dtype=torch.bool)
        for fitted in (halves, ~halves):
            found = _classify(second[fitted], truth[fitted], second[~fitted], settings.penalty)
            right[~fitted] = found == truth[~fitted]
        value = right.double().mean().item()
        yield Record(split="drawn", metric="recoverable", value=value, unit=FRACTION, how={"cue": cue, **how})
    some = 5 * torch.arange(6)  # other permutations each
    subject.shown["shortcuts"] = lambda: CueScenes(scenes[0][:VALUES], scenes[1][some], answer[some])


def _classify(train: Tensor, labels: Tensor, asked: Tensor, penalty: float) -> Tensor:
    """Return the label of each asked row, by a ridge regression on standardised features."""
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.max().clamp_min(1e-30), std, torch.inf)  # what does not vary says nothing
    weights, biases = fit_ridge((train - mean) / std, labels, VALUES, [penalty])
    return ((asked - mean) / std @ weights[0] + biases[0]).argmax(1)


def _dataset(images: Tensor, subject: Subject, size: Size) -> ResidentDataset:
    facts = ImageFacts("cues", "drawn", 3, size, subject.splits.train.normalization)
    return ResidentDataset(images, None, facts)
