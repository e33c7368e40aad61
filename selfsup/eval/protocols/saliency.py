"""Where a similarity comes from, by several ways on the same images, and how far each can be trusted."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.bars import progress_bar
from selfsup.errors import UserError
from selfsup.eval.encoder import frozen, input_channels
from selfsup.eval.features import check_finite, positions_of
from selfsup.eval.neighbours import search
from selfsup.eval.pixels import IGNORED, masks_of
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.saliency import WAYS
from selfsup.eval.shown import SaliencyMaps
from selfsup.eval.subject import Subject
from selfsup.eval.ways import Scene
from selfsup.functional.attribution import blurred, spread
from selfsup.functional.faithfulness import infidelity, information_area, max_sensitivity, separation
from selfsup.registry import nearest
from selfsup.settings import setting
from selfsup.unit_range import shown_channels

#: Shares of the pixels that are revealed, as in PAIR-code/saliency.
REVEALED = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.21, 0.34, 0.5, 0.75)
GRID = 101  # points of the mean curve in the figure


@dataclass
class SaliencySettings:
    """What is explained, by which ways, and how it is scored.

    Attributes:
        ways: Some of the files of ``selfsup/eval/saliency/``; empty is all of them.
        images: Images that are explained, spaced evenly over those that are scored.
        effort: Factor of the passes that each way makes; 0.1 is for a first look.
        squares: Squares that are removed for the infidelity.
        radius: Largest change of a value of the normalised image for the sensitivity.
        samples: Such changes; each costs as much as the maps themselves. 0 leaves the sensitivity out.
    """

    ways: list[str] = field(default_factory=list)
    images: int = setting(8, least=1)
    effort: float = setting(1.0, above=0.0)
    squares: int = setting(200, least=2)
    radius: float = setting(0.02, least=0.0)
    samples: int = setting(4, least=0)


@protocol("saliency", SaliencySettings, needs=("network",), by_name=True, shown=("way",))
def evaluate(subject: Subject, settings: SaliencySettings) -> Iterator[Record]:
    """Maps of what the similarity to the nearest training image comes from, by several ways, each with its scores.

    What is explained is the cosine of an image's feature with that of the training image nearest to it. Means over the
    images:

    - ``information_area``: area under the similarity over the information shown (bytes of a lossless WebP), when the
      most salient pixels are revealed on a blurred image; both from 0, all blurred, to 1, the image. Larger is better.
      Images that are no more similar than their blurred selves have no such curve and are left out.
    - ``infidelity``: share of what the removal of random squares does to the similarity that the map does not say, up
      to a factor: 0 is best, 1 says nothing.
    - ``sensitivity``: largest relative change of the map when every value of the image changes by up to ``radius``.
    - ``separation``, where there are masks: how often a pixel of an object has a larger value than one of the
      background; ½ is chance. It judges network and way together.
    - ``completeness``, of ways whose map sums to the similarity: largest relative error of that sum.

    The way ``random`` says what each score gives to a map that knows nothing. A way that the network does not allow is
    named, and the others go on.
    """
    for name in settings.ways:
        if name not in WAYS:
            raise UserError(f"eval.saliency.ways: there is no way '{name}'.{nearest(name, WAYS)}")
    names = settings.ways or list(WAYS)
    features = subject.features
    split, _ = features.scored
    network = subject.network
    pictures, inside, scene_images, partners = _images(subject, settings.images)
    how = {"images": len(pictures), "effort": settings.effort, "dim": features.how["dim"]}
    maps: dict[str, Tensor] = {}
    curves: dict[str, Tensor] = {}
    left_out: list[str] = []
    with (
        frozen(network, subject.encoder.device) as (where, dtype),
        progress_bar(total=len(names), desc="saliency", unit="way", disable=not subject.encoder.progress) as bar,
        torch.inference_mode(False),  # whose tensors cannot take part in a gradient
        torch.no_grad(),
    ):
        images = scene_images.to(where, dtype)
        target = F.normalize(network(partners.to(where, dtype)).float(), dim=1)
        check_finite(target, "features of the nearest training images")
        scene = Scene(network, images, target, subject.seed, settings.effort)
        for name in names:
            try:
                raw = WAYS[name].explain(scene).float()
            except UserError as error:
                left_out.append(f"{name} ({error})")
                bar.update()
                continue
            if not raw.isfinite().all():
                raise UserError(f"eval.saliency.ways: the map of {name} is not finite; the network has diverged.")
            maps[name] = _enlarged(raw, images)
            found, curves[name] = _scores(scene, name, raw, maps[name], settings)
            if inside is not None:
                found["separation"] = separation(maps[name].cpu(), inside)
            for metric, values in found.items():
                kept = values[values.isfinite()].double()
                if not len(kept):
                    continue
                own = {"per_image": [v if v == v else None for v in values.tolist()]}
                value = kept.max() if metric == "completeness" else kept.mean()
                place = {"way": name, **how} | _how(metric, settings)
                yield Record(split=split, metric=metric, value=value.item(), how=place, found=own)
            bar.update()
        similarity = scene.score(images).cpu()
    if not maps:
        raise UserError(f"eval.saliency.ways: none of them can explain this network: {'; '.join(left_out)}.")
    if left_out:
        warnings.warn(f"saliency left out {'; '.join(left_out)}.", stacklevel=2)
    shown = SaliencyMaps(
        pictures,
        similarity,
        {name: found.cpu() for name, found in maps.items()},
        {n: c.cpu() for n, c in curves.items()},
    )
    subject.shown["saliency"] = lambda: shown


def _how(metric: str, settings: SaliencySettings) -> dict[str, Any]:
    if metric == "sensitivity":
        return {"radius": settings.radius, "samples": settings.samples}
    return {"squares": settings.squares} if metric == "infidelity" else {}


def _images(subject: Subject, most: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return pairs of pictures ``[N,2,C,H,W]`` in [0, 1], objects ``[N,H,W]`` or None, images and nearest images."""
    features, network, encoder = subject.features, subject.network, subject.encoder
    asked, asked_images = subject.asked(features)
    chosen = torch.linspace(0, len(asked) - 1, min(most, len(asked))).round().long()
    found = search(features.train.features, asked.features[chosen], 1)[1][:, 0]
    first = positions_of(asked_images, asked.index[chosen])
    second = positions_of(subject.splits.train, features.train.index[found])
    stored = asked_images.read(first), subject.splits.train.read(second)
    size, channels = asked_images.image_size, input_channels(network, asked_images)
    statistics = encoder.normalization(asked_images)
    taken = [encoder.prepared(part, size, channels, statistics) for part in stored]
    plain = [shown_channels(encoder.prepared(part, size, channels)).clamp(0, 1) for part in stored]
    inside = None
    if asked_images.read_masks(torch.arange(0)) is not None:
        masks = masks_of(encoder, asked_images, first)
        inside = (masks > 0) & (masks != IGNORED)
    return torch.stack(plain, 1), inside, taken[0], taken[1]


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    size = (images.shape[2], images.shape[3])
    return maps if tuple(maps.shape[1:]) == size else spread(maps, size)


