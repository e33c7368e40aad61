"""Integrated gradients, gathered by regions of the image."""

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.eval.ways import Scene, way
from selfsup.functional.attribution import integrated_gradients
from selfsup.functional.regions import graph_segments, region_order, widened

PASSES = 100
SIDE = 224  # of the images that the numbers below are of
SCALES, SMALLEST, RADIUS, LEAST = (50, 100, 150, 250, 500, 1200), 150, 5, 50


@way("xrai")
def xrai(scene: Scene) -> Tensor:
    """Regions of the image in the order of their mean integrated gradients, darkest and brightest as baselines (XRAI).

    Regions are those of Felzenszwalb's segmentation at six scales, grown by 5 pixels (Kapishnikov et al.,
    arXiv:1906.02825, and PAIR-code/saliency, whose sizes are of 224 pixels and are reduced here with the area of the
    image). The baselines are the least and the largest value of the batch, which stand for black and white; channels
    count by their largest attribution.
    """
    images = scene.images
    shares = torch.zeros_like(images)
    for end in (images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)):
        shares += integrated_gradients(scene.score, images, end.expand_as(images), scene.passes(PASSES)) / 2
    attribution = shares.amax(1).float().cpu()
    return torch.stack(
        [region_order(a, masks, _pixels(LEAST, a)) for a, masks in zip(attribution, map(_regions, images), strict=True)]
    ).to(images)


def _regions(image: Tensor) -> Tensor:
    """Return the regions of an image at all scales, bool ``[K,H,W]``."""
    image = image.detach().float().cpu()
    if max(image.shape[1:]) > SIDE:
        return _resized(_regions(_smaller(image)), (image.shape[1], image.shape[2]))
    low, high = image.amin(), image.amax()
    shown = 2 * (image - low) / (high - low).clamp_min(1e-12) - 1
    masks = []
    for scale in SCALES:
        segments = graph_segments(shown, scale * image[0].numel() / SIDE**2, 0.8, _pixels(SMALLEST, image[0]))
        masks.append(F.one_hot(segments).permute(2, 0, 1).bool())
    return widened(torch.unique(torch.cat(masks), dim=0), round(RADIUS * max(image.shape[1:]) / SIDE))


def _smaller(image: Tensor) -> Tensor:
    factor = SIDE / max(image.shape[1:])
    size = [max(1, round(side * factor)) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(masks[None].float(), list(size), mode="nearest")[0] > 0


def _pixels(count: int, image: Tensor) -> int:
    """Return a number of pixels of images of 224 as one of this image ``[H,W]``."""
    return max(1, round(count * min(1.0, image.numel() / SIDE**2)))
