"""Segmentation probes: what a frozen network's feature maps say about every pixel.

The linear one: a 1×1 convolution on the standardised map gives logits at the map's resolution, which are upsampled
bilinearly to the image; cross-entropy against the mask trains it. The one by neighbours learns nothing: a cell of the
map takes the classes of the training cells most like it. Both are scored by the mean intersection over union at the
image's resolution, and both leave out pixels whose mask holds ``IGNORED``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from selfsup.data.base import ImageDataset
from selfsup.data.loader import eval_batches
from selfsup.errors import UserError
from selfsup.eval.config import SEGMENTATION_RATES
from selfsup.eval.features import check_finite, frozen, input_channels, prepare_images
from selfsup.eval.neighbours import search

IGNORED = 255  # in a mask: no class is said of this pixel, as on the outlines of PASCAL VOC
MOMENTUM = 0.9
SPLIT_OFF = 0.1
LOGITS = 2**24  # numbers in a block of upsampled logits: 64 MB
VOTES = 2**22  # cells whose neighbours' classes are gathered at a time, times neighbours, times classes


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
        blocks = torch.split(maps, _images_a_block(len(self.bias), size))
        return torch.cat([self.logits(block, size).argmax(1) for block in blocks])


@dataclass(frozen=True)
class CellBank:
    """Cells of training maps and what is in them: the neighbours a query cell takes its classes from.

    Attributes:
        features: float32 ``[M,D]`` on the CPU.
        classes: float32 ``[M,C]``: which share of the cell's pixels is of which class; each row sums to 1.
        k: Number of neighbours, at most ``M``.
        temperature: Of the softmax over their cosine similarities.
    """

    features: Tensor
    classes: Tensor
    k: int
    temperature: float

    def probabilities(self, maps: Tensor) -> Tensor:
        """Return the weighted mean of the neighbours' classes: float ``[N,D,h,w]`` to float32 ``[N,C,h,w]``, CPU.

        ``p(q) = Σ_i softmax_i(cos(q, b_i) / T) · y_i`` over the ``k`` cells ``b_i`` most similar to ``q`` (Balažević
        et al. 2023, "Towards In-Context Scene Understanding").
        """
        count, width, height, length = maps.shape
        queries = maps.permute(0, 2, 3, 1).reshape(-1, width).float().cpu()
        similarity, near = search(self.features, queries, self.k)
        weights = (similarity / self.temperature).softmax(1)
        rows = max(1, VOTES // (self.k * self.classes.shape[1]))
        votes = torch.cat(
            [
                torch.einsum("qk,qkc->qc", some, self.classes[positions])
                for some, positions in zip(torch.split(weights, rows), torch.split(near, rows), strict=True)
            ]
        )
        return votes.view(count, height, length, -1).permute(0, 3, 1, 2)

    def predict(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the class of every pixel: float ``[N,D,h,w]`` to int64 ``[N,*size]``, upsampled bilinearly."""
        blocks = torch.split(self.probabilities(maps), _images_a_block(self.classes.shape[1], size))
        return torch.cat([F.interpolate(b, size, mode="bilinear", align_corners=False).argmax(1) for b in blocks])


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
        seconds: Time taken.
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
    seconds: float


@dataclass(frozen=True)
class SegmentationKnnResult:
    """What the neighbours' vote found.

    Attributes:
        miou, per_class, pixel_accuracy: As in ``SegmentationResult``.
        bank: The training cells, their classes, the number of neighbours that voted and the temperature.
        map_size: (height, width) of the feature map.
        images: Number of images the bank is drawn from and scored on.
        seconds: Time taken.
    """

    miou: float
    per_class: dict[int, float]
    pixel_accuracy: float
    bank: CellBank
    map_size: tuple[int, int]
    images: tuple[int, int]
    seconds: float


def segmentation_obstacle(backbone: nn.Module | None, dataset: ImageDataset) -> str | None:
    """Return in words why segmentation cannot be probed, or None when it can."""
    if dataset.read_masks(torch.arange(0)) is None:
        return f"'{dataset.name}' has no masks"
    if backbone is not None and not hasattr(backbone, "forward_dense"):
        return "the backbone has no forward_dense"
    return None


