"""One encoded image to one square of uint8 RGB."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

#: Raised when the pixels that come out of the same file change, so that no cache of older pixels is read.
VERSION = 2
MAX_PIXELS = 2**26  # a decoded RGB image of 192 MiB; beyond it a file is a mistake, or made to exhaust the memory


class UndecodableError(Exception):
    """A file that is no image, is damaged, or is too large."""


def decode_image(source: str | os.PathLike[str] | bytes, size: int) -> Tensor:
    """Decode the first frame of an image file, or of its content: uint8 ``[3,size,size]``.

    The image is turned upright (EXIF), converted to RGB, the central square kept and resized to ``size`` with
    antialiasing. Transparency is laid over white. 16-bit grey is scaled to 8 bits, not clipped.

    Raises:
        UndecodableError: The file cannot be decoded, or would take more than ``MAX_PIXELS`` pixels.
    """
    name = "the image" if isinstance(source, bytes) else source
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        upright = _upright(content, size)
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise UndecodableError(f"{name} cannot be decoded: {error}") from error
    height, width = upright.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = upright[:, top : top + side, left : left + side]
    if side == size:
        return square
    # a third of the time that Pillow takes for the same filter, and the same within a level
    return interpolate(square[None], (size, size), mode="bilinear", antialias=True)[0]


def _upright(content: bytes, size: int) -> Tensor:
    """Return the image uint8 ``[3,H,W]``, perhaps at a fraction of its size that is at least twice ``size``."""
    with Image.open(io.BytesIO(content)) as image:
        full = image.size
        image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size
        if image.width * image.height > MAX_PIXELS:
            raise UndecodableError(f"{image.width} × {image.height} pixels are more than {MAX_PIXELS}")
        if image.format == "JPEG" and image.mode in ("L", "RGB") and image.size == full:
            return _jpeg(content)
        return torch.from_numpy(np.array(_rgb(ImageOps.exif_transpose(image)))).permute(2, 0, 1)


def _jpeg(content: bytes) -> Tensor:
    # The same library as Pillow's under a thinner wrapper: the same pixels in two thirds of the time. It cannot shrink
    # while it decodes, and it converts CMYK without looking at what Adobe's files mean by it.
    from torchvision.io import ImageReadMode, decode_jpeg

    buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels: Tensor = decode_jpeg(buffer, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
        return Image.fromarray((np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point images have no known range")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")
