"""What the patches of a network say, as a picture: the principal components of their features as colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder
from selfsup.eval.features import check_finite, positions_of
from selfsup.eval.pixels import IGNORED, masks_of
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly
from selfsup.settings import setting
from selfsup.unit_range import shown_channels

COLOURS = 3
REACH = 2.0  # standard deviations of a component from the middle of its colour to either end
SHARES = 10  # components whose shares are recorded


@dataclass
class PatchPcaSettings:
    """Which images are looked at.

    Attributes:
        classes: Classes that are shown, spaced evenly over those there are. Data without classes gives one group.
        shown: Images of each in the picture.
        images: Most images of each that the components are of.
        without_place: Take the mean of each place over the images of a class off first, and show what is left: most of
            what the patches of masked image models say may be where they are.
        batch_size: Images in a forward pass.
    """

    classes: int = setting(3, least=1)
    shown: int = setting(6, least=1)
    images: int = setting(32, least=1)
    without_place: bool = False
    batch_size: int = setting(32, least=1)


@protocol("patch_pca", PatchPcaSettings, needs=("network", "dense"))
def evaluate(subject: Subject, settings: PatchPcaSettings) -> Iterator[Record]:
    """Principal components of the patch features as colours, with the object told from the background.

    ``figures/patch_pca.png`` has, for images of some classes, the first three components of each image's own patches,
    and those of all images of the class together, on the patches that the first component takes for the object (Oquab
    et al., "DINOv2", arXiv:2304.07193, figure 1). Records: ``explained_variance``, the share of three components in the
    variance over all patches of all images; ``position_share``, how much of that variance the place in the image
    explains, whatever it shows; and with masks ``foreground_iou``, the mean over images of the agreement of those
    patches with the pixels of any class. Nothing is trained or chosen.
    """
    split, scored = subject.scored
    encoder = replace(subject.encoder, batch_size=settings.batch_size)
    masked = scored.read_masks(torch.arange(0)) is not None
    groups, every, agreements = [], [], []
    for title, images in groups_of(scored, settings):
        maps, images = _read(encoder, images)
        every.append(maps)
        if settings.without_place:
            maps = maps - maps.mean(0)
        objects, joint = object_colours(maps, border=not settings.without_place)
        if masked:
            agreements += agreement(objects, masks_of(encoder, images, torch.arange(len(images))))
        shown = torch.arange(min(settings.shown, len(images)))
        pictures = shown_channels(encoder.prepared(images.read(shown), images.image_size, images.channels))
        groups.append(ColouredPatches(title, pictures, colours_of_each(maps[shown]), joint[shown], objects[shown]))
    subject.shown["patch_pca"] = lambda: groups
    together = torch.cat(every)
    shares = principal_components(patches_of(together), min(SHARES, together.shape[1])).shares
    how = {"images": len(together), "dim": together.shape[1], "map_size": list(together.shape[2:])}
    found = {"components": shares.tolist()}
    value = float(shares[:COLOURS].sum())
    yield Record(split=split, metric="explained_variance", value=value, unit=FRACTION, how=how, found=found)
    yield Record(split=split, metric="position_share", value=position_share(together), unit=FRACTION, how=how)
    if agreements:
        value = sum(agreements) / len(agreements)
        how |= {"grouped_by": "class" if len(groups) > 1 else "none", "mask_images": len(agreements)}
        how |= {"without_place": settings.without_place}
        yield Record(split=split, metric="foreground_iou", value=value, unit=FRACTION, how=how)


@dataclass(frozen=True)
class ColouredPatches:
    """Images of a group with the colours of their patches.

    Attributes:
        title: What they have in common.
        images: float ``[n,C,H,W]`` in [0, 1].
        own: float ``[n,h,w,3]`` in [0, 1]: the first three components of the patches of each image alone.
        joint: float ``[n,h,w,3]``: those of the objects of all images of the group.
        objects: bool ``[n,h,w]``: the patches taken for the object; ``joint`` means nothing elsewhere.
    """

    title: str
    images: Tensor
    own: Tensor
    joint: Tensor
    objects: Tensor


@dataclass(frozen=True)
class Components:
    """Principal components of features.

    Attributes:
        mean: float64 ``[D]``.
        axes: float64 ``[K,D]``, orthonormal, the one of the largest variance first.
        deviation: float64 ``[K]``, standard deviation of the scores.
        shares: float64 ``[K]``, of the variance.
    """

    mean: Tensor
    axes: Tensor
    deviation: Tensor
    shares: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Return where features lie along the axes: float ``[…,D]`` to float64 ``[…,K]``."""
        return (features.double() - self.mean) @ self.axes.T


def principal_components(features: Tensor, count: int) -> Components:
    """Return the first principal components of rows of features, with a sign that does not depend on the solver.

    Each axis points to where its scores reach farther from the mean: the sum of their cubes is positive. Where they
    reach equally far, to within rounding, its largest entry is positive.

    Args:
        features: float ``[M,D]``.
        count: Number of components, at most ``D``.

    Raises:
        UserError: The rows are all the same.
    """
    x = features.double()
    mean = x.mean(0)
    x = x - mean
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    values, axes = values.flip(0).clamp_min(0), vectors.T.flip(0)[:count]
    if not float(values[0]) > 1e-12 * float(mean.square().sum()):
        raise UserError("patch_pca: the network gives all patches the same features; it has collapsed.")
    scores = x @ axes.T
    cubes = scores.pow(3).sum(0)
    even = cubes.abs() <= 1e-9 * scores.abs().pow(3).sum(0)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))[:, 0]
    signs = torch.where(torch.where(even, largest, cubes) < 0, -1.0, 1.0).double()
    return Components(mean, axes * signs[:, None], values[:count].sqrt(), values[:count] / values.sum())