def segmentation_probe(
    backbone: nn.Module | None,
    train: ImageDataset,
    scored: ImageDataset,
    *,
    holdout: ImageDataset | None = None,
    images: int = 2000,
    learning_rates: Sequence[float] = SEGMENTATION_RATES,
    epochs: int = 10,
    batch_size: int = 32,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> SegmentationResult:
    """Train a linear classifier of pixels with every learning rate, choose one, and score it once.

    The feature maps of the training images are computed once, without augmentation, and kept in float16; those of the
    other images are used and dropped batch by batch. Memory is therefore bounded by ``images`` maps and masks. Features
    are standardised with the training statistics of each channel. The classifiers start at zero and take the same
    batches; each is trained by SGD with Nesterov momentum 0.9, no weight decay and a cosine to zero.

    Args:
        backbone: A network with ``forward_dense``, or None for the raw pixels in [0, 1].
        train: Images to train on; at most ``images`` of them, drawn with ``seed``, are read.
        scored: Images the chosen classifier is scored on, all of them, at the resolution of their evaluation crop.
        holdout: Images the choice is made on; None sets 10 % of the training images aside, and ``selected_on`` says so.
        images: Most training images.
        learning_rates: As SGD takes them.
        epochs: Passes over the training maps.
        batch_size: Images in a step, and in a forward pass.
        seed: Choice of the images, and their order.
        workers, device, progress: As ``extract_features``.

    Raises:
        UserError: No masks, no dense features, features that are not finite, an empty grid, too few images.
    """
    start = time.perf_counter()
    _check_possible(backbone, train)
    if not learning_rates or min(images, epochs, batch_size) < 1:
        raise UserError(
            "eval.segmentation_learning_rates: give at least one value; segmentation_images, segmentation_epochs and "
            "segmentation_batch_size: at least 1."
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:images]
    if holdout is None:
        aside = round(SPLIT_OFF * len(order))
        if not 1 <= aside < len(order):
            raise UserError(f"segmentation: {len(order)} training images leave none to choose on; set data.holdout.")
        holdout, order = train.subset(order[:aside].sort().values), order[aside:]
        selected_on = f"{SPLIT_OFF:.0%} of train ({aside} images)"
    else:
        selected_on = "holdout"
    train = train.subset(order.sort().values)

    kept_maps, kept_masks = [], []

    def keep(maps: Tensor, masks: Tensor) -> None:
        check_finite(maps.flatten(1), f"feature maps of '{train.name}'")
        largest = torch.finfo(torch.float16).max
        kept_maps.append(maps.clamp(-largest, largest).to("cpu", torch.float16))
        kept_masks.append(masks)

    def visit(dataset: ImageDataset, consume: Callable[[Tensor, Tensor], None]) -> int:
        return _visit(backbone, dataset, consume, batch_size, workers, device, progress)

    trained_on = visit(train, keep)
    maps, masks = torch.cat(kept_maps), torch.cat(kept_masks)
    kept_maps.clear()
    classes = 1 + _last_class(masks, train)
    where = torch.device(device) if device is not None else _home(backbone)
    classifiers = train_pixel_classifiers(
        maps, masks, classes, learning_rates, epochs, batch_size, seed, where, progress
    )
    map_size = (maps.shape[2], maps.shape[3])
    del maps, masks

    def counts(dataset: ImageDataset, several: Sequence[PixelClassifier]) -> tuple[Tensor, int]:
        total = torch.zeros(len(several), classes, classes, dtype=torch.long)

        def add(maps: Tensor, masks: Tensor) -> None:
            for place, classifier in enumerate(several):
                predicted = classifier.predict(maps, (masks.shape[1], masks.shape[2])).cpu()
                total[place] += confusion(predicted, masks, classes)

        seen = visit(dataset, add)
        _check_counts(total[0], dataset)
        return total, seen

    held, chosen_on = counts(holdout, classifiers)
    settings = [
        SegmentationSetting(rate, _mean(intersection_over_union(matrix)))
        for rate, matrix in zip(learning_rates, held, strict=True)
    ]
    best = max(range(len(settings)), key=lambda i: settings[i].holdout_miou)
    (matrix,), scored_on = counts(scored, [classifiers[best]])
    per_class = intersection_over_union(matrix)
    return SegmentationResult(
        miou=_mean(per_class),
        per_class=per_class,
        pixel_accuracy=(matrix.diagonal().sum() / matrix.sum()).item(),
        chosen=settings[best],
        settings=settings,
        selected_on=selected_on,
        classifier=PixelClassifier(*(x.cpu() for x in vars(classifiers[best]).values())),
        map_size=map_size,
        images=(trained_on, chosen_on, scored_on),
        seconds=time.perf_counter() - start,
    )


def train_pixel_classifiers(
    maps: Tensor,
    masks: Tensor,
    classes: int,
    learning_rates: Sequence[float],
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device | None = None,
    progress: bool = False,
) -> list[PixelClassifier]:
    """Train one classifier for each learning rate on the same batches, see ``segmentation_probe``.

    Args:
        maps: float ``[N,D,h,w]``.
        masks: uint8 ``[N,H,W]``, values below ``classes`` or ``IGNORED``.
    """
    mean, scale = (x.to(device) for x in _standardiser(maps))
    heads = [maps.new_zeros(classes, maps.shape[1] + 1, dtype=torch.float32, device=device) for _ in learning_rates]
    for head in heads:
        head.requires_grad_()
    optimizer = torch.optim.SGD(
        [{"params": [head], "lr": rate} for head, rate in zip(heads, learning_rates, strict=True)],
        momentum=MOMENTUM,
        nesterov=True,
    )
    steps = epochs * math.ceil(len(maps) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)))
    size = (masks.shape[1], masks.shape[2])
    generator = torch.Generator().manual_seed(seed)
    with tqdm(total=steps, desc=f"segmentation, {len(heads)} settings", unit="step", disable=not progress) as bar:
        for _ in range(epochs):
            for positions in torch.split(torch.randperm(len(maps), generator=generator), batch_size):
                optimizer.zero_grad()
                counted = max(1, int((masks[positions] != IGNORED).sum()))
                for block in torch.split(positions, _images_a_block(classes, size)):
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


