"""A frozen network and how to run it: its features, its maps and the outputs of its layers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.data.loader import eval_batches
from selfsup.data.torch_dataset import SizedDataset, as_images
from selfsup.errors import UserError
from selfsup.eval.cropping import BILINEAR, centres_of, crop_centre
from selfsup.eval.features import FeatureSet, check_finite, join_labels, positions_of, read_content, write_content
from selfsup.eval.stages import head_steps, watch
from selfsup.functional.arguments import count, kind
from selfsup.ragged import Images
from selfsup.types import Batch, ImageFacts, Normalization, Size, height_width
from selfsup.unit_range import WHITE, unit_range


@dataclass(frozen=True)
class Encoder:
    """A network and how to run it.

    Images are scaled to [0, 1], the central square is resized (antialiased) to ``dataset.image_size``, or to ``resize``
    and then cropped to it, and normalised with the statistics of the network, or of the dataset where the network has
    none. Where that is a rectangle, the whole image is resized to cover it, and its centre cut. The network runs in
    evaluation mode; training mode, device and BatchNorm statistics are as before afterwards,
    so a network in training can be given.

    Attributes:
        network: Maps float ``[B,C,H,W]`` to ``[B,D]``; None for the raw pixels.
        batch_size: Images in a forward pass.
        workers: Processes that decode a dataset that is not in memory.
        device: Where to compute; None is where the network is.
        precision: Of the forward pass of a float32 network that gives pooled features: ``32``, ``bf16`` or ``16``
            (autocast), or ``auto``: bf16 on a GPU that has it, 32 elsewhere. The features are float32 in any case.
        progress: Show progress bars.
        resize: Short side that images are resized to before the centre of ``dataset.image_size`` is cut; None is that.
            Of a rectangle it is that of a larger one of its aspect, which images are resized to cover.
    """

    network: nn.Module | None
    batch_size: int = 256
    workers: int = 0
    device: torch.device | str | None = None
    precision: str = "32"
    progress: bool = True
    resize: int | None = None

    def features(self, dataset: ImageDataset, cache: str | Path | None = None) -> FeatureSet:
        """Return the pooled features of every image.

        Args:
            dataset: Where the images come from.
            cache: File that keeps the features. It is used again only for the same weights, images and precision.

        Raises:
            UserError: An empty dataset, no such precision, colour images for a one-channel network, or features that
                are not ``[B,D]`` or not finite.
        """
        if self.network is None:
            return raw_pixels(dataset, workers=self.workers, resize=self.resize)
        check_not_empty(dataset)
        key = fingerprint(self, dataset) if cache is not None else ""
        if cache is not None and Path(cache).exists():
            content = read_content(Path(cache))
            if content.get("fingerprint") == key:
                # the labels are those of now: a table of labels may have changed, and the images not
                at = positions_of(dataset, content["index"])
                labels_now = None if dataset.labels is None else dataset.labels[at]
                return FeatureSet(content["features"], labels_now, content["index"])
        chunks, labels, index = [], [], []
        waiting: list[Tensor] = []  # its way to the CPU waits for the device, which has the next batch to do by then
        with self.passes(dataset, f"features of {dataset.name} {dataset.split}", self.lowered) as batches:
            for images, batch in batches:
                output = self.network(images.to(memory_format=torch.channels_last))
                if output.ndim != 2:
                    raise UserError(f"backbone: it gives {list(output.shape)} where pooled features [B,D] are needed.")
                chunks += [chunk.to("cpu", torch.float32) for chunk in waiting]
                waiting = [output]
                labels.append(batch.label)
                index.append(batch.index)
            chunks += [chunk.to("cpu", torch.float32) for chunk in waiting]
        found = FeatureSet(torch.cat(chunks), join_labels(labels), torch.cat(index))
        check_finite(found.features, f"features of the {dataset.split} split of '{dataset.name}'")
        if cache is not None:
            write_content({**vars(found), "fingerprint": key}, Path(cache))
        return found

    @contextmanager
    def maps(self, dataset: ImageDataset) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Give the feature maps float32 ``[n,D,h,w]`` and indices int64 ``[n]`` of every image, batch by batch.

        Without a network the map is the pixels in [0, 1]. Images that cannot be decoded are left out.
        """
        dense: Any = nn.Identity() if self.network is None else self.network.forward_dense
        with self.passes(dataset, f"maps of {dataset.name} {dataset.split}") as batches:
            yield ((dense(images).float(), batch.index) for images, batch in batches)

    def layers(self, dataset: ImageDataset, head: nn.Module | None = None) -> dict[str, FeatureSet]:
        """Return the features after every stage of the network, in one pass.

        Feature maps are averaged over places, tokens over the patches. Stages are those that timm names; of another
        network the children of its outermost container, or the activations among them where there are any.

        Args:
            dataset: Where the images come from.
            head: What the method trained on top of the pooled feature, or None.

        Returns:
            By name and in order: the stages, ``backbone`` (the pooled feature), and the head's layers, ``head.1`` and
            so on, each behind its activation, the last the embedding.

        Raises:
            UserError: As :meth:`features`.
        """
        check_not_empty(dataset)
        assert self.network is not None
        rows: dict[str, list[Tensor]] = {}
        labels, index = [], []
        with (
            frozen(head if head is not None else nn.Identity(), self.device),
            watch(self.network, head) as seen,
            self.passes(dataset, "features of every layer") as batches,
        ):
            for images, batch in batches:
                pooled = self.network(images.to(memory_format=torch.channels_last))
                seen["backbone"] = pooled
                if head is not None:
                    seen[f"head.{len(head_steps(head)) + 1}"] = head(pooled)
                for name, output in seen.items():
                    rows.setdefault(name, []).append(output.to("cpu", torch.float32))
                labels.append(batch.label)
                index.append(batch.index)
        label = join_labels(labels)
        found = {name: FeatureSet(torch.cat(parts), label, torch.cat(index)) for name, parts in rows.items()}
        for name, part in found.items():
            check_finite(part.features, f"features of layer {name}")
        return found

    @contextmanager
    def passes(
        self, dataset: ImageDataset, what: str, lowered: torch.dtype | None = None
    ) -> Iterator[Iterator[tuple[Tensor, Batch]]]:
        """Give the images of a dataset as the network takes them, batch by batch, while it is frozen.

        Args:
            dataset: Where the images come from.
            what: Said at the progress bar.
            lowered: Type that autocast lowers the pass to; None is off.
        """
        statistics, channels = None, dataset.channels
        if self.network is not None:
            statistics = self.normalization(dataset)
            channels = input_channels(self.network, dataset)
        with (
            frozen(nn.Identity() if self.network is None else self.network, self.device, lowered) as (where, dtype),
            progress_bar(total=len(dataset), desc=what, unit="image", disable=not self.progress) as bar,
        ):

            def batches() -> Iterator[tuple[Tensor, Batch]]:
                for batch in eval_batches(dataset, self.batch_size, self.workers):
                    stored = self.centres(Images(batch.image.to(where), batch.size), dataset.image_size)
                    yield self.prepared(stored, dataset.image_size, channels, statistics).to(dtype), batch
                    bar.update(len(batch.index))

            yield batches()

    def centres(self, images: Images, size: Size) -> Tensor:
        """Return of images of any shapes what :meth:`prepared` takes; see :func:`centres_of`."""
        return centres_of(images, size, self.resize)

    def prepared(self, images: Tensor, size: Size, channels: int, normalization: Normalization | None = None) -> Tensor:
        """Return images as they are evaluated; see :func:`prepare_images`."""
        return prepare_images(images, size, channels, normalization, self.resize)

    def normalization(self, dataset: ImageDataset) -> Normalization:
        """Return the statistics that images are normalised with: the network's, or the dataset's where it has none."""
        own: Normalization | None = getattr(self.network, "normalization", None)
        return own or dataset.normalization

    @property
    def lowered(self) -> torch.dtype | None:
        """The type that the precision lowers the forward pass to, None for none.

        Raises:
            UserError: There is no such precision.
        """
        known = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
        if self.precision != "auto" and self.precision not in known:
            raise UserError(f"eval.precision: there is no '{self.precision}'; use auto, {', '.join(known)}.")
        home, dtype = home_of(self.network)
        if self.network is None or dtype != torch.float32:
            return None
        if self.precision != "auto":
            return known[self.precision]
        where = home if self.device is None else torch.device(self.device)
        # emulated bfloat16, on older GPUs and most CPUs, is many times slower than float32
        return torch.bfloat16 if where.type == "cuda" and torch.cuda.is_bf16_supported(False) else None


