"""One image file to one square of uint8 RGB."""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 2**26  # a decoded RGB image of 192 MiB; beyond it a file is a mistake, or made to exhaust the memory


class UndecodableError(Exception):
    """A file that is no image, is damaged, or is too large."""


def decode_image(path: str | os.PathLike[str], size: int) -> Tensor:
    """Read the first frame of an image file: uint8 ``[3,size,size]``.

    The image is turned upright (EXIF), converted to RGB, its short side resized to ``size`` with antialiasing, and
    the central square kept. Transparency is laid over white. 16-bit grey is scaled to 8 bits, not clipped.

    Raises:
        UndecodableError: The file cannot be decoded, or would take more than ``MAX_PIXELS`` pixels.
    """
    try:
        with Image.open(path) as image:
            image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size
            if image.width * image.height > MAX_PIXELS:
                raise UndecodableError(f"{path} has {image.width} × {image.height} pixels, more than {MAX_PIXELS}")
            upright = _rgb(ImageOps.exif_transpose(image))
    except UndecodableError:
        raise
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise UndecodableError(f"{path} cannot be decoded: {error}") from error
    side = min(upright.size)
    left, top = (upright.width - side) / 2, (upright.height - side) / 2
    if upright.size != (size, size):
        square = (left, top, left + side, top + side)
        upright = upright.resize((size, size), Image.Resampling.BILINEAR, box=square)
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
        return Image.fromarray((np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point images have no known range")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")