def segmentation_knn(
    backbone: nn.Module,
    train: ImageDataset,
    scored: ImageDataset,
    *,
    k: int = 30,
    temperature: float = 0.02,
    images: int = 2000,
    cells: int = 20_000,
    batch_size: int = 32,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> SegmentationKnnResult:
    """Segment images by the training cells that are most like their own, and score the result once.

    A bank is drawn from the feature maps of the training images: the same number of cells of each, as many as make at
    most ``cells``; those without a single pixel of known class are left out. Every cell of a scored image gets the
    classes of its ``k`` neighbours in the bank (see ``CellBank``), which are upsampled bilinearly to the image. Nothing
    is trained and nothing is chosen. Memory holds the bank, ``cells`` × (width of the maps + classes), beside the maps
    and the neighbours of a batch.

    Args:
        backbone: A network with ``forward_dense``.
        train: Images with masks that the bank is drawn from; at most ``images`` of them, drawn with ``seed``, are read.
        scored: Images to score, all of them, at the resolution of their evaluation crop.
        k: Number of neighbours; a smaller bank votes as a whole.
        temperature: Of the vote.
        images: Most training images.
        cells: Most cells in the bank.
        batch_size: Images in a forward pass.
        seed: Choice of the images and of their cells.
        workers, device, progress: As ``extract_features``.

    Raises:
        UserError: No masks, no dense features, features that are not finite, a setting out of range, or no pixel of
            known class.
    """
    start = time.perf_counter()
    _check_possible(backbone, train)
    if min(k, images, cells, batch_size) < 1 or not temperature > 0:
        raise UserError(
            "eval.segmentation_k, segmentation_images, segmentation_cells and segmentation_batch_size must be at least "
            "1, and segmentation_temperature above 0."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)[: min(images, cells)]
    train = train.subset(order.sort().values)
    each = cells // len(train)
    features, shares, map_size = [], [], (0, 0)

    def keep(maps: Tensor, masks: Tensor) -> None:
        nonlocal map_size
        check_finite(maps.flatten(1), f"feature maps of '{train.name}'")
        map_size = (maps.shape[2], maps.shape[3])
        places = torch.stack([torch.randperm(maps[0, 0].numel(), generator=generator)[:each] for _ in maps])
        share = cell_classes(masks, 1 + _last_class(masks, train), map_size).flatten(2)
        here = share.transpose(1, 2).gather(1, places[..., None].expand(-1, -1, share.shape[1]))
        cut = maps.flatten(2).transpose(1, 2).cpu().gather(1, places[..., None].expand(-1, -1, maps.shape[1]))
        known = here.sum(2) > 0
        features.append(cut[known])
        shares.append(here[known])

    read = _visit(backbone, train, keep, batch_size, workers, device, progress)
    classes = max(share.shape[1] for share in shares)
    bank_features = torch.cat(features)
    if not len(bank_features):
        raise UserError(f"segmentation: no pixel of '{train.name}' {train.split} has a class; its masks are empty.")
    bank = CellBank(
        bank_features,
        torch.cat([F.pad(share, (0, classes - share.shape[1])) for share in shares]),
        min(k, len(bank_features)),
        temperature,
    )
    total = torch.zeros(classes, classes, dtype=torch.long)

    def add(maps: Tensor, masks: Tensor) -> None:
        total.add_(confusion(bank.predict(maps, (masks.shape[1], masks.shape[2])), masks, classes))

    scored_on = _visit(backbone, scored, add, batch_size, workers, device, progress)
    _check_counts(total, scored)
    per_class = intersection_over_union(total)
    return SegmentationKnnResult(
        miou=_mean(per_class),
        per_class=per_class,
        pixel_accuracy=(total.diagonal().sum() / total.sum()).item(),
        bank=bank,
        map_size=map_size,
        images=(read, scored_on),
        seconds=time.perf_counter() - start,
    )


def cell_classes(masks: Tensor, classes: int, map_size: tuple[int, int]) -> Tensor:
    """Return which share of each cell's pixels is of each class, of those pixels whose class is known.

    Args:
        masks: uint8 ``[N,H,W]``, values below ``classes`` or ``IGNORED``.
        classes: Number of classes ``C``.
        map_size: (height, width) of the grid of cells; where it does not divide the mask, cells share pixels.

    Returns:
        float32 ``[N,C,*map_size]``; the sum over ``C`` is 1, or 0 where no pixel's class is known.
    """
    found = []
    for block in torch.split(masks, _images_a_block(classes, (masks.shape[1], masks.shape[2]))):
        # the ignored value goes to a class of its own, which is dropped
        numbers = block.long().where(block != IGNORED, classes)
        ones = F.one_hot(numbers, classes + 1).permute(0, 3, 1, 2)[:, :classes].float()
        pooled = F.adaptive_avg_pool2d(ones, map_size)
        found.append(pooled / pooled.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
    return torch.cat(found)


def segment(
    backbone: nn.Module | None,
    classifier: PixelClassifier | CellBank,
    dataset: ImageDataset,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return predicted and true masks, int64 ``[N,S,S]``, at the resolution of the evaluation crop.

    The true ones may hold ``IGNORED``.
    """
    predicted, truth = [], []

    def add(maps: Tensor, masks: Tensor) -> None:
        predicted.append(classifier.predict(maps, (masks.shape[1], masks.shape[2])).cpu())
        truth.append(masks.long())

    _visit(backbone, dataset, add, batch_size, workers, device, progress=False)
    return torch.cat(predicted), torch.cat(truth)


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Count pixels by true and predicted class: two integer tensors of one shape to int64 ``[C,C]``, truth first.

    Pixels whose truth is ``IGNORED`` are left out.

    Raises:
        UserError: A true class beyond ``classes``.
    """
    counted = truth != IGNORED
    true, predicted = truth[counted].long(), predicted[counted].long()
    if len(true) and int(true.max()) >= classes:
        raise UserError(
            f"segmentation: a scored mask holds the value {int(true.max())}, and neither the training masks nor the "
            f"names of the classes go beyond {classes - 1}; repair the masks or take more training images."
        )
    pairs = true * classes + predicted
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def intersection_over_union(matrix: Tensor) -> dict[int, float]:
    """Return ``TP / (TP + FP + FN)`` of each class that the true masks contain, over all pixels together.

    A class that no mask contains is left out, however often it was predicted: those pixels count against the classes
    they were taken from.

    Args:
        matrix: int64 ``[C,C]``, see ``confusion``.
    """
    right, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return {c: int(right[c]) / int(true[c] + predicted[c] - right[c]) for c in true.nonzero().flatten().tolist()}


def _check_possible(backbone: nn.Module | None, train: ImageDataset) -> None:
    obstacle = segmentation_obstacle(backbone, train)
    if obstacle is not None:
        raise UserError(f"segmentation: {obstacle}; take data with masks (data=shapes) and a timm or convnet backbone.")


def _last_class(masks: Tensor, dataset: ImageDataset) -> int:
    """Return the largest value of the masks that is a class, or that of the last class with a name."""
    return max(int(masks.where(masks != IGNORED, 0).max()), len(dataset.classes or ()))


def _check_counts(matrix: Tensor, dataset: ImageDataset) -> None:
    if not int(matrix.sum()):
        raise UserError(f"segmentation: no pixel of '{dataset.name}' {dataset.split} has a class; its masks are empty.")


def visit_maps(
    backbone: nn.Module | None,
    dataset: ImageDataset,
    consume: Callable[[Tensor, Tensor], None],
    batch_size: int,
    workers: int,
    device: torch.device | str | None,
    progress: bool,
) -> int:
    """Give ``consume`` the feature maps float32 ``[n,D,h,w]`` and indices int64 ``[n]`` of every image, in order.

    Images and network are treated as in ``extract_features``; without a network the map is the pixels in [0, 1].
    Returns the number of images; those that cannot be decoded are left out.
    """
    network = nn.Identity() if backbone is None else backbone
    statistics = None if backbone is None else getattr(backbone, "normalization", None) or dataset.normalization
    channels = dataset.channels if backbone is None else input_channels(backbone, dataset)
    seen = 0
    with (
        frozen(network, device) as (where, dtype),
        tqdm(
            total=len(dataset), desc=f"maps of {dataset.name} {dataset.split}", unit="image", disable=not progress
        ) as bar,
    ):
        for batch in eval_batches(dataset, batch_size, workers):
            prepared = prepare_images(batch.image.to(where), dataset.image_size, channels, statistics)
            if backbone is not None:
                prepared = backbone.forward_dense(prepared.to(dtype))  # type: ignore[operator]
            consume(prepared.float(), batch.index)
            seen += len(batch.index)
            bar.update(len(batch.index))
    return seen


def _visit(
    backbone: nn.Module | None,
    dataset: ImageDataset,
    consume: Callable[[Tensor, Tensor], None],
    batch_size: int,
    workers: int,
    device: torch.device | str | None,
    progress: bool,
) -> int:
    """Give ``consume`` the feature maps float32 ``[n,D,h,w]`` and masks uint8 ``[n,S,S]`` of every image, in order."""

    def with_masks(maps: Tensor, index: Tensor) -> None:
        stored = dataset.read_masks(torch.isin(dataset.index, index).nonzero().flatten())
        assert stored is not None  # segmentation_obstacle has looked
        consume(maps, _prepare_masks(stored, dataset.image_size))

    return visit_maps(backbone, dataset, with_masks, batch_size, workers, device, progress)


def _prepare_masks(masks: Tensor, size: int) -> Tensor:
    """Resize and crop masks as ``prepare_images`` does the images, by nearest neighbour: uint8 ``[n,size,size]``."""
    height, width = masks.shape[-2:]
    if min(height, width) != size:
        shape = [side * size // min(height, width) for side in (height, width)]
        masks = F.interpolate(masks[:, None], shape, mode="nearest-exact")[:, 0]
    top, left = (round((side - size) / 2) for side in masks.shape[-2:])
    return masks[:, top : top + size, left : left + size]


def _standardiser(maps: Tensor) -> tuple[Tensor, Tensor]:
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


def _images_a_block(classes: int, size: tuple[int, int]) -> int:
    return max(1, LOGITS // (classes * size[0] * size[1]))


def _mean(values: dict[int, float]) -> float:
    return math.fsum(values.values()) / len(values)


def _home(backbone: nn.Module | None) -> torch.device:
    first = None if backbone is None else next(backbone.parameters(), None)
    return torch.device("cpu") if first is None else first.device
