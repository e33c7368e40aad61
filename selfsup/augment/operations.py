"""Image operations over a whole batch, each image with its own parameter.

Images are float ``[B,C,H,W]`` in [0, 1] with one channel or three; factors are float ``[B]`` on the same device. Values
equal torchvision's functions of the same name, which clamp after every operation. Brightness multiplies, as in
torchvision (Kornia's plain ``adjust_brightness`` adds); grey weights are 0.2989, 0.587, 0.114 (Kornia: 0.299).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from selfsup.augment.recipes import Interpolation

OWN_HUES = (0.0, 1 / 3, 2 / 3)  # of the channels red, green and blue, in turns


def crop_and_resize(
    images: Tensor, box: Tensor, flip: Tensor, size: tuple[int, int], interpolation: Interpolation
) -> Tensor:
    """Crop each image, resize the crop with antialiasing and mirror it where asked.

    The whole is linear and separable: ``R · image · Cᵀ`` with one matrix for the rows and one for the columns.

    Args:
        images: ``[B,C,H,W]``.
        box: ``[B,4]``: top, left, height, width in pixels, inside the image.
        flip: bool ``[B]``.
        size: Height and width of the result.
        interpolation: ``bilinear`` or ``bicubic``; the second can leave [0, 1].
    """
    top, left, height, width = box.to(images.dtype).unbind(1)
    rows = resize_matrix(top, height, torch.zeros_like(flip), images.shape[-2], size[0], interpolation)
    columns = resize_matrix(left, width, flip, images.shape[-1], size[1], interpolation)
    return apply_separable(images, rows, columns)


def resize_matrix(
    start: Tensor, length: Tensor, reverse: Tensor, source: int, target: int, interpolation: Interpolation
) -> Tensor:
    """Return ``[B,target,source]``: antialiased resampling of ``start … start + length`` along one axis.

    The filter (triangle, or Keys' cubic with a = -0.5) is widened by the down-sampling factor, cut at the ends of the
    crop, and each row sums to 1.
    """
    radius = 1 if interpolation == "bilinear" else 2
    # No crop needs more taps than the whole image does, so their number is known without a look at the data
    taps = min(source, math.ceil(2 * radius * max(source / target, 1)) + 1)
    step = (length / target)[:, None]
    offset = (torch.arange(target, device=start.device, dtype=start.dtype) + 0.5) * step
    centre = (start[:, None] + torch.where(reverse[:, None], length[:, None] - offset, offset))[:, :, None]
    widening = step.clamp_min(1)[:, :, None]
    first = (centre - radius * widening).floor_().clamp_(0, source - taps)
    pixel = first + torch.arange(taps, device=start.device)
    low, high = start[:, None, None], (start + length)[:, None, None]
    distance = (pixel + 0.5 - centre).div_(widening).abs_()
    weight = _triangle(distance) if interpolation == "bilinear" else _keys_cubic(distance)
    weight *= (pixel >= low) & (pixel < high)
    weight /= weight.sum(dim=2, keepdim=True)
    return weight.new_zeros(len(start), target, source).scatter_(2, pixel.long(), weight)


def apply_separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``rows · image · columnsᵀ``: ``[B,C,H,W]``, ``[B,h,H]``, ``[B,w,W]`` to ``[B,C,h,w]``.

    On CUDA the products follow the process's TF32 setting.
    """
    wide = torch.bmm(images.flatten(1, 2), columns.transpose(1, 2)).view(*images.shape[:3], columns.shape[1])
    # one product a channel: a broadcast product would copy the matrices for every channel first
    return torch.stack([torch.bmm(rows, channel) for channel in wide.unbind(1)], dim=1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by the factor."""
    return (images * _spread(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from (factor > 1) or towards the mean grey of the image."""
    return blend(images, luminance(images).mean(dim=(1, 2, 3), keepdim=True), _spread(factor))


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from (factor > 1) or towards the grey of each pixel; one channel stays as it is."""
    return images if images.shape[1] == 1 else blend(images, luminance(images), _spread(factor))


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV, keeping value and saturation; one channel stays as it is.

    With V = max, m = min, C = V - m, the hue in sixths of a turn is ±(1 + (g + b - r - m) / C), the sign that of g - b,
    and a channel whose own hue lies d turns away is m + C · clamp(2 - 6 d, 0, 1).
    """
    if images.shape[1] == 1:
        return images
    hue, chroma, low = hexcone(*images.unbind(1))
    own = torch.tensor(OWN_HUES, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    hue = hue.add_(turns[:, None, None])
    return channel_of_hue(hue[:, None], own, chroma[:, None], low[:, None])


def hexcone(red: Tensor, green: Tensor, blue: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue in turns, chroma C and the lowest value m of pixels given by channel, see ``adjust_hue``."""
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(low)
    sixths = (green + blue).sub_(red).sub_(low).div_(chroma.clamp_min(1e-12)).add_(1)
    return sixths.copysign_(green - blue).div_(6), chroma, low


def channel_of_hue(hue: Tensor, own: float | Tensor, chroma: Tensor, low: Tensor) -> Tensor:
    """Return the value of the channel whose own hue is ``own``, see ``adjust_hue``."""
    distance = hue - own
    distance.sub_(distance.round()).abs_()
    return distance.mul_(-6).add_(2).clamp_(0, 1).mul_(chroma).add_(low)


def grayscale(images: Tensor) -> Tensor:
    """Replace every channel by the luminance; one channel stays as it is."""
    return images if images.shape[1] == 1 else luminance(images).expand_as(images)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur with a Gaussian of ``sigma`` pixels, cut to ``kernel`` (odd) pixels, on reflected borders.

    Raises:
        ValueError: Half the kernel reaches over the whole image.
    """
    height, width = images.shape[-2:]
    if kernel // 2 >= min(height, width):
        raise ValueError(f"a blur of {kernel} pixels does not fit an image of {height}×{width}")
    rows = blur_matrix(sigma, kernel, height)
    return apply_separable(images, rows, rows if width == height else blur_matrix(sigma, kernel, width))


def blur_matrix(sigma: Tensor, kernel: int, size: int) -> Tensor:
    """Return ``[B,size,size]``: the blur along one axis, its reflected borders included."""
    reach = torch.arange(-(kernel // 2), kernel // 2 + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (reach / sigma[:, None]).square())
    weight = functional.threshold(weight, 1e-12, 0.0)  # nothing to see, but subnormal numbers make the product crawl
    weight = weight / weight.sum(dim=1, keepdim=True)
    last = size - 1
    pixel = (torch.arange(size, device=sigma.device)[:, None] + reach).abs()
    pixel = last - (last - pixel).abs()  # mirrored at the first and at the last
    shape = (len(sigma), size, kernel)
    return weight.new_zeros(len(sigma), size, size).scatter_add_(2, pixel.expand(shape), weight[:, None].expand(shape))


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert the values at or above the threshold."""
    return torch.where(images >= threshold, 1 - images, images)


def luminance(images: Tensor) -> Tensor:
    """Return ``[B,1,H,W]``, the grey value of each pixel."""
    if images.shape[1] == 1:
        return images
    return weigh(*images.unbind(1))[:, None]


def weigh(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """Return the grey value of pixels given by channel."""
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blend(value: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return ``factor · value + (1 - factor) · other``, within [0, 1]."""
    return torch.lerp(other, value, factor).clamp_(0, 1)


def _spread(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_(min=0)


def _keys_cubic(distance: Tensor) -> Tensor:
    """With u = (2 - d)₊ and v = (1 - d)₊ both pieces of the cubic are u²(u - 1) / 2 + v²(1 - 2v)."""
    outer = (2 - distance).clamp_(min=0)
    inner = (1 - distance).clamp_(min=0)
    return (outer - 1).mul_(outer.square_()).mul_(0.5).add_((1 - 2 * inner).mul_(inner.square_()))
