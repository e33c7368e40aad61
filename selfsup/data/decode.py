"""One encoded image with a shorter side of a given length.

Of photographs it is uint8 RGB, of others it has the channels and the depth of the file.
"""

from __future__ import annotations

import importlib
import io
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

import selfsup.data.readers  # noqa: F401 each file registers itself
from selfsup.data.form import ON_ITS_SIDE, PHOTOGRAPHS, WHITE, Form, Kind, UndecodableError, bring
from selfsup.data.reader import HEAD, READERS, reader_of, too_many
from selfsup.shortage import machine_lacks_memory

#: Raised when the pixels that come out of the same file change, so that no cache of older pixels is read.
VERSION = 2
MAX_PIXELS = 2**26  # a decoded RGB image of 192 MiB; beyond it a file is a mistake, or made to exhaust the memory
NO_HEIF = "HEIC and HEIF need a package: pip install 'selfsup[heif]'"
NO_TYPE = "of a type that no decoder here knows, or damaged at the start"

ORIENTATION = 0x0112  # the EXIF field of how an image is turned

#: What Pillow registers and cannot read by itself, or what holds no pictures.
_NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_SHRINK = frozenset({"JPEG", "MPO"})  # decoded at a fraction of their size by Pillow
HEIF_ENDINGS = frozenset({".heic", ".heif", ".hif", ".heics", ".heifs"})


@lru_cache
def readable_endings() -> frozenset[str]:
    """Return the endings of the files that the installed Pillow reads, ``.jpg`` among them; HEIF is asked for apart."""
    Image.init()
    known = {e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in _NOT_READ}
    own = {ending for reader in READERS.values() if reader.installed() for ending in reader.endings}
    return frozenset(known - HEIF_ENDINGS | {".mpo"} | own)  # .mpo is a JPEG and more


def is_readable(ending: str) -> bool:
    """Whether files with this ending (``.jpg``) are images that are read here."""
    return ending in readable_endings() or (ending in HEIF_ENDINGS and heif_is_readable())


@lru_cache
def heif_is_readable() -> bool:
    """Whether the package that reads HEIC and HEIF is installed. It is imported where there are such files only."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def decode_image(
    source: str | os.PathLike[str] | bytes,
    size: int,
    *,
    max_pixels: int = MAX_PIXELS,
    form: Form = PHOTOGRAPHS,
    max_aspect: float = 1.0,
) -> Tensor:
    """Decode the first frame of an image file, or of its content: ``[C,h,w]`` with a shorter side of ``size``.

    The image is turned upright (EXIF), has the channels and the type of a form, and is resized with antialiasing.
    Photographs (8 bits, grey or colour) are converted to RGB, with transparency laid over white; see
    ``selfsup/data/readers`` for others.

    Args:
        source: The file or its content.
        size: Length of the shorter side.
        max_pixels: Most pixels that are decoded. A JPEG counts as it is decoded: at a fraction of its size where that
            is large enough.
        form: Channels, type and range of the values.
        max_aspect: Most of the longer side that is kept, from the middle, as a multiple of the shorter; 1 keeps the
            central square.

    Raises:
        UndecodableError: The file cannot be decoded, would take more than ``max_pixels`` pixels, or is not of the form.
    """
    name = "the image" if isinstance(source, bytes) else source
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not content:
            raise UndecodableError("empty")
        upright, full = _upright(content, size, max_pixels, form)
    except Exception as error:  # damaged files make the decoders raise nearly anything
        _refuse_shortage(error, max_pixels)
        raise UndecodableError(f"{name} cannot be decoded: {error}", _reason(error, max_pixels)) from error
    top, left, height, width = middle(upright.shape[-2], upright.shape[-1], max_aspect)
    return resize(upright[:, top : top + height, left : left + width], shape_for(*full, size, max_aspect))


def full_shape(
    source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS, channel_axis: str | None = None
) -> tuple[int, int]:
    """Return height and width of an image, upright, from the head of its file alone; raises what decoders raise."""
    own = _own_kind(source, channel_axis)
    if own is not None and own.shape is not None:
        return own.shape
    with (
        io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file,
        _opened(file, max_pixels) as image,
    ):
        return _full_size(image)


def shape_of(
    source: str | os.PathLike[str] | bytes,
    size: int,
    max_pixels: int,
    max_aspect: float,
    channel_axis: str | None = None,
) -> tuple[int, int]:
    """Return the shape (height, width) that ``decode_image`` brings an image to, from the head of its file alone.

    Raises:
        UndecodableError: There is no image.
    """
    try:
        return shape_for(*full_shape(source, max_pixels, channel_axis), size, max_aspect)
    except Exception as error:
        _refuse_shortage(error, max_pixels)
        raise UndecodableError(f"the shape cannot be read: {error}", _reason(error, max_pixels)) from error


def middle(height: int, width: int, max_aspect: float) -> tuple[int, int, int, int]:
    """Return top, left, height and width of what is kept of an image: all but the ends of very long ones."""
    most = int(min(height, width) * max_aspect)
    kept_height, kept_width = min(height, most), min(width, most)
    return (height - kept_height) // 2, (width - kept_width) // 2, kept_height, kept_width


def shape_for(height: int, width: int, size: int, max_aspect: float) -> tuple[int, int]:
    """Return height and width of what is kept of an image when its shorter side is ``size``; as torchvision rounds."""
    _, _, height, width = middle(height, width, max_aspect)
    short = min(height, width)
    return height * size // short, width * size // short


def resize(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return an image ``[C,H,W]`` as ``[C,*shape]`` of the same type, antialiased."""
    if image.shape[-2:] == shape:
        return image
    # a third of the time that Pillow takes for the same filter, and the same within a level
    if image.dtype != torch.uint16:
        return interpolate(image[None], shape, mode="bilinear", antialias=True)[0]
    return interpolate(image[None].float(), shape, mode="bilinear", antialias=True)[0].round().to(torch.uint16)


