"""TIFF of any number of channels, pages and bits. Every axis beside height and width is one of channels.

Pillow reads what has 8 bits, one page and at most colour and transparency, by which photographs are as ever; it lowers
colour of 16 bits to 8, and knows no other number of channels. So a 4-channel file whose fourth is not said to be
transparency has four channels, and the pages of a stack are channels. Overviews and previews are left out. Images are
turned upright, and those whose 0 is white so that white is bright, as Pillow does with what it reads.
"""

from __future__ import annotations

import importlib
import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from selfsup.data.form import ON_ITS_SIDE, Array, Kind, UndecodableError, depth_of
from selfsup.data.reader import Reader, Values, add, check_pixels

MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
NEEDED = "TIFF of several channels, pages or more than 8 bits a colour need packages: pip install 'selfsup[tiff]'"
BITS, SAMPLES = 258, 277  # of the file's tags: bits of each sample, samples of a pixel
MEANING, TURNED = 262, 274  # what values mean, of which 0 is that 0 is white; how the image is turned, as of EXIF


@lru_cache
def tifffile() -> Any:
    """Return the package that reads TIFF, or None; with it comes the one that decompresses."""
    try:
        importlib.import_module("imagecodecs")
        return importlib.import_module("tifffile")
    except ImportError:
        return None


@add
class Tiff(Reader):
    """TIFF and BigTIFF."""

    name = "tiff"
    endings = frozenset({".tif", ".tiff"})

    def takes(self, head: bytes) -> bool:
        return head.startswith(MAGICS)

    def kind(self, content: bytes, channel_axis: str | None) -> Kind | None:
        if _is_photograph(content):
            return None
        if tifffile() is None:
            array = _plain(content)
            return Kind(1, depth_of(array.dtype), shape=array.shape)
        with _opened(content) as file:
            series = file.series[0]
            channels, height, width = _sides(series)
            turned = _tag(series, TURNED, 1) >= ON_ITS_SIDE
            return Kind(channels, depth_of(series.dtype), shape=(width, height) if turned else (height, width))

    def read(self, content: bytes, channel_axis: str | None, max_pixels: int) -> Values | None:
        if _is_photograph(content):
            return None
        if tifffile() is None:
            return Values(_plain(content)[None])
        with _opened(content) as file:
            series = file.series[0]
            channels, height, width = _sides(series)
            check_pixels(height, width, max_pixels)
            array = series.asarray()
            sides = [axis for axis in range(array.ndim) if series.axes[axis] in "YX"]
            array = np.moveaxis(array, sides, (-2, -1)).reshape(channels, height, width)
            array = _upright(array, _tag(series, TURNED, 1))
            return _bright(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")), _tag(series, MEANING, 1))


def _opened(content: bytes) -> Any:
    return tifffile().TiffFile(io.BytesIO(content))


def _sides(series: Any) -> tuple[int, int, int]:
    """Return channels, height and width."""
    by_axis = dict(zip(series.axes, series.shape, strict=True))
    if "X" not in by_axis or "Y" not in by_axis or series.dtype.kind not in "buif" or 0 in series.shape:
        raise UndecodableError(f"it holds {series.dtype} {series.axes} {list(series.shape)}", "TIFF without an image")
    height, width = int(by_axis["Y"]), int(by_axis["X"])
    return int(np.prod(series.shape)) // (height * width), height, width


def _tag(series: Any, number: int, default: int) -> int:
    found = series.keyframe.tags.get(number)
    return default if found is None else int(found.value)


def _upright(array: Array, turned: int) -> Array:
    """Return ``[C,H,W]`` turned upright by EXIF's number."""
    upright = array.swapaxes(-2, -1) if turned >= ON_ITS_SIDE else array
    upright = upright[..., ::-1] if turned in (2, 3, 6, 7) else upright
    return upright[..., ::-1, :] if turned in (3, 4, 7, 8) else upright


def _bright(array: Array, meaning: int) -> Values:
    """Return values so that white is bright; floating-point and signed ones, whose white nobody says, stay."""
    if meaning != 0 or array.dtype.kind not in "bu":
        return Values(array)
    return Values(~array) if array.dtype.itemsize == 1 else Values(array, (np.iinfo(array.dtype).max, 0))


def _is_photograph(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            tags, bands = getattr(image, "tag_v2", {}), len(image.getbands())
            bits = tags.get(BITS, (8,))
            deep = max(bits if isinstance(bits, tuple) else (bits,)) > 8
            # Pillow drops a fourth channel of which nothing is said, or calls it X
            whole = tags.get(SAMPLES, bands) == bands and image.mode != "RGBX"
            return not deep and whole and getattr(image, "n_frames", 1) == 1
    except Exception:  # Pillow has many ways to say that it does not know a file
        return False


def _plain(content: bytes) -> Array:
    """Return a grey image of one page, which Pillow reads with all its bits."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            tags = getattr(image, "tag_v2", {})
            if image.mode.startswith(("I", "F")) and tags.get(SAMPLES, 1) == 1 and getattr(image, "n_frames", 1) == 1:
                return np.asarray(image)
    except Exception:  # noqa: S110 as above
        pass
    raise UndecodableError(NEEDED)
