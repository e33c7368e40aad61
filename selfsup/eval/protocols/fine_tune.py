"""Full fine-tuning: the whole network trained with labels, lower layers more slowly."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfsup.augment import ViewGenerator, fold_in
from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.data.loader import epoch_order, eval_batches
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder, frozen, home_of, input_channels
from selfsup.eval.features import FeatureSet, labels_of
from selfsup.eval.probing import ProbeParts, better, class_positions, image_probe
from selfsup.eval.published import CROP_AND_FLIP, CROP_AND_FLIP_WORDS, augmented_views, linear_layer
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, set_aside
from selfsup.eval.tuning import layer_groups, warm_cosine
from selfsup.ragged import Images
from selfsup.settings import setting


@dataclass
class FineTuneSettings:
    """How the network is fine-tuned.

    Attributes:
        learning_rates: Of the classifier; each is a training of its own.
        layer_decay: Factor by which the learning rate falls from a layer to the one below; 1 gives all the same.
        weight_decay: Of everything but biases and the scales of normalisation layers.
        epochs: Passes over the training images.
        batch_size: Images in a step; a last batch of a single image is left out, as BatchNorm has nothing to say of it.
    """

    learning_rates: list[float] = setting([1e-3], least=0)
    layer_decay: float = setting(0.75, above=0, most=1)
    weight_decay: float = setting(0.05, least=0)
    epochs: int = setting(30, least=1)
    batch_size: int = setting(128, least=2)


@protocol("fine_tune", FineTuneSettings, needs=("network", "labels"), by_name=True, shown=("selected_on",))
def evaluate(subject: Subject, settings: FineTuneSettings) -> Iterator[Record]:
    """Accuracy of the whole network trained with labels, learning rate and epoch chosen on the hold-out."""
    grid = {
        "learning_rates": list(settings.learning_rates),
        "layer_decay": settings.layer_decay,
        "weight_decay": settings.weight_decay,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "optimizer": "AdamW, warm-up over a tenth, cosine",
        "augment": CROP_AND_FLIP_WORDS,
    }

    def probe(train: ImageDataset, test: ImageDataset, holdout: ImageDataset | None, seed: int) -> FineTuneResult:
        return fine_tune(subject.encoder, train, test, settings, holdout=holdout, seed=seed)

    yield image_probe(subject, grid, probe)


@dataclass(frozen=True)
class FineTuneSetting:
    """A learning rate and a number of epochs, and what came of them on the images set aside for the choice."""

    learning_rate: float
    epochs: int
    holdout_accuracy: float
    holdout_loss: float


@dataclass(frozen=True)
class FineTuneResult:
    """What fine-tuning found.

    Attributes:
        accuracy: Fraction of the test images whose class is right, of the chosen learning rate and epoch.
        chosen: The epoch of all trainings with the highest accuracy on the hold-out (then the lowest loss there).
        settings: Every epoch of every learning rate.
        selected_on: Images the choice was made on, in words.
        per_class, labels, confusion: As in ``ProbeResult``.
        network: The chosen network with its classifier, on the CPU: images as the backbone takes them to ``[B,C]``.
        classes: int64 ``[C]``, the label of each output.
        seconds: Time taken.
    """

    accuracy: float
    chosen: FineTuneSetting
    settings: list[FineTuneSetting]
    selected_on: str
    per_class: dict[int, float]
    labels: Tensor
    confusion: Tensor
    network: nn.Module
    classes: Tensor
    seconds: float


class Classifier(nn.Module):
    """A backbone under a linear layer; the rest of the evaluator takes it for a backbone."""

    def __init__(self, backbone: nn.Module, width: int, classes: int, seed: int) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.head = linear_layer(width, classes, seed)
        self.normalization = getattr(backbone, "normalization", None)
        self.in_channels = getattr(backbone, "in_channels", None)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B,C]``."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def fine_tune(
    encoder: Encoder,
    train: ImageDataset,
    test: ImageDataset,
    settings: FineTuneSettings,
    *,
    holdout: ImageDataset | None = None,
    seed: int = 0,
) -> FineTuneResult:
    """Train a copy of a network and a linear classifier, choose learning rate and epoch, and test once.

    AdamW; the learning rate of a layer is ``layer_decay`` times that of the layer above it (Clark et al.,
    arXiv:2003.10555; BEiT), rises linearly over the first tenth of the steps and falls along a cosine to zero. Images
    are randomly cropped and flipped. The hold-out is looked at after every epoch.

    Args:
        encoder: The network, which stays as it is, and where to run it.
        train, test: Labelled images.
        settings: Of the training.
        holdout: Images the choice is made on; None sets 10 % of ``train`` aside, and ``selected_on`` says so.
        seed: Of the classifier's start, the order, the crops and the split.

    Raises:
        UserError: Missing labels, a setting out of range, too few images, or a training that diverged.
    """
    start = time.perf_counter()
    rates, epochs = settings.learning_rates, settings.epochs
    if not rates or min(epochs, settings.batch_size - 1) < 1 or not 0 < settings.layer_decay <= 1:
        raise UserError(
            "eval.fine_tune.learning_rates: give at least one value; eval.fine_tune.epochs: at least 1; "
            "eval.fine_tune.batch_size: at least 2; eval.fine_tune.layer_decay: above 0, at most 1."
        )
    train, holdout, selected_on = set_aside(train, holdout, len(train), seed, "fine_tune")
    classes = torch.unique(labels_of(train))
    labels_of(holdout), labels_of(test)
    if len(train) < 2:
        raise UserError("fine_tune: there is a single training image; raise data.limit or eval.label_fraction.")

    inside = replace(encoder, device=None, precision="32", batch_size=settings.batch_size, progress=False)

    def logits_of(network: nn.Module, dataset: ImageDataset) -> FeatureSet:
        return replace(inside, network=network).features(dataset)

    def parts_of(found: FeatureSet, name: str) -> ProbeParts:
        assert found.labels is not None
        targets = class_positions(found.labels, classes, name)
        unit = torch.ones(len(classes))
        return ProbeParts(
            {name: found.features}, {name: targets}, {name: found.labels}, classes, 0 * unit, unit, selected_on
        )

    identity, zero = torch.eye(len(classes)), torch.zeros(len(classes))
    backbone, device = encoder.network, encoder.device
    assert backbone is not None
    width = _width(encoder, train)
    tried: list[FineTuneSetting] = []
    best: tuple[FineTuneSetting, Classifier] | None = None
    steps = epochs * len(_batches(len(train), settings.batch_size))
    with progress_bar(total=steps * len(rates), desc="fine-tuning", unit="step", disable=not encoder.progress) as bar:
        for rate in rates:
            network = Classifier(backbone, width, len(classes), seed)
            if device is not None:
                network.to(device)
            optimizer = torch.optim.AdamW(
                layer_groups(network, rate, settings.layer_decay, settings.weight_decay), lr=rate
            )
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: warm_cosine(t, steps))
            for epoch in range(epochs):
                for images, targets in _epoch(replace(inside, network=network), train, classes, seed, epoch):
                    optimizer.zero_grad()
                    F.cross_entropy(network(images), targets).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
                    bar.update(1)
                scored = parts_of(logits_of(network, holdout), "holdout").on_holdout(identity, zero)
                setting = FineTuneSetting(rate, epoch + 1, *scored)
                tried.append(setting)
                bar.set_postfix(holdout=f"{setting.holdout_accuracy:.3f}")
                if best is None or better(setting, best[0]):
                    best = setting, copy.deepcopy(network).cpu()
    assert best is not None  # there is a learning rate and an epoch
    chosen, network = best
    if device is not None:
        network.to(device)
    result = parts_of(logits_of(network, test), "test").result(tried, chosen, identity, zero, start)
    return FineTuneResult(
        accuracy=result.accuracy,
        chosen=chosen,
        settings=tried,
        selected_on=selected_on,
        per_class=result.per_class,
        labels=result.labels,
        confusion=result.confusion,
        network=network.cpu(),
        classes=classes,
        seconds=time.perf_counter() - start,
    )


def _epoch(
    encoder: Encoder, train: ImageDataset, classes: Tensor, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the augmented images and targets of one epoch, with the network in training mode."""
    network = encoder.network
    assert network is not None
    network.train()
    views = ViewGenerator([CROP_AND_FLIP], [train.image_size], encoder.normalization(train))
    channels = input_channels(network, train)
    where, dtype = home_of(network)
    kept = epoch_order(len(train), seed, epoch)[: sum(_batches(len(train), encoder.batch_size))]
    for batch in eval_batches(train.subset(kept), encoder.batch_size, encoder.workers):
        assert batch.label is not None  # labels_of has looked
        images = augmented_views(batch, where, views, fold_in(seed, epoch), channels, dtype)
        yield images, torch.searchsorted(classes, batch.label).to(where)


def _batches(count: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of an epoch, without a last one of a single image."""
    sizes = [min(batch_size, count - begin) for begin in range(0, count, batch_size)]
    return sizes[:-1] if sizes[-1] == 1 else sizes


def _width(encoder: Encoder, dataset: ImageDataset) -> int:
    assert encoder.network is not None
    with frozen(encoder.network, encoder.device) as (where, dtype):
        image, _, shape = dataset.read_decodable(torch.arange(1))
        stored = encoder.centres(Images(image.to(where), shape), dataset.image_size)
        channels = input_channels(encoder.network, dataset)
        prepared = encoder.prepared(stored, dataset.image_size, channels, encoder.normalization(dataset))
        return int(encoder.network(prepared.to(dtype)).shape[1])