def _scores(
    scene: Scene, name: str, raw: Tensor, maps: Tensor, settings: SaliencySettings
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the scores ``[N]`` of a map by name, and the mean information curve ``[GRID]``."""
    found: dict[str, Tensor] = {}
    information, response = _revealed(scene, maps)
    usable = response.isfinite().all(0)
    curve = torch.full((GRID,), torch.nan)
    area = torch.full((maps.shape[0],), torch.nan)
    if usable.any():
        area[usable] = information_area(information[:, usable], response[:, usable])
        curve = _mean_curve(information[:, usable], response[:, usable])
    found["information_area"] = area
    found["infidelity"] = _infidelity(scene, maps, settings.squares)
    if settings.samples:
        found["sensitivity"] = max_sensitivity(
            lambda images: WAYS[name].explain(replace(scene, images=images)).float(),
            scene.images,
            raw,
            settings.radius,
            settings.samples,
            scene.generator(),
        ).cpu()
    if WAYS[name].complete:
        value = scene.score(scene.images)
        found["completeness"] = ((maps.sum((1, 2)) - value).abs() / value.abs().clamp_min(1e-3)).cpu()
    return found, curve


def _infidelity(scene: Scene, maps: Tensor, squares: int) -> Tensor:
    """Return the infidelity of maps when random squares take the image's mean colour."""
    images, generator = scene.images, scene.generator()
    height, width = images.shape[2:]
    fill, whole = images.mean((2, 3), keepdim=True), scene.score(images)
    changes, predicted = [], []
    for _ in range(squares):
        least, most = max(1, min(height, width) // 8), max(1, min(height, width) // 3)
        side = int(torch.randint(least, most + 1, (), generator=generator))
        top, left = (int(torch.randint(0, n - side + 1, (), generator=generator)) for n in (height, width))
        without = images.clone()
        without[:, :, top : top + side, left : left + side] = fill
        changes.append(whole - scene.score(without))
        predicted.append(maps[:, top : top + side, left : left + side].sum((1, 2)))
    return infidelity(torch.stack(changes).double(), torch.stack(predicted).double())[1].cpu()


def _revealed(scene: Scene, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return information and response ``[P,N]`` from 0 to 1 as ever more pixels are revealed; NaN where none is."""
    images = scene.images
    half = min(images.shape[2:]) // 4
    hidden = blurred(images.float(), 2 * half + 1, max(0.5, half / 2)).to(images.dtype)
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order).contiguous())
    sizes, values = [], []
    for share in (0.0, *REVEALED, 1.0):
        seen = (rank < round(share * rank.shape[1])).view(maps.shape)[:, None]
        shown = torch.where(seen, images, hidden)
        sizes.append(torch.tensor([_bytes(image) for image in _eight_bits(shown, images)]))
        values.append(scene.score(shown).cpu())
    return _unit(torch.stack(sizes)), _unit(torch.stack(values))


def _unit(values: Tensor) -> Tensor:
    """Return how far values ``[P,N]`` went from the first to the last, NaN where that is no rise."""
    rise = (values[-1] - values[0]).double()
    way = ((values[1:-1] - values[:1]) / rise).clamp(0, 1)
    return torch.where(rise > 1e-6, way, torch.nan).float()


def _eight_bits(shown: Tensor, images: Tensor) -> Tensor:
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    scaled = ((shown - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return shown_channels((255 * scaled.float()).round().to(torch.uint8)).cpu()


def _bytes(image: Tensor) -> int:
    """Return the size of an image uint8 ``[C,H,W]`` as a lossless WebP."""
    from PIL import Image

    file = io.BytesIO()
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(file, format="webp", lossless=True, quality=100)
    return file.tell()


def _mean_curve(information: Tensor, response: Tensor) -> Tensor:
    """Return the mean response of all images at information 0, 0.01, …, 1."""
    import numpy

    at = numpy.linspace(0, 1, GRID)
    curves = []
    for x, y in zip(information.T.tolist(), response.T.tolist(), strict=True):
        points = sorted(zip([0.0, *x], [0.0, *y], strict=True))
        highest = numpy.maximum.accumulate([y for _, y in points])
        curves.append(numpy.interp(at, [*(x for x, _ in points), 1.0], [*highest, 1.0]))
    return torch.from_numpy(numpy.mean(curves, 0))
