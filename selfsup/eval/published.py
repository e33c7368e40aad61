"""Linear probes as the papers ran them: fixed settings, augmented images, the backbone in evaluation mode."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfsup.augment import ViewGenerator, ViewRecipe, fold_in
from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.data.encoded import side_of_source
from selfsup.data.loader import epoch_order, eval_batches
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder, for_channels, frozen, home_of, input_channels
from selfsup.eval.feature_choices import POOLED, ChosenFeatures, is_transformer
from selfsup.eval.features import FeatureSet, check_finite, join_labels, known_labels, labels_of
from selfsup.eval.probing import ProbeParts, ProbeResult, class_positions
from selfsup.lars import Lars
from selfsup.types import Batch, Size, height_width

#: What the papers do to the images of a probe: torchvision's random resized crop, and a flip.
CROP_AND_FLIP = ViewRecipe(["flip"])
CROP_AND_FLIP_WORDS = "random resized crop (area 0.08 to 1), flip"


@dataclass(frozen=True)
class ProbeProtocol:
    """Settings of a paper.

    Attributes:
        optimizer: ``sgd`` (momentum 0.9), ``nesterov`` (the same with Nesterov's), ``lars`` (apex's LARC
            without clipping, of weight and bias) or ``adam``.
        learning_rate: For a batch of 256 where ``scaled``, else as it is.
        batch_size: Images in a step; all of them where there are fewer.
        epochs: Passes over the images.
        weight_decay: Of weight and bias.
        scaled: The learning rate is multiplied by the batch over 256.
        schedule: ``cosine`` to zero, ``steps`` (a tenth from 60 % and from 80 % of the epochs on), or ``exponential``
            to ``1e-4`` of the start.
        augment: New crops in every epoch; otherwise features of the centre crops are computed once.
        transformer_features: Features of transformers, see ``ChosenFeatures``; other networks give the pooled one.
    """

    optimizer: str
    learning_rate: float
    batch_size: int
    epochs: int
    weight_decay: float = 0.0
    scaled: bool = False
    schedule: str = "cosine"
    augment: bool = True
    transformer_features: str = POOLED


_MOCO = ProbeProtocol("sgd", 30.0, 256, 100, schedule="steps")
#: By name. ``moco`` is that of v1, v2 and DenseCL; the rate of ``moco_v3`` is the one for ResNets.
PROBE_PROTOCOLS = {
    "simclr": ProbeProtocol("nesterov", 0.1, 4096, 90, scaled=True),
    "moco": _MOCO,
    "densecl": _MOCO,
    "moco_v3": ProbeProtocol("sgd", 0.1, 1024, 90, scaled=True),
    "moco_v3_vit": ProbeProtocol("sgd", 3.0, 1024, 90, scaled=True),
    "simsiam": ProbeProtocol("lars", 0.1, 4096, 90, scaled=True),
    "swav": ProbeProtocol("sgd", 0.3, 256, 100, 1e-6),
    "barlow_twins": ProbeProtocol("sgd", 0.3, 256, 100, 1e-6),
    "vicreg": ProbeProtocol("sgd", 0.02, 256, 100, 1e-6),
    "dino": ProbeProtocol("sgd", 0.001, 1024, 100, scaled=True, transformer_features="last_4"),
    "dino_vit_base": ProbeProtocol("sgd", 0.001, 1024, 100, scaled=True, transformer_features="last_1_mean"),
    "wmse": ProbeProtocol("adam", 0.01, 1000, 500, 5e-6, schedule="exponential", augment=False),
}


def paper_probe(
    encoder: Encoder,
    train: ImageDataset,
    test: ImageDataset,
    protocol: ProbeProtocol,
    *,
    epochs: int | None = None,
    seed: int = 0,
) -> ProbeResult[None]:
    """Train one linear classifier by a paper's settings on a frozen network, and test it once.

    Nothing is chosen: the settings are the paper's and the classifier is that of the last step. Features are not
    standardised; the weight starts as N(0, 0.01²), the bias at zero. Test images, and training images that are not
    augmented, are cropped as the papers do (:func:`paper_resize`) where the encoder says nothing else.

    Args:
        encoder: A network and how to run it.
        train, test: Labelled images.
        protocol: One of ``PROBE_PROTOCOLS``, or settings of your own.
        epochs: Passes over the images; None is the paper's.
        seed: Of the start, the order and the crops.

    Raises:
        UserError: Missing labels, or features that are not finite.
    """
    start = time.perf_counter()
    epochs = protocol.epochs if epochs is None else epochs
    if epochs < 1:
        raise UserError("eval.linear_probe.paper_epochs: give at least 1, or null for the paper's.")
    network = encoder.network
    assert network is not None
    if protocol.transformer_features != POOLED and is_transformer(network):
        network = ChosenFeatures(network, [protocol.transformer_features])
    # where the network is put on the device, it stays there throughout
    resize = encoder.resize or paper_resize(train.image_size)
    inside = replace(encoder, network=network, device=None, precision="32", resize=resize)
    classes = torch.unique(labels_of(train))
    step_size = min(protocol.batch_size, len(train))
    rate = protocol.learning_rate * (step_size / 256 if protocol.scaled else 1)
    views = ViewGenerator([CROP_AND_FLIP], [train.image_size], inside.normalization(train))
    # only the classifier is differentiated
    with (
        frozen(network, encoder.device) as (where, _),
        torch.inference_mode(False),
        progress_bar(desc="linear probe, augmented", unit="step", disable=not encoder.progress) as bar,
    ):
        tested = inside.features(test)
        test_labels = known_labels(tested, "test")
        cached = None if protocol.augment else inside.features(train)
        head = linear_layer(tested.features.shape[1], len(classes), seed).to(where)
        optimizer = build_probe_optimizer(protocol, head, rate)
        count = len(train if cached is None else cached)  # features of what cannot be decoded are not there
        step, steps = 0, epochs * math.ceil(count / step_size)
        bar.reset(steps)
        for epoch in range(epochs):
            for positions in torch.split(epoch_order(count, seed, epoch), step_size):
                if cached is None:
                    part = train.subset(positions)
                    seen = encode_views(inside, part, views, fold_in(seed, epoch))
                    features, labels = seen.features, known_labels(seen, "train")
                else:
                    assert cached.labels is not None  # labels_of has looked
                    features, labels = cached.features[positions].to(where), cached.labels[positions]
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule_factor(protocol.schedule, step / steps)
                optimizer.zero_grad()
                targets = torch.searchsorted(classes, labels).to(where)
                F.cross_entropy(head(features), targets).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                bar.update(1)
    weight, bias = head.weight.detach().T, head.bias.detach()
    check_finite(weight, "weights of the linear probe")
    parts = ProbeParts(
        {"test": tested.features.to(where)},
        {"test": class_positions(test_labels, classes, "test").to(where)},
        {"test": test_labels},
        classes,
        torch.zeros(len(weight)),
        torch.ones(len(weight)),
        "nothing; every setting is fixed",
    )
    return parts.result([], None, weight, bias, start)


def linear_layer(width: int, classes: int, seed: int) -> nn.Linear:
    """Return a layer whose weight is N(0, 0.01²), drawn with ``seed``, and whose bias is zero."""
    layer = nn.Linear(width, classes)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(classes, width, generator=torch.Generator().manual_seed(seed)))
        layer.bias.zero_()
    return layer


def build_probe_optimizer(protocol: ProbeProtocol, head: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Return the optimiser of a protocol."""
    decay = protocol.weight_decay
    if protocol.optimizer == "adam":
        return torch.optim.Adam(head.parameters(), lr=rate, weight_decay=decay)
    if protocol.optimizer == "lars":
        return Lars(head.parameters(), lr=rate, weight_decay=decay, norms_apart=True, eps=1e-8)
    nesterov = protocol.optimizer == "nesterov"
    return torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9, nesterov=nesterov, weight_decay=decay)


