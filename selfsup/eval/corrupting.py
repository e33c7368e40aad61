"""The fifteen common corruptions of Hendrycks and Dietterich (arXiv:1903.12261), written anew.

Parameters are those of CIFAR-10-C at 32 pixels and of ImageNet-C at 224, read in the authors' code
(hendrycks/robustness at ca36008 and 20caed9), and between them they follow the logarithm of the size; beyond, lengths
grow and shrink with the image. A corrupted image is a function of (seed, its index, corruption, strength) and of its
pixels, whatever the batch.

Not as in the authors' code: frost is drawn (ridges of plasma noise) where theirs lays photographs of frost over the
image, motion is sampled along its line and not by ImageMagick, glass makes pixels change places where theirs copies one
over the other, elastic distances at 224 pixels are shares of 224 where theirs are of 244, and blurs end at the border
by repeating or mirroring its pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.random import fold_in, uniform
from selfsup.registry import nearest

STRENGTHS = (1, 2, 3, 4, 5)
SMALL, LARGE = 32, 224  # sides that the two sets of parameters are for
LUMA = torch.tensor([0.299, 0.587, 0.114])  # how bright red, green and blue look
NUMBERS = 2**22  # pixels that are corrupted at a time


@dataclass(frozen=True)
class Draws:
    """Random numbers of the images of a batch, each a function of its index."""

    seed: int
    index: Tensor

    def uniform(self, stream: int, count: int) -> Tensor:
        """Return float32 ``[B,count]`` in [0, 1); other streams are independent."""
        return uniform(fold_in(self.seed, stream), self.index, count).float()

    def normal(self, stream: int, count: int) -> Tensor:
        """Return float32 ``[B,count]``, standard normal (Box and Muller)."""
        found = uniform(fold_in(self.seed, stream), self.index, 2 * count)
        radius, angle = (-2 * (1 - found[:, :count]).log()).sqrt(), 2 * math.pi * found[:, count:]
        return (radius * angle.cos()).float()


Parameters = Sequence[Sequence[float]]
Change = Callable[[Tensor, Sequence[float], Draws], Tensor]


@dataclass(frozen=True)
class Corruption:
    """A corruption.

    Attributes:
        change: ``(images float32 [B,C,S,S] in [0, 1], parameters, draws) -> images``.
        small, large: Parameters of the five strengths at 32 and at 224 pixels.
        lengths: Which of the parameters are lengths in pixels.
    """

    change: Change
    small: Parameters
    large: Parameters
    lengths: tuple[int, ...]

    def parameters(self, strength: int, side: int) -> list[float]:
        """Return the parameters for images of a side."""
        share = min(1.0, max(0.0, math.log(side / SMALL) / math.log(LARGE / SMALL)))
        beyond = side / min(LARGE, max(SMALL, side))
        pairs = zip(self.small[strength - 1], self.large[strength - 1], strict=True)
        found = [(1 - share) * a + share * b for a, b in pairs]
        return [value * beyond if place in self.lengths else value for place, value in enumerate(found)]


#: By name, in the order of the paper.
CORRUPTIONS: dict[str, Corruption] = {}


def corrupt(images: Tensor, name: str, strength: int, index: Tensor, seed: int = 0) -> Tensor:
    """Return corrupted images, uint8 ``[B,C,S,S]`` as those that are given.

    Args:
        images: Of the size that the network sees.
        name: One of ``CORRUPTIONS``.
        strength: 1 to 5.
        index: int64 ``[B]``, the stable index of each image.
        seed: Of the draws.

    Raises:
        UserError: There is no such corruption or strength.
    """
    if name not in CORRUPTIONS:
        raise UserError(f"eval.corruptions.names: there is no '{name}'.{nearest(name, CORRUPTIONS)}")
    if strength not in STRENGTHS:
        raise UserError(f"eval.corruptions.strengths: there is no strength {strength}; use some of 1 to 5.")
    entry = CORRUPTIONS[name]
    parameters = entry.parameters(strength, images.shape[-1])
    own = fold_in(fold_in(seed, list(CORRUPTIONS).index(name)), strength)
    done = []
    for rows in torch.split(torch.arange(len(images)), max(1, NUMBERS // max(1, images[0].numel()))):
        changed = entry.change(images[rows].cpu().float() / 255, parameters, Draws(own, index[rows]))
        done.append((changed.clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(done)


def _corruption(small: Parameters, large: Parameters, lengths: tuple[int, ...] = ()) -> Callable[[Change], Change]:
    def add(change: Change) -> Change:
        CORRUPTIONS[change.__name__.strip("_")] = Corruption(change, small, large, lengths)
        return change

    return add


def _each(*values: float) -> list[list[float]]:
    return [[value] for value in values]


@_corruption(_each(0.04, 0.06, 0.08, 0.09, 0.10), _each(0.08, 0.12, 0.18, 0.26, 0.38))
def _gaussian_noise(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    return images + parameters[0] * draws.normal(0, images[0].numel()).view_as(images)


@_corruption(_each(500, 250, 100, 75, 50), _each(60, 25, 12, 5, 3))
def _shot_noise(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    photons = parameters[0]
    most = int(photons + 10 * math.sqrt(photons) + 10)
    # the numbers of a Poisson distribution by its inverse, one table for the 256 values a pixel can have
    table = stats.poisson.cdf(np.arange(most), np.arange(256)[:, None] / 255 * photons).clip(max=1)
    value = (images * 255).round().long()
    share = draws.uniform(0, images[0].numel()).view_as(images).double()
    places = np.searchsorted((table + np.arange(256)[:, None]).ravel(), (share + value).numpy(), side="right")
    counts = (torch.from_numpy(places) - value * most).clamp(0, most)
    return counts.float() / photons


@_corruption(_each(0.01, 0.02, 0.03, 0.05, 0.07), _each(0.03, 0.06, 0.09, 0.17, 0.27))
def _impulse_noise(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    share = draws.uniform(0, images[0].numel()).view_as(images)
    return torch.where(share < parameters[0], (share < parameters[0] / 2).float(), images)


@_corruption(
    [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    lengths=(0,),
)
def _defocus_blur(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    radius, softness = parameters
    reach = math.ceil(radius) + 2
    along = torch.arange(-reach, reach + 1)
    disk = ((along**2 + along[:, None] ** 2) <= radius**2).float().numpy()
    kernel = torch.from_numpy(ndimage.gaussian_filter(disk, softness, radius=1 if radius <= 8 else 2, mode="constant"))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1, -1)
    padded = F.pad(images, [reach] * 4, mode="replicate")
    return F.conv2d(padded, kernel, groups=images.shape[1])


@_corruption(
    [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    lengths=(0, 1),
)
def _glass_blur(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    sigma, reach, times = parameters[0], max(1, round(parameters[1])), round(parameters[2])
    count, channels, side = images.shape[:3]
    source = np.tile(np.arange(side * side), (count, 1))
    rows = np.arange(count)
    for turn in range(times):  # neighbours change places, one pixel after the other
        steps = (draws.uniform(turn, 2 * side * side).numpy() * 2 * reach).astype(int) - reach
        for y in range(side - reach, reach, -1):
            for x in range(side - reach, reach, -1):
                here = y * side + x
                other = here + steps[:, here] * side + steps[:, side * side + here]
                moved = source[rows, here].copy()
                source[rows, here] = source[rows, other]
                source[rows, other] = moved
    blurred = _gaussian(images, sigma).flatten(2)
    places = torch.from_numpy(source)[:, None].expand(-1, channels, -1)
    return _gaussian(blurred.gather(2, places).view_as(images), sigma)


@_corruption(
    [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)], [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)], lengths=(0, 1)
)
def _motion_blur(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    angle = (draws.uniform(0, 1)[:, 0] - 0.5) * math.pi / 2  # 45 degrees to either side
    return _moved(images, parameters[0], parameters[1], angle)


@_corruption(
    [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
    [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
)
def _zoom_blur(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    factors = np.arange(1, parameters[0], parameters[1])
    return (images + sum(_zoomed(images, float(factor)) for factor in factors)) / (len(factors) + 1)


@_corruption(
    [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
    lengths=(4, 5),
)
def _snow(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    mean, std, zoom, threshold, reach, sigma, mix = parameters
    side = images.shape[-1]
    flakes = _zoomed(mean + std * draws.normal(0, side * side).view(-1, 1, side, side), zoom)
    flakes = torch.where(flakes < threshold, torch.zeros_like(flakes), flakes).clamp(0, 1)
    angle = (draws.uniform(1, 1)[:, 0] * 90 - 135) * math.pi / 180  # falling
    flakes = _moved(flakes, reach, sigma, angle)
    colours = images.shape[1] == 3
    grey = torch.einsum("bchw,c->bhw", images, LUMA)[:, None] if colours else images.mean(1, keepdim=True)
    paler = torch.maximum(images, grey * 1.5 + 0.5)
    return mix * images + (1 - mix) * paler + flakes + flakes.flip(2, 3)


@_corruption(
    [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
)
def _frost(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    noise = plasma(draws, images.shape[-1], 1.7)[:, None]
    ridges = 1 - (2 * noise - 1).abs()  # bright lines where the noise passes its middle, as crystals
    return parameters[0] * images + parameters[1] * ridges**2


@_corruption(
    [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)], [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)]
)
def _fog(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    amount, decay = parameters
    most = images.amax((1, 2, 3), keepdim=True)
    return (images + amount * plasma(draws, images.shape[-1], decay)[:, None]) * most / (most + amount)


@_corruption(_each(0.05, 0.1, 0.15, 0.2, 0.3), _each(0.1, 0.2, 0.3, 0.4, 0.5))
def _brightness(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    value = images.amax(1, keepdim=True)  # of hue, saturation and value
    raised = (value + parameters[0]).clamp(max=1)
    return torch.where(value > 0, images * raised / value.clamp_min(1e-6), raised)


@_corruption(_each(0.75, 0.5, 0.4, 0.3, 0.15), _each(0.4, 0.3, 0.2, 0.1, 0.05))
def _contrast(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * parameters[0] + mean


@_corruption(  # shares of the side: how far, how smooth, and the corners of the affine part
    [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)],
)
def _elastic_transform(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    count, side = len(images), images.shape[-1]
    far, smooth, corners = (value * side for value in parameters)
    third, middle = side // 3, side // 2
    points = torch.tensor([[middle + third, middle + third], [middle + third, middle - third], [middle - third] * 2])
    moved = points + (2 * draws.uniform(0, 6).view(count, 3, 2) - 1) * corners
    ones = torch.ones(count, 3, 1)
    # where each pixel of the result comes from: the affine map from the moved points back to the points
    back = torch.linalg.solve(torch.cat([moved, ones], 2), points.float().expand(count, -1, -1))
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    grid = torch.stack([columns, rows, torch.ones_like(rows)], 2).expand(count, -1, -1, -1)
    source = torch.einsum("bhwi,bij->bhwj", grid, back)
    result = _sampled(images, source)
    if far > 0:
        wobble = (2 * draws.uniform(1, 2 * side * side).view(count, 2, side, side) - 1).numpy()
        smoothed = ndimage.gaussian_filter(wobble, (0, 0, smooth, smooth), mode="reflect", truncate=3) * far
        result = _sampled(result, grid[..., :2] + torch.from_numpy(smoothed).permute(0, 2, 3, 1))
    return result


@_corruption(_each(0.95, 0.9, 0.85, 0.75, 0.65), _each(0.6, 0.5, 0.4, 0.3, 0.25))
def _pixelate(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    side = images.shape[-1]
    small = max(1, int(side * parameters[0]))
    box = Image.Resampling.BOX
    return _by_pillow(images, lambda image: image.resize((small, small), box).resize((side, side), box))


@_corruption(_each(80, 65, 58, 50, 40), _each(25, 18, 15, 10, 7))
def _jpeg_compression(images: Tensor, parameters: Sequence[float], draws: Draws) -> Tensor:
    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=round(parameters[0]))
        return Image.open(file)

    return _by_pillow(images, compressed)


def _by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Change images as pictures of Pillow: in colour where there are three channels, or else each channel alone."""
    pixels = (images * 255).round().to(torch.uint8)
    together = pixels.shape[1] == 3
    done = []
    for image in pixels if together else pixels.flatten(0, 1):
        picture = Image.fromarray((image.permute(1, 2, 0) if together else image).contiguous().numpy())
        found = torch.from_numpy(np.array(change(picture)))
        done.append(found.permute(2, 0, 1) if together else found)
    return torch.stack(done).view_as(images).float() / 255


