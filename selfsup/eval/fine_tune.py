"""Full fine-tuning: the whole network trained with labels, lower layers more slowly."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from selfsup.augment import ViewGenerator, fold_in
from selfsup.data.base import ImageDataset
from selfsup.data.loader import epoch_order, eval_batches
from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet, extract_features, frozen, input_channels, prepare_images
from selfsup.eval.linear_probe import SPLIT_OFF, ProbeParts, better, class_positions
from selfsup.eval.paper_probe import CROP_AND_FLIP, augmented_views, labels_of, linear_layer

WARM_UP = 0.1  # share of the steps over which the learning rate rises


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
    backbone: nn.Module,
    train: ImageDataset,
    test: ImageDataset,
    *,
    holdout: ImageDataset | None = None,
    learning_rates: Sequence[float] = (1e-3,),
    layer_decay: float = 0.75,
    weight_decay: float = 0.05,
    epochs: int = 30,
    batch_size: int = 128,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> FineTuneResult:
    """Train a copy of a network and a linear classifier, choose learning rate and epoch, and test once.

    AdamW; the learning rate of a layer is ``layer_decay`` times that of the layer above it (Clark et al.,
    arXiv:2003.10555; BEiT), rises linearly over the first tenth of the steps and falls along a cosine to zero. Images
    are randomly cropped and flipped. The hold-out is looked at after every epoch.

    Args:
        backbone: Maps float ``[B,C,H,W]`` to ``[B,D]``; it stays as it is.
        train, test: Labelled images.
        holdout: Images the choice is made on; None sets 10 % of ``train`` aside, and ``selected_on`` says so.
        learning_rates: Of the classifier; each is a training of its own.
        layer_decay: 1 gives every layer the same learning rate.
        weight_decay: Of everything but biases and the scales of normalisation layers.
        epochs: Passes over the training images.
        batch_size: Images in a step; a last batch of a single image is left out, as BatchNorm has nothing to say of it.
        seed: Of the classifier's start, the order, the crops and the split.
        workers, device, progress: As ``extract_features``; ``device`` None is where the backbone is.

    Raises:
        UserError: Missing labels, a setting out of range, too few images, or a training that diverged.
    """
    start = time.perf_counter()
    if not learning_rates or min(epochs, batch_size - 1) < 1 or not 0 < layer_decay <= 1:
        raise UserError(
            "eval.fine_tune_learning_rates: give at least one value; eval.fine_tune_epochs: at least 1; "
            "eval.fine_tune_batch_size: at least 2; eval.fine_tune_layer_decay: above 0, at most 1."
        )
    if holdout is None:
        count = round(SPLIT_OFF * len(train))
        if count < 1:
            raise UserError(f"fine_tune: {len(train)} training images leave none to choose on; set data.holdout.")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        holdout, train = train.subset(order[:count].sort().values), train.subset(order[count:].sort().values)
        selected_on = f"{SPLIT_OFF:.0%} of train ({count} images)"
    else:
        selected_on = "holdout"
    classes = torch.unique(labels_of(train))
    labels_of(holdout), labels_of(test)
    if len(train) < 2:
        raise UserError("fine_tune: there is a single training image; raise data.limit or eval.label_fraction.")

    def logits_of(network: nn.Module, dataset: ImageDataset) -> FeatureSet:
        return extract_features(network, dataset, batch_size=batch_size, workers=workers, progress=False)

    def parts_of(found: FeatureSet, name: str) -> ProbeParts:
        assert found.labels is not None
        targets = class_positions(found.labels, classes, name)
        unit = torch.ones(len(classes))
        return ProbeParts(
            {name: found.features}, {name: targets}, {name: found.labels}, classes, 0 * unit, unit, selected_on
        )

    identity, zero = torch.eye(len(classes)), torch.zeros(len(classes))
    width = _width(backbone, train, device)
    settings: list[FineTuneSetting] = []
    best: tuple[FineTuneSetting, Classifier] | None = None
    steps = epochs * len(_batches(len(train), batch_size))
    with tqdm(total=steps * len(learning_rates), desc="fine-tuning", unit="step", disable=not progress) as bar:
        for rate in learning_rates:
            network = Classifier(backbone, width, len(classes), seed)
            if device is not None:
                network.to(device)
            optimizer = torch.optim.AdamW(layer_groups(network, rate, layer_decay, weight_decay), lr=rate)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: _factor(t, steps))
            for epoch in range(epochs):
                _train_epoch(network, train, classes, optimizer, schedule, epoch, batch_size, seed, workers, bar)
                scored = parts_of(logits_of(network, holdout), "holdout").on_holdout(identity, zero)
                setting = FineTuneSetting(rate, epoch + 1, *scored)
                settings.append(setting)
                bar.set_postfix(holdout=f"{setting.holdout_accuracy:.3f}")
                if best is None or better(setting, best[0]):
                    best = setting, copy.deepcopy(network).cpu()
    assert best is not None  # there is a learning rate and an epoch
    chosen, network = best
    if device is not None:
        network.to(device)
    result = parts_of(logits_of(network, test), "test").result(settings, chosen, identity, zero, start)
    return FineTuneResult(
        accuracy=result.accuracy,
        chosen=chosen,
        settings=settings,
        selected_on=selected_on,
        per_class=result.per_class,
        labels=result.labels,
        confusion=result.confusion,
        network=network.cpu(),
        classes=classes,
        seconds=time.perf_counter() - start,
    )


def layer_depths(network: nn.Module) -> dict[str, int]:
    """Number the layers of a network from the images on: the layer of each parameter, from 0, by the parameter's name.

    timm networks say what their layers are (a block is one). Elsewhere a weight begins a layer, and the biases and
    scales that follow belong to it.
    """
    matcher: Any = getattr(network, "group_matcher", None)
    if matcher is not None:
        named = dict(group_parameters(network, matcher(coarse=False), reverse=True))
        rank = {layer: place for place, layer in enumerate(sorted(set(named.values())))}
        return {name: rank[named[name]] for name, _ in network.named_parameters()}
    depth, found = -1, {}
    for name, parameter in network.named_parameters():
        depth += parameter.ndim > 1 or depth < 0
        found[name] = depth
    return found


def layer_groups(
    network: Classifier, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimiser: ``learning_rate · layer_decay^(L - l)`` for layer ``l`` of ``L``.

    The classifier has the learning rate itself; the layer below it is ``L - 1``.
    """
    inner: nn.Module = getattr(network.backbone, "network", network.backbone)
    depths = layer_depths(inner)
    layers = 1 + max(depths.values(), default=-1)
    inside = {id(parameter): depths[name] for name, parameter in inner.named_parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            groups.setdefault((inside.get(id(parameter), layers), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (layers - layer),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (layer, decayed), parameters in groups.items()
    ]


def _train_epoch(
    network: Classifier,
    train: ImageDataset,
    classes: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
    batch_size: int,
    seed: int,
    workers: int,
    bar: Any,
) -> None:
    first = network.head.weight
    views = ViewGenerator([CROP_AND_FLIP], [train.image_size], network.normalization or train.normalization)
    channels = input_channels(network, train)
    network.train()
    order = epoch_order(len(train), seed, epoch)
    kept = order[: sum(_batches(len(train), batch_size))]
    for batch in eval_batches(train.subset(kept), batch_size, workers):
        assert batch.label is not None  # labels_of has looked
        images = augmented_views(
            batch.image.to(first.device), batch.index, views, fold_in(seed, epoch), channels, first.dtype
        )
        targets = torch.searchsorted(classes, batch.label).to(first.device)
        optimizer.zero_grad()
        F.cross_entropy(network(images), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        bar.update(1)


def _batches(count: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of an epoch, without a last one of a single image."""
    sizes = [min(batch_size, count - begin) for begin in range(0, count, batch_size)]
    return sizes[:-1] if sizes[-1] == 1 else sizes


def _factor(step: int, steps: int) -> float:
    warm = max(1, round(WARM_UP * steps))
    return min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _width(backbone: nn.Module, dataset: ImageDataset, device: torch.device | str | None) -> int:
    normalization = getattr(backbone, "normalization", None) or dataset.normalization
    with frozen(backbone, device) as (where, dtype):
        image = dataset.read_decodable(torch.arange(1))[0].to(where)
        prepared = prepare_images(image, dataset.image_size, input_channels(backbone, dataset), normalization)
        return int(backbone(prepared.to(dtype)).shape[1])