def schedule_factor(schedule: str, fraction: float) -> float:
    """Return what the learning rate is multiplied by at a fraction of the training, from 0 to 1."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * fraction))
    if schedule == "exponential":
        return float(1e-4**fraction)
    return float(0.1 ** sum(fraction >= drop for drop in (0.6, 0.8)))


def paper_resize(image_size: Size) -> int:
    """Return the short side that the papers resize images to before they cut the centre: 256 for 224.

    Images of at most 64 pixels are not resized. Of a rectangle it is that of its shorter side.
    """
    return side_of_source(None, min(height_width(image_size)))


def augmented_views(
    batch: Batch, where: torch.device, views: ViewGenerator, seed: int, channels: int, dtype: torch.dtype
) -> Tensor:
    """Return one view of every image, for a network with this number of channels, float ``[B,C,h,w]``."""
    images = batch.image.to(where)
    images = for_channels(images, channels) if batch.size is None else for_channels(images[None], channels)[0]
    (view,) = views(images, seed, batch.index, size=batch.size)
    image: Tensor = view.image.to(dtype, memory_format=torch.channels_last)
    return image


def encode_views(encoder: Encoder, part: ImageDataset, views: ViewGenerator, seed: int) -> FeatureSet:
    """Return the features, where the network is, of one view of each image that can be decoded.

    The network is frozen and in its place already.
    """
    network = encoder.network
    assert network is not None
    where, dtype = home_of(network)
    rows, labels, index = [], [], []
    channels = input_channels(network, part)
    for batch in eval_batches(part, encoder.batch_size, encoder.workers):
        images = augmented_views(batch, where, views, seed, channels, dtype)
        with torch.no_grad():
            rows.append(network(images).float())
        labels.append(batch.label)
        index.append(batch.index)
    return FeatureSet(torch.cat(rows), join_labels(labels), torch.cat(index))
