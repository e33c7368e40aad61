"""Segmentation by full fine-tuning: the whole network and a light decoder trained with masks.

The decoder is a 3×3 convolution with BatchNorm and ReLU on the last map, and a 1×1 convolution; its logits are
upsampled bilinearly to the image.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfsup.augment import ViewGenerator, ViewRecipe, fold_in
from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.data.loader import epoch_order
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder, for_channels, home_of, input_channels
from selfsup.eval.pixels import (
    IGNORED,
    by_name,
    check_counts,
    check_dense,
    confusion,
    images_a_block,
    intersection_over_union,
    last_class,
    masked_maps,
    mean_iou,
    panels,
)
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, image_counts, set_aside
from selfsup.eval.tuning import layer_groups, warm_cosine
from selfsup.ragged import Images
from selfsup.settings import setting
from selfsup.types import height_width


@dataclass
class SegmentationFineTuneSettings:
    """How network and decoder are trained.

    Attributes:
        learning_rates: Of the decoder; each is a training of its own, and one is chosen.
        layer_decay: Factor by which the learning rate falls from a layer to the one below; 1 gives all the same.
        weight_decay: Of everything but biases and the scales of normalisation layers.
        epochs: Passes over the training images.
        batch_size: Images in a step; what is left of an epoch is left out of it.
        width: Channels inside the decoder.
        images: Most training images.
        least_area: Of the random crops, as a fraction of the image.
    """

    learning_rates: list[float] = setting([1e-3], least=0)
    layer_decay: float = setting(1.0, above=0, most=1)
    weight_decay: float = setting(0.01, least=0)
    epochs: int = setting(20, least=1)
    batch_size: int = setting(16, least=2)
    width: int = setting(128, least=1)
    images: int = setting(2000, least=1)
    least_area: float = setting(0.25, above=0, most=1)


@protocol(
    "segmentation_fine_tune",
    SegmentationFineTuneSettings,
    needs=("network", "masks", "dense"),
    by_name=True,
    shown=("selected_on",),
)
def evaluate(subject: Subject, settings: SegmentationFineTuneSettings) -> Iterator[Record]:
    """Mean IoU of network and light decoder trained whole with masks, the learning rate chosen on the hold-out."""
    split, scored = subject.scored
    result = segmentation_fine_tune(
        subject.encoder, subject.splits.train, scored, settings, holdout=subject.chosen_on, seed=subject.seed
    )
    words = {"optimizer": "AdamW, warm-up over a tenth, cosine", "augment": "random resized crop, flip"}
    trained_on, chosen_on, scored_on = result.images
    how: dict[str, Any] = {"primary": True, "grid": {**asdict(settings), **words}, "selected_on": result.selected_on}
    how |= {"mask_size": scored.image_size, **image_counts(trained_on, chosen_on, scored_on * (split == "test"))}
    found = {
        "chosen": {"learning_rate": result.learning_rate},
        "settings": [{"learning_rate": r, "holdout_miou": m} for r, m in result.tried.items()],
        "per_class": by_name(result.per_class, scored),
        "pixel_accuracy": result.pixel_accuracy,
    }
    tuned = replace(subject.encoder, network=result.network)
    subject.shown["segmentation_fine_tune"] = lambda: panels(tuned, Upsampled(), scored)
    yield Record(split=split, metric="miou", value=result.miou, how=how, found=found)


class Segmenter(nn.Module):
    """A copy of a backbone under a light decoder.

    Args:
        backbone: Gives maps ``[B,D,h,w]`` by ``forward_dense``.
        channels: ``D``.
        classes: Number of classes.
        width: Channels inside the decoder.
    """

    def __init__(self, backbone: nn.Module, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.backbone: Any = copy.deepcopy(backbone)
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, classes, 1),
        )
        self.normalization = getattr(backbone, "normalization", None)
        self.in_channels = getattr(backbone, "in_channels", None)

    def forward_dense(self, images: Tensor) -> Tensor:
        """Return logits at the resolution of the map: ``[B,classes,h,w]``."""
        logits: Tensor = self.decoder(self.backbone.forward_dense(images))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of every pixel, ``[B,classes,H,W]``."""
        return F.interpolate(self.forward_dense(images), images.shape[-2:], mode="bilinear", align_corners=False)


