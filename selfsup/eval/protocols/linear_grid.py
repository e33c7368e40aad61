"""DINOv2's linear evaluation: a grid of learning rates and features, all classifiers trained at once on new crops."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfsup.augment import ViewGenerator, fold_in
from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.data.loader import epoch_order
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder, frozen
from selfsup.eval.features import FeatureSet, check_finite, known_labels, labels_of, take
from selfsup.eval.probing import Tally, better, class_positions, image_probe, score, tally
from selfsup.eval.published import CROP_AND_FLIP, CROP_AND_FLIP_WORDS, encode_views, paper_resize, schedule_factor
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, crop_words, set_aside
from selfsup.eval.tokens import TokenSummaries, has_class_token, transformer_of
from selfsup.nn.backbone import Backbone
from selfsup.settings import setting

MOMENTUM = 0.9
#: Of DINOv2, for a batch of 256.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


@dataclass
class LinearGridSettings:
    """The grid and its training; the defaults are the authors'.

    Attributes:
        learning_rates: For a batch of 256; multiplied by the batch over that.
        blocks: Numbers of last blocks whose class tokens are put side by side.
        epochs: Passes over the training images. The authors' 12,500 steps are ten passes over ImageNet.
        batch_size: Images in a step, or all where there are fewer.
        augment: New random crops and flips in every epoch, as the authors; otherwise the centre crops, computed once.
    """

    learning_rates: list[float] = setting(list(RATES), least=0)
    blocks: list[int] = setting([1, 4], least=1)
    epochs: int = setting(10, least=1)
    batch_size: int = setting(1024, least=1)
    augment: bool = True


@protocol("linear_grid", LinearGridSettings, needs=("network", "labels"), by_name=True, shown=("selected_on",))
def evaluate(subject: Subject, settings: LinearGridSettings) -> Iterator[Record]:
    """Accuracy of a linear classifier by DINOv2's protocol: learning rate, blocks and mean of the patches are a grid.

    Class tokens of the last block or of the last four, each behind the final norm, with and without the mean of the
    last block's patches; SGD with momentum 0.9, no decay, cosine to zero at every step, weights from N(0, 0.01²)
    (facebookresearch/dinov2, ``eval/linear.py``). The authors choose on the images that they report; here the choice is
    made on the hold-out, and the test images are touched once.
    """
    grid = {
        "learning_rates": list(settings.learning_rates),
        "blocks": list(settings.blocks),
        "mean_of_patches": [False, True],
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "scaled": True,
        "optimizer": "SGD, momentum 0.9, cosine",
        "augment": CROP_AND_FLIP_WORDS if settings.augment else "none",
        "features": "as they are",
    }
    backbone = transformer_of(subject.network)
    encoder = subject.encoder

    def probe(train: ImageDataset, test: ImageDataset, holdout: ImageDataset | None, seed: int) -> GridResult:
        return linear_grid(encoder, backbone, train, test, settings, holdout=holdout, seed=seed)

    record = image_probe(subject, grid, probe)
    size = subject.splits.train.image_size
    crop = crop_words(size, encoder.resize or paper_resize(size))
    yield replace(record, how={**record.how, "crop": crop, "probe_protocol": "dinov2"})


@dataclass(frozen=True)
class GridSetting:
    """A learning rate and features, and what came of them on the images set aside for the choice."""

    learning_rate: float
    blocks: int
    mean_of_patches: bool
    holdout_accuracy: float
    holdout_loss: float


@dataclass(frozen=True)
class GridResult(Tally):
    """What the probe found; the fields are those of :class:`selfsup.eval.ProbeResult`, without its classifier."""

    chosen: GridSetting
    settings: list[GridSetting]
    selected_on: str
    seconds: float


class RatesTogether:
    """Linear classifiers of one feature, one a learning rate: the same start, the same batches, one product for all.

    Each is what SGD with momentum 0.9 gives for it alone on the mean cross-entropy.

    Args:
        width, classes: Of a classifier.
        rates: Learning rates, one a classifier.
        seed: Of the start, N(0, 0.01²) with zero biases.
        device: Where they are.
    """

    def __init__(self, width: int, classes: int, rates: list[float], seed: int, device: torch.device) -> None:
        start = 0.01 * torch.randn(width, classes, generator=torch.Generator().manual_seed(seed))
        self.weight = start.expand(len(rates), -1, -1).clone().to(device)
        self.bias = torch.zeros(len(rates), 1, classes, device=device)
        self.rates = torch.tensor(rates, device=device)[:, None, None]
        self._speed = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]

    def logits(self, features: Tensor) -> Tensor:
        """Return the scores of every classifier: float ``[N,D]`` to ``[G,N,C]``."""
        return features @ self.weight + self.bias

    def step(self, features: Tensor, targets: Tensor, factor: float) -> None:
        """Take a step with each rate times ``factor``: features ``[N,D]``, positions of the classes int64 ``[N]``."""
        error = self.logits(features).softmax(2)
        error[:, torch.arange(len(targets)), targets] -= 1
        error /= len(targets)
        gradients = (features.T @ error, error.sum(1, keepdim=True))
        for values, speed, gradient in zip((self.weight, self.bias), self._speed, gradients, strict=True):
            speed.mul_(MOMENTUM).add_(gradient)
            values -= factor * self.rates * speed


@torch.no_grad()
def linear_grid(
    encoder: Encoder,
    backbone: Backbone,
    train: ImageDataset,
    test: ImageDataset,
    settings: LinearGridSettings,
    *,
    holdout: ImageDataset | None = None,
    seed: int = 0,
) -> GridResult:
    """Train a classifier with every learning rate on every feature, choose one, and test it once.

    Args:
        encoder: How the network is run.
        backbone: A transformer with a class token.
        train: Labelled images.
        test: Images that the chosen classifier is tested on.
        settings: Of the grid.
        holdout: Images the choice is made on; None sets 10 % of the training images aside, and ``selected_on`` says so.
        seed: Of the images set aside, the start, the order and the crops.

    Raises:
        UserError: Missing labels, no class token, more blocks than there are, an empty grid, features that are not
            finite, or too few images to set some aside.
    """
    start = time.perf_counter()
    _check(settings, backbone)
    train, holdout, selected_on = set_aside(train, holdout, len(train), seed, "linear_grid")
    summaries = TokenSummaries(backbone, max(settings.blocks))
    resize = encoder.resize or paper_resize(train.image_size)
    # where the network is put on the device, it stays there throughout
    inside = replace(encoder, network=summaries, device=None, precision="32", resize=resize)
    classes = torch.unique(labels_of(train))
    views = ViewGenerator([CROP_AND_FLIP], [train.image_size], inside.normalization(train))
    keys = [(blocks, mean) for blocks in settings.blocks for mean in (False, True)]
    with (
        frozen(summaries, encoder.device) as (where, _),
        progress_bar(desc="linear grid", unit="step", disable=not encoder.progress) as bar,
    ):
        cached = None if settings.augment else inside.features(train)
        count = len(train if cached is None else cached)  # features of what cannot be decoded are not there
        size = min(settings.batch_size, count)
        rates = [rate * size / 256 for rate in settings.learning_rates]
        step, steps = 0, settings.epochs * math.ceil(count / size)
        bar.reset(steps)
        heads = {key: RatesTogether(backbone.dim * (key[0] + key[1]), len(classes), rates, seed, where) for key in keys}
        for epoch in range(settings.epochs):
            for positions in torch.split(epoch_order(count, seed, epoch), size):
                if cached is None:
                    seen = encode_views(inside, train.subset(positions), views, fold_in(seed, epoch))
                else:
                    seen = take(cached, positions)
                check_finite(seen.features, f"features of '{train.name}'")
                targets = torch.searchsorted(classes, known_labels(seen, "train")).to(where)
                for key, head in heads.items():
                    features = grid_feature(summaries, seen.features.to(where), *key)
                    head.step(features, targets, schedule_factor("cosine", step / steps))
                step += 1
                bar.update(1)
        held, tested = inside.features(holdout), inside.features(test)
        truth = class_positions(known_labels(held, "holdout"), classes, "holdout").to(where)
        tried, best = [], None
        for key, head in heads.items():
            logits = head.logits(grid_feature(summaries, held.features.to(where), *key))
            for place, rate in enumerate(settings.learning_rates):
                right, loss = score(logits[place], truth)
                tried.append(GridSetting(rate, *key, right.double().mean().item(), loss))
                if best is None or better(tried[-1], best[0]):
                    best = tried[-1], head, place
        assert best is not None
        chosen, head, place = best
        found = _tested(head.logits(_feature_of(summaries, tested, chosen, where))[place], tested, classes, where)
    return GridResult(
        **vars(found), chosen=chosen, settings=tried, selected_on=selected_on, seconds=time.perf_counter() - start
    )


def grid_feature(summaries: TokenSummaries, features: Tensor, blocks: int, mean: bool) -> Tensor:
    """Return a feature of the grid, float ``[N,D']``, of the output of ``summaries``: earlier blocks stand first."""
    classes, patches = summaries.split(features)
    own = classes[:, -blocks:]
    return (torch.cat([own, patches[:, -1:]], 1) if mean else own).flatten(1)


def _feature_of(summaries: TokenSummaries, part: FeatureSet, chosen: GridSetting, where: torch.device) -> Tensor:
    return grid_feature(summaries, part.features.to(where), chosen.blocks, chosen.mean_of_patches)


def _tested(logits: Tensor, tested: FeatureSet, classes: Tensor, where: torch.device) -> Tally:
    labels = known_labels(tested, "test")
    return tally(logits, class_positions(labels, classes, "test").to(where), labels, classes)


def _check(settings: LinearGridSettings, backbone: Backbone) -> None:
    """Raise a UserError unless there is a grid, and the network has what it is of."""
    depth = len(backbone.network.blocks)  # type: ignore[arg-type]
    if not settings.learning_rates or not settings.blocks:
        raise UserError("eval.linear_grid.learning_rates and eval.linear_grid.blocks: give at least one value each.")
    if max(settings.blocks) > depth:
        raise UserError(
            f"eval.linear_grid.blocks: {max(settings.blocks)} of a network with {depth} blocks; set [1,{depth}]."
        )
    if not has_class_token(backbone):
        raise UserError(
            "linear_grid: the network has no class token, which DINOv2's grid is of; run token_readouts or "
            "attentive_probe."
        )