def as_colours(components: Components, features: Tensor) -> Tensor:
    """Return features as red, green and blue: float ``[…,D]`` to float64 ``[…,3]`` in [0, 1].

    The mean is grey, and a score of two standard deviations of its own component is the end of its colour. A component
    that does not vary stays in the middle, as do those beyond ``D``.
    """
    scale = components.deviation * (components.deviation > 1e-6 * components.deviation[0])
    score = torch.where(scale > 0, components.scores(features) / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0)
    return F.pad(0.5 + score / (2 * REACH), (0, COLOURS - score.shape[-1]), value=0.5).clamp(0, 1)


def colours_of_each(maps: Tensor) -> Tensor:
    """Return the components of each image's own patches as colours: ``[N,D,h,w]`` to ``[N,h,w,3]``."""
    count = min(COLOURS, maps.shape[1])
    places = maps.permute(0, 2, 3, 1)
    return torch.stack([as_colours(principal_components(one.flatten(0, 1), count), one) for one in places])


def object_colours(maps: Tensor, border: bool = True) -> tuple[Tensor, Tensor]:
    """Tell the object from the background, and colour it.

    Two rules and no more: the first component of all patches of all images is cut at its mean, and the object is on
    the side that the border of the images is less on. The colours are the first three components of the objects of all
    images.

    Args:
        maps: float ``[N,D,h,w]``.
        border: Whether the border tells the side. Where the mean of each place is taken off it cannot, and the object
            is on the side of the component that reaches farther.

    Returns:
        Which patches are of the object, bool ``[N,h,w]``, and their colours, float64 ``[N,h,w,3]``.
    """
    places = maps.permute(0, 2, 3, 1)
    score = principal_components(patches_of(maps), 1).scores(places)[..., 0]
    outside = torch.ones(score.shape[1:], dtype=torch.bool)
    outside[1:-1, 1:-1] = False
    # of a map without an inside the sign of the component itself is taken, too
    known = border and bool((~outside).any())
    outward = known and float(score[:, outside].mean()) > float(score[:, ~outside].mean())
    objects = score < 0 if outward else score > 0
    components = principal_components(places[objects], min(COLOURS, maps.shape[1]))
    return objects, as_colours(components, places)


def position_share(maps: Tensor) -> float:
    """Return the share of the variance over all patches that lies between places: 0 to 1, ``[N,D,h,w]``.

    It is what the mean of a place over the images says of it. Of features that know nothing of the place it is about
    one over the number of images.
    """
    x = maps.double()
    places = x.mean(0)
    middle = places.mean((1, 2), keepdim=True)
    return float((places - middle).square().sum() * len(x) / (x - middle).square().sum())


def agreement(objects: Tensor, masks: Tensor) -> list[float]:
    """Return the intersection over union of patches and masks of each image that has a pixel of a class.

    Args:
        objects: bool ``[N,h,w]``.
        masks: uint8 ``[N,H,W]``; 0 is the background, ``IGNORED`` counts nowhere.
    """
    large = F.interpolate(objects[:, None].float(), masks.shape[1:], mode="nearest-exact")[:, 0] > 0.5
    known, true = masks != IGNORED, (masks != IGNORED) & (masks > 0)
    both, either = (large & true).sum((1, 2)), ((large & known) | true).sum((1, 2))
    seen = true.any(2).any(1)
    return (both[seen].double() / either[seen]).tolist()


def groups_of(images: ImageDataset, settings: PatchPcaSettings) -> list[tuple[str, ImageDataset]]:
    """Return the images of some classes, or some of all images where they have no classes."""
    if images.labels is None or bool((images.labels < 0).all()):
        return [(images.name, evenly(images, settings.images))]
    known = torch.unique(images.labels[images.labels >= 0])
    chosen = known[torch.linspace(0, len(known) - 1, min(settings.classes, len(known))).round().long()]
    return [
        (
            _name(int(label), images.classes),
            evenly(images.subset((images.labels == label).nonzero().flatten()), settings.images),
        )
        for label in chosen
    ]


def patches_of(maps: Tensor) -> Tensor:
    """Return the patches of all images, one a row: ``[N,D,h,w]`` to ``[Nhw,D]``."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _name(label: int, classes: Sequence[str] | None) -> str:
    return classes[label] if classes is not None and label < len(classes) else str(label)


def _read(encoder: Encoder, images: ImageDataset) -> tuple[Tensor, ImageDataset]:
    """Return the maps of all images on the CPU, and the images that they are of."""
    maps, index = [], []
    with encoder.maps(images) as batches:
        for some, which in batches:
            maps.append(some.cpu())
            index.append(which)
    found = torch.cat(maps)
    check_finite(found.flatten(1), f"feature maps of '{images.name}'")
    return found, images.subset(positions_of(images, torch.cat(index)))
