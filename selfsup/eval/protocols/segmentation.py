"""Linear segmentation probe: what a frozen network's feature maps say about every pixel.

A 1×1 convolution on the standardised map gives logits at the map's resolution, which are upsampled bilinearly to the
image; cross-entropy against the mask trains it. It is scored by the mean intersection over union at the image's
resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder, home_of
from selfsup.eval.features import check_finite, in_float16
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
from selfsup.settings import setting

MOMENTUM = 0.9
LEARNING_RATES = (0.1, 1.0, 10.0)


@dataclass
class SegmentationSettings:
    """How the classifier of pixels is trained.

    Attributes:
        images: Most training images; their feature maps are kept in memory.
        learning_rates: Among which one is chosen, as SGD takes them.
        epochs: Passes over the training maps.
        batch_size: Images in a step, and in a forward pass.
    """

    images: int = setting(2000, least=1)
    learning_rates: list[float] = setting(list(LEARNING_RATES), least=0)
    epochs: int = setting(10, least=1)
    batch_size: int = setting(32, least=1)


@protocol("segmentation", SegmentationSettings, needs=("masks", "dense"), shown=("selected_on",))
def evaluate(subject: Subject, settings: SegmentationSettings) -> Iterator[Record]:
    """Mean IoU of a linear classifier of pixels on data with masks, its learning rate chosen on the hold-out.

    The choice is made on a part of the training images where the hold-out is scored because there are no test images.
    """
    split, scored = subject.scored
    result = segmentation_probe(
        subject.encoder, subject.splits.train, scored, settings, holdout=subject.chosen_on, seed=subject.seed
    )
    grid = {
        "learning_rates": list(settings.learning_rates),
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "optimizer": "SGD, Nesterov momentum 0.9, cosine",
        "features": "standardised by channel; logits upsampled bilinearly",
    }
    trained_on, chosen_on, scored_on = result.images
    how = {"primary": True, "grid": grid, "selected_on": result.selected_on, "dim": len(result.classifier.mean)}
    how |= {"map_size": list(result.map_size), "mask_size": scored.image_size}
    how |= image_counts(trained_on, chosen_on, scored_on if split == "test" else 0)
    found = {
        "chosen": asdict(result.chosen),
        "settings": [asdict(setting) for setting in result.settings],
        "per_class": by_name(result.per_class, scored),
        "pixel_accuracy": result.pixel_accuracy,
    }
    subject.shown["segmentation"] = lambda: panels(subject.encoder, result.classifier, scored)
    yield Record(split=split, metric="miou", value=result.miou, how=how, found=found)


@dataclass(frozen=True)
class PixelClassifier:
    """A linear classifier of the places of a standardised feature map.

    Attributes:
        mean, scale: float32 ``[D]``: a feature ``x`` enters as ``(x - mean) · scale``.
        weight: float32 ``[C,D]``.
        bias: float32 ``[C]``.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the scores of the classes at every pixel: float ``[N,D,h,w]`` to ``[N,C,*size]``."""
        mean, scale, weight, bias = (x.to(maps.device) for x in (self.mean, self.scale, self.weight, self.bias))
        weight = weight * scale
        bias = bias - weight @ mean
        scores = torch.einsum("cd,ndhw->nchw", weight, maps) + bias.view(-1, 1, 1)
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)

    def predict(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the class of every pixel: float ``[N,D,h,w]`` to int64 ``[N,*size]``, in blocks of bounded memory."""
        blocks = torch.split(maps, images_a_block(len(self.bias), size))
        return torch.cat([self.logits(block, size).argmax(1) for block in blocks])


@dataclass(frozen=True)
class SegmentationSetting:
    """A learning rate, and the mean IoU it reached on the images set aside for the choice."""

    learning_rate: float
    holdout_miou: float


@dataclass(frozen=True)
class SegmentationResult:
    """What the probe found.

    Attributes:
        miou: Mean over the classes present in the scored masks of the intersection over union, of the chosen setting.
        per_class: The same for each of them; 0 is the background and ``1 + c`` class ``c``.
        pixel_accuracy: Fraction of the scored pixels whose class is right.
        chosen: The setting with the highest mean IoU on the hold-out.
        settings: Every setting.
        selected_on: Images the choice was made on, in words.
        classifier: The chosen classifier, on the CPU.
        map_size: (height, width) of the feature map.
        images: Number of images trained on, chosen on and scored on.
    """

    miou: float
    per_class: dict[int, float]
    pixel_accuracy: float
    chosen: SegmentationSetting
    settings: list[SegmentationSetting]
    selected_on: str
    classifier: PixelClassifier
    map_size: tuple[int, int]
    images: tuple[int, int, int]