def _refuse_shortage(error: Exception, max_pixels: int) -> None:
    """Raise where the machine lacks memory, which says nothing about the image."""
    if machine_lacks_memory(error, 3 * min(max_pixels, MAX_PIXELS)):
        raise MemoryError(f"for the pixels of an image: {error}") from error


def _reason(error: Exception, max_pixels: int) -> str:
    """Say what is wrong without what is particular to one file, so that files can be counted by it."""
    if isinstance(error, UndecodableError):
        return error.reason
    if isinstance(error, Image.DecompressionBombError):
        return too_many(max_pixels)
    if isinstance(error, UnidentifiedImageError):
        return NO_TYPE
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return "damaged: " + re.sub(r"\s*\([^)]*\d[^)]*\)|\b(0x)?\d+\b", "", text)[:80].strip()


def look(source: Path | bytes, channel_axis: str | None = None) -> Kind:
    """Return what an image file says of its channels and the depth of its values, without its pixels.

    Raises:
        Exception: Of any type, where the file is no image.
    """
    if (found := _own_kind(source, channel_axis)) is not None:
        return found
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        if image.mode.startswith("I") or image.mode == "F":
            return Kind(1, "float32" if image.mode == "F" else "uint16")
        return Kind(len(image.getbands()) if image.mode not in ("P", "1") else 3, "uint8", True)


def _own_kind(source: str | os.PathLike[str] | bytes, channel_axis: str | None) -> Kind | None:
    """Return what a file holds that Pillow does not read truly; None of others."""
    if isinstance(source, bytes):
        reader = reader_of(source[:HEAD])
        return None if reader is None else reader.kind(source, channel_axis)
    with Path(source).open("rb") as file:
        head = file.read(HEAD)
        reader = reader_of(head)
        return None if reader is None else reader.kind(head + file.read(), channel_axis)


def _upright(content: bytes, size: int, max_pixels: int, form: Form) -> tuple[Tensor, tuple[int, int]]:
    """Return the image ``[C,H,W]`` in a form, perhaps at a fraction of its size, and its full height and width.

    At a fraction it is at least twice ``size``.
    """
    reader = reader_of(content[:HEAD])
    if reader is not None and (values := reader.read(content, form.channel_axis, max_pixels)) is not None:
        whole = bring(values.array, form, values.own_range)
        return whole, (whole.shape[1], whole.shape[2])
    with _opened(io.BytesIO(content), max_pixels) as image:
        stored, full = image.size, _full_size(image)
        image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size
        if image.width * image.height > max_pixels:
            raise UndecodableError(f"it has {image.width} × {image.height} pixels", too_many(max_pixels))
        if image.format == "JPEG" and image.mode in ("L", "RGB") and image.size == stored:
            pixels, shrinks = _jpeg(content), False
        else:
            pixels, shrinks = _pixels(ImageOps.exif_transpose(image), form), image.format in _SHRINK
        shape = full if shrinks else (pixels.shape[1], pixels.shape[2])
        if form.depth != "uint8" or len(pixels) != form.channels or pixels.dtype != torch.uint8:
            pixels = bring(pixels.numpy(), form)
        return pixels, shape


def _full_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width of an image that has not been decoded, when it is turned upright."""
    turned = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) >= ON_ITS_SIDE  # of TIFF Pillow has done it
    return image.size if turned else (image.height, image.width)


def _opened(file: BinaryIO, max_pixels: int) -> Image.Image:
    # Pillow's own limit is for those who have none; where more is asked for, it would stop what is allowed here
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    # by the content: phones give HEIC the ending of a JPEG, too
    head = file.read(12)
    file.seek(0)
    missing = head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not heif_is_readable()
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        if missing:
            raise UndecodableError(NO_HEIF) from error
        raise


def _jpeg(content: bytes) -> Tensor:
    # The same library as Pillow's under a thinner wrapper: the same pixels in two thirds of the time. It cannot shrink
    # while it decodes, and it converts CMYK without looking at what Adobe's files mean by it.
    from torchvision.io import ImageReadMode, decode_jpeg

    buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels: Tensor = decode_jpeg(buffer, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    return pixels


def _pixels(image: Image.Image, form: Form) -> Tensor:
    """Return what Pillow holds, ``[C,H,W]``: RGB of photographs, or all their bands where so many are asked for."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.array(image)
        if image.mode.startswith("I") and values.min() >= 0 and values.max() <= WHITE["uint16"]:
            values = values.astype(np.uint16)  # Pillow holds some formats of 16 bits in 32
        return torch.from_numpy(values)[None]
    bands = len(image.getbands())
    if form.channels not in (1, 3) and bands == form.channels:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