def extract_features(
    backbone: nn.Module,
    dataset: SizedDataset | ImageDataset,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "32",
    cache: str | Path | None = None,
    progress: bool = True,
) -> FeatureSet:
    """Compute the features of every image of a dataset: :meth:`Encoder.features` in one call.

    Args:
        backbone, batch_size, workers, device, precision, progress: See :class:`Encoder`.
        dataset: One of ours, or any torch dataset of images or of (image, label), see :func:`selfsup.data.as_images`.
        cache: See :meth:`Encoder.features`.

    Raises:
        UserError: As :meth:`Encoder.features`.
    """
    return Encoder(backbone, batch_size, workers, device, precision, progress).features(as_images(dataset), cache)


def raw_pixels(
    dataset: ImageDataset, *, batch_size: int = 1024, workers: int = 0, resize: int | None = None
) -> FeatureSet:
    """Return the pixels themselves as features, scaled to [0, 1]: the baseline every method has to beat.

    Images are resized and cropped to ``dataset.image_size`` and flattened: ``D = C · height · width``.

    Raises:
        UserError: An empty dataset.
    """
    check_not_empty(dataset)
    pixels, labels, index = [], [], []
    for batch in eval_batches(dataset, batch_size, workers):
        stored = centres_of(Images(batch.image, batch.size), dataset.image_size, resize)
        pixels.append(prepare_images(stored, dataset.image_size, dataset.channels, resize=resize).flatten(1))
        labels.append(batch.label)
        index.append(batch.index)
    return FeatureSet(torch.cat(pixels), join_labels(labels), torch.cat(index))