def segmentation_probe(
    encoder: Encoder,
    train: ImageDataset,
    scored: ImageDataset,
    settings: SegmentationSettings,
    *,
    holdout: ImageDataset | None = None,
    seed: int = 0,
) -> SegmentationResult:
    """Train a linear classifier of pixels with every learning rate, choose one, and score it once.

    The feature maps of the training images are computed once, without augmentation, and kept in float16; those of the
    other images are used and dropped batch by batch. Memory is therefore bounded by ``images`` maps and masks. Features
    are standardised with the training statistics of each channel. The classifiers start at zero and take the same
    batches; each is trained by SGD with Nesterov momentum 0.9, no weight decay and a cosine to zero.

    Args:
        encoder: A network with ``forward_dense``, or the raw pixels in [0, 1].
        train: Images to train on; at most ``settings.images`` of them, drawn with ``seed``, are read.
        scored: Images the chosen classifier is scored on, all of them, at the resolution of their evaluation crop.
        settings: Of the training.
        holdout: Images the choice is made on; None sets 10 % of the training images aside, and ``selected_on`` says so.
        seed: Choice of the images, and their order.

    Raises:
        UserError: No masks, no dense features, features that are not finite, an empty grid, too few images.
    """
    check_dense(encoder, train)
    rates = settings.learning_rates
    if not rates or min(settings.images, settings.epochs, settings.batch_size) < 1:
        raise UserError(
            "eval.segmentation.learning_rates: give at least one value; eval.segmentation.images, epochs and "
            "batch_size: at least 1."
        )
    encoder = replace(encoder, batch_size=settings.batch_size)
    train, holdout, selected_on = set_aside(train, holdout, settings.images, seed, "segmentation")

    kept_maps, kept_masks = [], []
    with masked_maps(encoder, train) as batches:
        for some, masks_of_them in batches:
            check_finite(some.flatten(1), f"feature maps of '{train.name}'")
            kept_maps.append(in_float16(some))
            kept_masks.append(masks_of_them)
    maps, masks = torch.cat(kept_maps), torch.cat(kept_masks)
    kept_maps.clear()
    trained_on, classes = len(maps), 1 + last_class(masks, train)
    where = torch.device(encoder.device) if encoder.device is not None else home_of(encoder.network)[0]
    classifiers = train_pixel_classifiers(maps, masks, classes, settings, seed, where, encoder.progress)
    map_size = (maps.shape[2], maps.shape[3])
    del maps, masks

    def counts(dataset: ImageDataset, several: Sequence[PixelClassifier]) -> tuple[Tensor, int]:
        total = torch.zeros(len(several), classes, classes, dtype=torch.long)
        seen = 0
        with masked_maps(encoder, dataset) as batches:
            for maps, masks in batches:
                for place, classifier in enumerate(several):
                    predicted = classifier.predict(maps, (masks.shape[1], masks.shape[2])).cpu()
                    total[place] += confusion(predicted, masks, classes)
                seen += len(masks)
        check_counts(total[0], dataset)
        return total, seen

    held, chosen_on = counts(holdout, classifiers)
    tried = [
        SegmentationSetting(rate, mean_iou(intersection_over_union(matrix)))
        for rate, matrix in zip(rates, held, strict=True)
    ]
    best = max(range(len(tried)), key=lambda i: tried[i].holdout_miou)
    (matrix,), scored_on = counts(scored, [classifiers[best]])
    per_class = intersection_over_union(matrix)
    return SegmentationResult(
        miou=mean_iou(per_class),
        per_class=per_class,
        pixel_accuracy=(matrix.diagonal().sum() / matrix.sum()).item(),
        chosen=tried[best],
        settings=tried,
        selected_on=selected_on,
        classifier=PixelClassifier(*(x.cpu() for x in vars(classifiers[best]).values())),
        map_size=map_size,
        images=(trained_on, chosen_on, scored_on),
    )


def train_pixel_classifiers(
    maps: Tensor,
    masks: Tensor,
    classes: int,
    settings: SegmentationSettings,
    seed: int,
    device: torch.device | None = None,
    progress: bool = False,
) -> list[PixelClassifier]:
    """Train one classifier for each learning rate on the same batches, see ``segmentation_probe``.

    Args:
        maps: float ``[N,D,h,w]``.
        masks: uint8 ``[N,H,W]``, values below ``classes`` or ``IGNORED``.
    """
    rates = settings.learning_rates
    mean, scale = (x.to(device) for x in standardiser(maps))
    heads = [maps.new_zeros(classes, maps.shape[1] + 1, dtype=torch.float32, device=device) for _ in rates]
    for head in heads:
        head.requires_grad_()
    optimizer = torch.optim.SGD(
        [{"params": [head], "lr": rate} for head, rate in zip(heads, rates, strict=True)],
        momentum=MOMENTUM,
        nesterov=True,
    )
    steps = settings.epochs * math.ceil(len(maps) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)))
    size = (masks.shape[1], masks.shape[2])
    generator = torch.Generator().manual_seed(seed)
    with progress_bar(
        total=steps, desc=f"segmentation, {len(heads)} settings", unit="step", disable=not progress
    ) as bar:
        for _ in range(settings.epochs):
            for positions in torch.split(torch.randperm(len(maps), generator=generator), settings.batch_size):
                optimizer.zero_grad()
                counted = max(1, int((masks[positions] != IGNORED).sum()))
                for block in torch.split(positions, images_a_block(classes, size)):
                    features = (maps[block].to(device).float() - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)
                    truth = masks[block].to(device).long()
                    for head in heads:  # one after the other: the upsampled logits are what takes memory
                        scores = torch.einsum("cd,ndhw->nchw", head[:, :-1], features) + head[:, -1].view(-1, 1, 1)
                        logits = F.interpolate(scores, size, mode="bilinear", align_corners=False)
                        loss = F.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="sum") / counted
                        loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.update(1)
    return [PixelClassifier(mean, scale, head.detach()[:, :-1], head.detach()[:, -1]) for head in heads]


def standardiser(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and inverse standard deviation of each channel; a constant channel gets the scale 0."""
    total = torch.zeros(2, maps.shape[1], dtype=torch.float64)
    for block in torch.split(maps, 64):
        values = block.double()
        total += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    mean, square = total / (len(maps) * maps.shape[2] * maps.shape[3])
    std = (square - mean.square()).clamp_min(0).sqrt()
    used = std > 1e-6 * std.max()
    scale = torch.where(used, 1 / std.where(used, torch.ones_like(std)), torch.zeros_like(std))
    return mean.float(), scale.float()