class Upsampled:
    """Makes classes of pixels of a segmenter's logits."""

    def predict(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the class of every pixel: logits float ``[N,C,h,w]`` to int64 ``[N,*size]``."""
        blocks = torch.split(maps, images_a_block(maps.shape[1], size))
        return torch.cat([F.interpolate(b, size, mode="bilinear", align_corners=False).argmax(1) for b in blocks])


@dataclass(frozen=True)
class SegmentationFineTuneResult:
    """What fine-tuning found.

    Attributes:
        miou, per_class, pixel_accuracy: As in ``SegmentationResult``.
        learning_rate: The chosen one.
        tried: Mean IoU on the hold-out of each learning rate.
        selected_on: Images the choice was made on, in words.
        network: The chosen network, a ``Segmenter``.
        images: Number of images trained on, chosen on and scored on.
    """

    miou: float
    per_class: dict[int, float]
    pixel_accuracy: float
    learning_rate: float
    tried: dict[float, float]
    selected_on: str
    network: Segmenter
    images: tuple[int, int, int]


def segmentation_fine_tune(
    encoder: Encoder,
    train: ImageDataset,
    scored: ImageDataset,
    settings: SegmentationFineTuneSettings,
    *,
    holdout: ImageDataset | None = None,
    seed: int = 0,
) -> SegmentationFineTuneResult:
    """Train a copy of a network and a decoder with every learning rate, choose one, and score it once.

    AdamW; learning rates fall from layer to layer by ``layer_decay``, rise over a tenth of the steps and fall along a
    cosine to zero. Images are randomly cropped and flipped, and their masks with them.

    Args:
        encoder: The network, which stays as it is, and where to run it.
        train: Images with masks; at most ``settings.images``, drawn with ``seed``, are read.
        scored: Images the chosen network is scored on, at the resolution of their evaluation crop.
        settings: Of the training.
        holdout: Images the choice is made on; None sets 10 % of the training images aside, and ``selected_on`` says so.
        seed: Of the decoder's start, the images, their order and their crops.

    Raises:
        UserError: No masks, no dense features, a setting out of range, too few images, a training that diverged.
    """
    check_dense(encoder, train)
    rates = settings.learning_rates
    if not rates or min(settings.epochs, settings.batch_size - 1, settings.images) < 1:
        raise UserError(
            "eval.segmentation_fine_tune.learning_rates: give at least one value; eval.segmentation_fine_tune.epochs "
            "and images: at least 1; batch_size: at least 2."
        )
    train, holdout, selected_on = set_aside(train, holdout, settings.images, seed, "segmentation_fine_tune")
    if not len(holdout) or len(train) < settings.batch_size:
        raise UserError(
            f"eval.segmentation_fine_tune.batch_size is {settings.batch_size}, and there are {len(train)} images to "
            f"train and {len(holdout)} to choose on; lower it, or add images (data.holdout, data.limit)."
        )
    truth = train.read_masks(torch.arange(len(train)))
    assert truth is not None  # check_dense has looked
    classes = 1 + last_class(truth, train)
    inside = replace(encoder, batch_size=settings.batch_size, progress=False)
    steps = settings.epochs * (len(train) // settings.batch_size)
    tried: dict[float, float] = {}
    best: Segmenter | None = None
    with progress_bar(total=steps * len(rates), desc="fine-tuning", unit="step", disable=not encoder.progress) as bar:
        for rate in rates:
            network = built(encoder, train, classes, settings.width, seed)
            groups = layer_groups(network, rate, settings.layer_decay, settings.weight_decay)
            optimizer = torch.optim.AdamW(groups, lr=rate)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: warm_cosine(t, steps))
            for epoch in range(settings.epochs):
                crops = epoch_of(replace(inside, network=network), train, truth, settings, fold_in(seed, epoch))
                for images, masks in crops:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(network(images), masks, ignore_index=IGNORED, reduction="sum")
                    (loss / (masks != IGNORED).sum().clamp_min(1)).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
                    bar.update(1)
            matrix, chosen_on = counts(replace(inside, network=network), holdout, classes)
            tried[rate] = mean_iou(intersection_over_union(matrix))
            bar.set_postfix(holdout=f"{tried[rate]:.3f}")
            if tried[rate] == max(tried.values()):
                best = network
    assert best is not None  # there is a learning rate
    matrix, scored_on = counts(replace(inside, network=best), scored, classes)
    per_class = intersection_over_union(matrix)
    return SegmentationFineTuneResult(
        miou=mean_iou(per_class),
        per_class=per_class,
        pixel_accuracy=(matrix.diagonal().sum() / matrix.sum()).item(),
        learning_rate=max(tried, key=lambda rate: tried[rate]),
        tried=tried,
        selected_on=selected_on,
        network=best,
        images=(len(train), chosen_on, scored_on),
    )


def built(encoder: Encoder, train: ImageDataset, classes: int, width: int, seed: int) -> Segmenter:
    """Return the network to train, its decoder drawn with a seed, where the encoder runs."""
    backbone = encoder.network
    assert backbone is not None
    with replace(encoder, batch_size=1, progress=False).maps(train.subset(torch.arange(1))) as batches:
        maps, _ = next(batches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Segmenter(backbone, maps.shape[1], classes, width)
    return network.to(home_of(backbone)[0] if encoder.device is None else encoder.device)


def epoch_of(
    encoder: Encoder, train: ImageDataset, truth: Tensor, settings: SegmentationFineTuneSettings, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give crops float ``[B,C,h,w]`` of an epoch and their masks int64 ``[B,h,w]``, the network in training mode.

    Args:
        encoder: The network, and how it sees images.
        train: The images; those that cannot be decoded are left out.
        truth: uint8 ``[N,H,W]``, their masks.
        settings: Of the training.
        seed: Of the order and the crops.
    """
    network = encoder.network
    assert network is not None
    network.train()
    height, width = height_width(train.image_size)
    ratio = tuple(width / height * by for by in (3 / 4, 4 / 3))
    recipe = ViewRecipe(["flip"], scale=(settings.least_area, 1.0), ratio=ratio)
    views = ViewGenerator([recipe], [train.image_size], encoder.normalization(train))
    channels, (where, dtype) = input_channels(network, train), home_of(network)
    order = epoch_order(len(train), seed, 0)
    whole = len(order) // settings.batch_size * settings.batch_size
    for positions in torch.split(order[:whole], settings.batch_size):
        image, decoded, shape = train.read_decodable(positions)
        train.report_undecodable(positions[~decoded])
        # the part that is scored, as it is stored: `read` makes rectangles smaller
        seen = encoder.centres(Images(image.to(where), shape), train.image_size)[decoded.to(where)]
        own = positions[decoded]
        (view,) = views(for_channels(seen, channels), seed, train.index[own])
        masks = cut_masks(truth[own], view.to_source.cpu(), (height, width))
        yield view.image.to(dtype, memory_format=torch.channels_last), masks.to(where)


def cut_masks(masks: Tensor, to_source: Tensor, size: tuple[int, int]) -> Tensor:
    """Return what masks ``[B,H,W]`` hold at the pixels of views, int64 ``[B,*size]``: the nearest pixel's class.

    Args:
        masks: Of the whole images.
        to_source: ``[B,2,3]``, as of ``View``.
        size: Height and width of the views.
    """
    rows, columns = ((torch.arange(side) + 0.5) / side for side in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = torch.einsum("bij,hwj->bihw", to_source.float(), torch.stack([x, y, torch.ones_like(x)], 2))
    column = (places[:, 0] * masks.shape[2]).long().clamp(0, masks.shape[2] - 1)
    row = (places[:, 1] * masks.shape[1]).long().clamp(0, masks.shape[1] - 1)
    return masks.flatten(1).long().gather(1, (row * masks.shape[2] + column).flatten(1)).view(-1, *size)


def counts(encoder: Encoder, dataset: ImageDataset, classes: int) -> tuple[Tensor, int]:
    """Return the pixels by true and predicted class, int64 ``[C,C]``, and the number of images."""
    total, seen = torch.zeros(classes, classes, dtype=torch.long), 0
    with masked_maps(encoder, dataset) as batches:
        for logits, masks in batches:
            if not logits.isfinite().all():
                raise UserError("segmentation_fine_tune diverged; lower eval.segmentation_fine_tune.learning_rates.")
            total += confusion(Upsampled().predict(logits, (masks.shape[1], masks.shape[2])).cpu(), masks, classes)
            seen += len(masks)
    check_counts(total, dataset)
    return total, seen
