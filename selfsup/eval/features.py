"""Features of a frozen network: one extraction serves every protocol."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from selfsup.data.base import ImageDataset
from selfsup.data.loader import eval_batches
from selfsup.errors import UserError
from selfsup.types import ImageFacts, Normalization


@dataclass(frozen=True)
class FeatureSet:
    """Features of the images of one split, in the order of the dataset.

    Attributes:
        features: float32 ``[N,D]`` on the CPU, as the network gives them (not normalised).
        labels: int64 ``[N]``, or None when the source has none. A missing label is -1.
        index: int64 ``[N]``, the stable position of each image in its source split.
    """

    features: Tensor
    labels: Tensor | None
    index: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def save(self, path: str | Path) -> None:
        """Write the set to one file; an interrupted write leaves the old file as it was."""
        _write(_content(self), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> FeatureSet:
        """Read a set that ``save`` wrote.

        Raises:
            UserError: The file is missing or holds something else.
        """
        content = _read(Path(path))
        return cls(content["features"], content["labels"], content["index"])


def extract_features(
    backbone: nn.Module,
    dataset: ImageDataset,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "32",
    cache: str | Path | None = None,
    progress: bool = True,
) -> FeatureSet:
    """Compute the features of every image of a dataset.

    Images are scaled to [0, 1], resized (antialiased) so that the short side is ``dataset.image_size``, centre-cropped
    to a square, and normalised with the statistics of the backbone, or of the dataset where the backbone has none. The
    backbone runs in evaluation mode; training mode, device and BatchNorm statistics are as before afterwards, so a
    backbone in training can be given.

    Args:
        backbone: Any module that maps float ``[B,C,H,W]`` to ``[B,D]``.
        dataset: Where the images come from.
        batch_size: Images in a forward pass.
        workers: Processes that decode a dataset that is not in memory.
        device: Where to compute; None is where the backbone is.
        precision: Of the forward pass of a float32 backbone: ``32``, ``bf16`` or ``16`` (autocast), or ``auto``: bf16
            on a GPU that has it, 32 elsewhere. The features are float32 in any case.
        cache: File that keeps the features. It is used again only for the same weights, images and precision.
        progress: Show a progress bar.

    Raises:
        UserError: An empty dataset, no such precision, colour images for a one-channel backbone, or features that are
            not ``[B,D]`` or not finite.
    """
    _check_not_empty(dataset)
    lowered = autocast_type(precision, backbone, device)
    key = _fingerprint(backbone, dataset, lowered) if cache is not None else ""
    if cache is not None and Path(cache).exists():
        content = _read(Path(cache))
        if content.get("fingerprint") == key:
            return FeatureSet(content["features"], content["labels"], content["index"])

    normalization = getattr(backbone, "normalization", None) or dataset.normalization
    channels = input_channels(backbone, dataset)
    chunks, labels, index = [], [], []
    waiting: list[Tensor] = []  # its way to the CPU waits for the device, which has the next batch to do by then
    with (
        frozen(backbone, device, lowered) as (where, dtype),
        tqdm(
            total=len(dataset), desc=f"features of {dataset.name} {dataset.split}", unit="image", disable=not progress
        ) as bar,
    ):
        for batch in eval_batches(dataset, batch_size, workers):
            prepared = prepare_images(batch.image.to(where), dataset.image_size, channels, normalization)
            output = backbone(prepared.to(dtype, memory_format=torch.channels_last))
            if output.ndim != 2:
                raise UserError(f"backbone: it gives {list(output.shape)} where pooled features [B,D] are needed.")
            chunks += [chunk.to("cpu", torch.float32) for chunk in waiting]
            waiting = [output]
            labels.append(batch.label)
            index.append(batch.index)
            bar.update(len(batch.index))
        chunks += [chunk.to("cpu", torch.float32) for chunk in waiting]
    found = FeatureSet(torch.cat(chunks), _joined(labels), torch.cat(index))
    check_finite(found.features, f"features of the {dataset.split} split of '{dataset.name}'")
    if cache is not None:
        _write({**_content(found), "fingerprint": key}, Path(cache))
    return found


def raw_pixels(dataset: ImageDataset, *, batch_size: int = 1024, workers: int = 0) -> FeatureSet:
    """Return the pixels themselves as features, scaled to [0, 1]: the baseline every method has to beat.

    Images are resized and cropped to ``dataset.image_size`` and flattened: ``D = C · image_size²``.

    Raises:
        UserError: An empty dataset.
    """
    _check_not_empty(dataset)
    pixels, labels, index = [], [], []
    for batch in eval_batches(dataset, batch_size, workers):
        pixels.append(prepare_images(batch.image, dataset.image_size, dataset.channels).flatten(1))
        labels.append(batch.label)
        index.append(batch.index)
    return FeatureSet(torch.cat(pixels), _joined(labels), torch.cat(index))


def prepare_images(images: Tensor, size: int, channels: int, normalization: Normalization | None = None) -> Tensor:
    """Turn stored images into what a network sees: uint8 ``[B,C,H,W]`` to float ``[B,channels,size,size]``.

    The short side is resized to ``size`` (bilinear, antialiased) and the centre is cropped; images that have the size
    already are not resampled. Grey images are repeated over the channels.

    Raises:
        UserError: Colour images for a one-channel network, or statistics for another number of channels.
    """
    result = images.to(torch.float32) / 255
    height, width = result.shape[-2:]
    if min(height, width) != size:
        shape = [side * size // min(height, width) for side in (height, width)]
        result = F.interpolate(result, shape, mode="bilinear", antialias=True, align_corners=False)
    top, left = (round((side - size) / 2) for side in result.shape[-2:])
    result = result[..., top : top + size, left : left + size]
    if result.shape[1] == 1 and channels > 1:
        result = result.expand(-1, channels, -1, -1)
    if result.shape[1] != channels:
        raise UserError(
            f"backbone: the network takes images of {channels} channel(s) and the data has {result.shape[1]}; "
            "choose a backbone that was trained on such images."
        )
    if normalization is None:
        return result
    mean, std = (torch.tensor(values, device=result.device).view(1, -1, 1, 1) for values in _statistics(normalization))
    if mean.shape[1] not in (1, channels):
        raise UserError(
            f"data.mean: there are statistics of {mean.shape[1]} channels for images of {channels}; give one a channel."
        )
    return (result - mean) / std


def known_labels(part: FeatureSet, name: str) -> Tensor:
    """Return the labels of a part.

    Raises:
        UserError: There is no label for some or all of the images.
    """
    if len(part) == 0:
        raise UserError(f"The {name} features are empty; there is nothing to evaluate.")
    missing = len(part) if part.labels is None else int((part.labels < 0).sum())
    if part.labels is None or missing:
        raise UserError(
            f"The {name} features have no label for {missing} of {len(part)} images; "
            "evaluate on labelled images, or leave the unlabelled ones out."
        )
    return part.labels


def tell_absent(labels: Tensor, known: Tensor, name: str) -> None:
    """Warn of classes of a part that no training image has: they count as errors."""
    absent = torch.unique(labels[~torch.isin(labels, known)]).tolist()
    if absent:
        which = f"{absent[:10]}" + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        warnings.warn(
            f"Classes of the {name} features have no training image and count as errors: {which}", stacklevel=3
        )


def check_finite(features: Tensor, what: str) -> None:
    """Raise a UserError that counts the rows with NaN or infinity."""
    if torch.isfinite(features.sum()):
        return  # no NaN and no infinity can hide in a finite sum, and a sum takes a tenth of the time of looking
    bad = int((~torch.isfinite(features).all(1)).sum())
    if bad:
        raise UserError(
            f"The {what} are NaN or infinite for {bad} of {len(features)} images; the network has diverged, so "
            "evaluate an earlier checkpoint or train with a lower learning rate."
        )


def check_widths(train: FeatureSet, test: FeatureSet) -> None:
    """Raise a UserError unless both parts have features of one width."""
    if train.features.shape[1] != test.features.shape[1]:
        raise UserError(
            f"The train features have {train.features.shape[1]} dimensions and the test features "
            f"{test.features.shape[1]}; extract both with the same backbone."
        )


def autocast_type(precision: str, backbone: nn.Module, device: torch.device | str | None = None) -> torch.dtype | None:
    """Return the type that a precision lowers the forward pass of a backbone to, None for none.

    Args:
        precision, backbone, device: See ``extract_features``.

    Raises:
        UserError: There is no such precision.
    """
    known = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
    if precision != "auto" and precision not in known:
        raise UserError(f"eval.precision: there is no '{precision}'; use auto, {', '.join(known)}.")
    home, dtype = _home(backbone)
    if dtype != torch.float32:
        return None
    if precision != "auto":
        return known[precision]
    where = home if device is None else torch.device(device)
    # emulated bfloat16, on older GPUs and most CPUs, is many times slower than float32
    return torch.bfloat16 if where.type == "cuda" and torch.cuda.is_bf16_supported(False) else None


@contextmanager
def frozen(
    backbone: nn.Module, device: torch.device | str | None, lowered: torch.dtype | None = None
) -> Iterator[tuple[torch.device, torch.dtype]]:
    """Put the backbone in evaluation mode on a device; every submodule gets its own mode back.

    Autocast is off, or to ``lowered``.
    """
    home, dtype = _home(backbone)
    where = home if device is None else torch.device(device)
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    if where != home:
        backbone.to(where)
    try:
        with torch.inference_mode(), torch.autocast(where.type, lowered, enabled=lowered is not None):
            yield where, dtype
    finally:
        if where != home:
            backbone.to(home)
        for module, training in modes:
            module.training = training


def input_channels(backbone: nn.Module, dataset: ImageDataset | ImageFacts) -> int:
    """Return the number of channels of the images that a backbone takes."""
    channels = getattr(backbone, "in_channels", None)
    if isinstance(channels, int):
        return channels
    convolution = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    return dataset.channels if convolution is None else convolution.in_channels


def _home(backbone: nn.Module) -> tuple[torch.device, torch.dtype]:
    first = next((p for p in backbone.parameters() if p.is_floating_point()), None)
    return (torch.device("cpu"), torch.float32) if first is None else (first.device, first.dtype)


def _statistics(normalization: Normalization) -> tuple[list[float], list[float]]:
    return list(normalization.mean), list(normalization.std)


def _fingerprint(backbone: nn.Module, dataset: ImageDataset, lowered: torch.dtype | None) -> str:
    """Name weights, precision and images. Of the pixels only the first ones are read, so that a hit stays cheap."""
    digest = hashlib.sha256(type(backbone).__name__.encode())
    for name, value in backbone.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    statistics = getattr(backbone, "normalization", None) or dataset.normalization
    facts: tuple[Any, ...] = (dataset.name, dataset.split, len(dataset), dataset.image_size, asdict(statistics))
    facts += () if lowered is None else (str(lowered),)
    digest.update(repr(facts).encode())
    digest.update(dataset.index.numpy().tobytes())
    first = dataset.read_decodable(torch.arange(min(8, len(dataset))))[0]
    digest.update(first.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_not_empty(dataset: ImageDataset) -> None:
    if len(dataset) == 0:
        raise UserError(f"data: the {dataset.split} split of '{dataset.name}' is empty; there is nothing to evaluate.")


def _joined(labels: list[Tensor | None]) -> Tensor | None:
    present = [label for label in labels if label is not None]
    return torch.cat(present) if present else None


def _content(found: FeatureSet) -> dict[str, Any]:
    return {"features": found.features, "labels": found.labels, "index": found.index}


def _write(content: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:
        raise UserError(f"'{path}' cannot be read as a file of features; delete it and extract again.") from error
    if not isinstance(content, dict) or "features" not in content:
        raise UserError(f"'{path}' holds no features; delete it and extract again.")
    return content