def _gaussian(images: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def _moved(images: Tensor, reach: float, sigma: float, angle: Tensor) -> Tensor:
    """Blur along a line at an angle ``[B]``: half a Gaussian, from each pixel on."""
    side = images.shape[-1]
    steps = torch.arange(2 * max(1, round(reach)) + 1).float()
    weights = (-(steps**2) / (2 * sigma**2)).exp()
    weights /= weights.sum()
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    grid = torch.stack([columns, rows], 2)
    along = torch.stack([angle.cos(), angle.sin()], 1)[:, None, None]
    result = torch.zeros_like(images)
    for step, weight in zip(steps.tolist(), weights.tolist(), strict=True):
        result += weight * _sampled(images, grid + step * along, "border")
    return result


def _zoomed(images: Tensor, factor: float) -> Tensor:
    """Return the middle of images, enlarged."""
    side = images.shape[-1]
    places = (torch.arange(side).float() - (side - 1) / 2) / factor + (side - 1) / 2
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    return _sampled(images, torch.stack([columns, rows], 2).expand(len(images), -1, -1, -1))


def _sampled(images: Tensor, places: Tensor, border: str = "reflection") -> Tensor:
    """Return images at places (x, y) in pixels, ``[B,S,S,2]``, bilinearly."""
    scale = 2 / max(1, images.shape[-1] - 1)
    return F.grid_sample(images, places * scale - 1, "bilinear", border, align_corners=True)


def plasma(draws: Draws, side: int, decay: float) -> Tensor:
    """Return fractal noise ``[B,S,S]`` in [0, 1] by diamonds and squares.

    Its jitter falls by ``decay`` squared a level: the authors' code multiplies the jitter by a draw as wide as itself.
    """
    whole = 2 ** math.ceil(math.log2(max(2, side)))
    noise = torch.zeros(len(draws.index), whole, whole)
    step, jitter, level = whole, 1e4, 0
    while step >= 2:
        half, count = step // 2, whole // step

        def wobble(stream: int, n: int = count, most: float = jitter) -> Tensor:
            return (2 * draws.uniform(stream, n * n).view(-1, n, n) - 1) * most

        corners = noise[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        total = total + total.roll(-1, 2)
        noise[:, half::step, half::step] = total / 4 + wobble(100 + 3 * level)
        middles = noise[:, half::step, half::step]
        upright = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        noise[:, ::step, half::step] = upright / 4 + wobble(101 + 3 * level)
        level_with = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        noise[:, half::step, ::step] = level_with / 4 + wobble(102 + 3 * level)
        step, jitter, level = half, jitter / decay**2, level + 1
    noise -= noise.amin((1, 2), keepdim=True)
    return (noise / noise.amax((1, 2), keepdim=True).clamp_min(1e-6))[:, :side, :side]