def prepare_images(
    images: Tensor,
    size: Size,
    channels: int,
    normalization: Normalization | None = None,
    resize: int | None = None,
) -> Tensor:
    """Turn stored images into what a network sees: ``[B,C,H,W]`` to float ``[B,channels,h,w]``.

    The short side is resized to ``size``, or to ``resize`` where that is given (bilinear, antialiased), and the centre
    is cropped (to a rectangle as :func:`crop_centre` does); images that have the size already are not resampled. Grey
    images are repeated over the channels. Of uint8 255 is 1, of uint16 65535; floating-point images are in [0, 1].

    Raises:
        UserError: ``resize`` is smaller than ``size``; colour images for a one-channel network, or statistics for
            another number of channels.
    """
    stored = isinstance(images, Tensor) and (images.dtype in WHITE or images.is_floating_point())
    if not stored or images.ndim != 4 or not images.numel():
        raise ValueError(
            f"prepare_images: images must be uint8, uint16 or float [B,C,H,W] and not empty, got {kind(images)}."
        )
    height, width = height_width(size)
    count("prepare_images", size=min(height, width), channels=channels)
    cropped = crop_centre(unit_range(images), size, resize, **BILINEAR)
    result = for_channels(cropped, channels)
    if normalization is None:
        return result
    mean, std = (
        torch.tensor(list(values), device=result.device).view(1, -1, 1, 1)
        for values in (normalization.mean, normalization.std)
    )
    if mean.shape[1] not in (1, channels):
        raise UserError(
            f"data.mean: there are statistics of {mean.shape[1]} channels for images of {channels}; give one a channel."
        )
    return (result - mean) / std


def for_channels(images: Tensor, channels: int) -> Tensor:
    """Return images ``[B,C,H,W]`` with the channels that a network takes: grey ones are repeated over them.

    Raises:
        UserError: Colour images for a one-channel network.
    """
    if images.shape[1] == 1 and channels > 1:
        return images.expand(-1, channels, -1, -1)
    if images.shape[1] != channels:
        raise UserError(
            f"backbone: the network takes images of {channels} channel(s) and the data has {images.shape[1]}; choose a "
            f"network that was trained on such images, or set data.channels={channels} where these are grey or colour."
        )
    return images


@contextmanager
def frozen(
    network: nn.Module, device: torch.device | str | None, lowered: torch.dtype | None = None
) -> Iterator[tuple[torch.device, torch.dtype]]:
    """Put a network in evaluation mode on a device; every submodule gets its own mode back.

    Autocast is off, or to ``lowered``.
    """
    home, dtype = home_of(network)
    where = home if device is None else torch.device(device)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    if where != home:
        network.to(where)
    try:
        with torch.inference_mode(), torch.autocast(where.type, lowered, enabled=lowered is not None):
            yield where, dtype
    finally:
        if where != home:
            network.to(home)
        for module, training in modes:
            module.training = training


def input_channels(backbone: nn.Module, dataset: ImageDataset | ImageFacts) -> int:
    """Return the number of channels of the images that a backbone takes."""
    channels = getattr(backbone, "in_channels", None)
    if isinstance(channels, int):
        return channels
    convolution = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    return dataset.channels if convolution is None else convolution.in_channels


def home_of(network: nn.Module | None) -> tuple[torch.device, torch.dtype]:
    """Return where a network is and the type of its weights; the CPU and float32 where it has none."""
    weights = () if network is None else network.parameters()
    first = next((p for p in weights if p.is_floating_point()), None)
    return (torch.device("cpu"), torch.float32) if first is None else (first.device, first.dtype)


def check_not_empty(dataset: ImageDataset) -> None:
    """Raise a UserError where there are no images."""
    if len(dataset) == 0:
        raise UserError(f"data: the {dataset.split} split of '{dataset.name}' is empty; there is nothing to evaluate.")


def fingerprint(encoder: Encoder, dataset: ImageDataset) -> str:
    """Name weights, precision and images. Of the pixels only the first ones are read, so that a hit stays cheap."""
    assert encoder.network is not None
    digest = hashlib.sha256(type(encoder.network).__name__.encode())
    for name, value in encoder.network.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    statistics = asdict(encoder.normalization(dataset))
    facts: tuple[Any, ...] = (dataset.name, dataset.split, len(dataset), dataset.image_size, statistics)
    facts += () if encoder.lowered is None else (str(encoder.lowered),)
    facts += () if encoder.resize is None else (encoder.resize,)
    digest.update(repr(facts).encode())
    digest.update(dataset.index.numpy().tobytes())
    first = dataset.read_decodable(torch.arange(min(8, len(dataset))))[0]
    digest.update(first.contiguous().numpy().tobytes())
    return digest.hexdigest()
