"""DICOM: stored values times slope plus intercept, and of these what a window shows.

Grey pixels become floating-point values: black and white are those of ``data.value_range`` (in the units behind slope
and intercept, such as Hounsfield's), else of the file's first window (its linear function), else the range of the
stored bits. MONOCHROME1 is turned, so that white is bright. The frames of a file are channels. Colour has 8 bits.
"""

from __future__ import annotations

import importlib
import io
from functools import lru_cache
from typing import Any

import numpy as np

from selfsup.data.form import Array, Kind, UndecodableError
from selfsup.data.reader import Reader, Values, add, check_pixels

NEEDED = "DICOM needs a package: pip install 'selfsup[dicom]'"


@lru_cache
def pydicom() -> Any:
    """Return the package that reads DICOM, or None."""
    try:
        importlib.import_module("pydicom.pixels")
        return importlib.import_module("pydicom")
    except ImportError:
        return None


@add
class Dicom(Reader):
    """DICOM files with their preamble."""

    name = "dicom"
    endings = frozenset({".dcm", ".dicom"})
    extra = "dicom"

    def takes(self, head: bytes) -> bool:
        return head[128:132] == b"DICM"

    def installed(self) -> bool:
        return pydicom() is not None

    def kind(self, content: bytes, channel_axis: str | None) -> Kind:
        return _kind(_opened(content))

    def read(self, content: bytes, channel_axis: str | None, max_pixels: int) -> Values:
        found = _opened(content)
        kind = _kind(found)
        check_pixels(int(found.Rows), int(found.Columns), max_pixels)
        if kind.photograph:
            array = pydicom().pixels.pixel_array(found)  # as red, green and blue
            return Values(np.moveaxis(array, -1, 0))
        stored = found.pixel_array.reshape(kind.channels, int(found.Rows), int(found.Columns))
        slope, intercept = float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))
        values: Array = stored.astype(np.float64) * slope + intercept
        black, white = _range(found, slope, intercept)
        if str(found.PhotometricInterpretation) == "MONOCHROME1":
            black, white = white, black
        return Values(values, (black, white))


def _opened(content: bytes) -> Any:
    if pydicom() is None:
        raise UndecodableError(NEEDED)
    found = pydicom().dcmread(io.BytesIO(content))
    if "Rows" not in found or "PhotometricInterpretation" not in found:
        raise UndecodableError("it holds no pixels", "DICOM files without pixels")
    return found


def _kind(found: Any) -> Kind:
    frames, samples = int(found.get("NumberOfFrames", 1) or 1), int(found.get("SamplesPerPixel", 1))
    if samples == 3 and frames == 1 and int(found.BitsAllocated) == 8:
        return Kind(3, "uint8", True, (int(found.Rows), int(found.Columns)))
    if samples != 1 or str(found.PhotometricInterpretation) not in ("MONOCHROME1", "MONOCHROME2"):
        what = f"{found.PhotometricInterpretation} with {samples} samples, {frames} frames, {found.BitsAllocated} bits"
        raise UndecodableError(f"it is {what}", "DICOM that is neither grey nor one frame of 8-bit colour")
    return Kind(frames, "float32", shape=(int(found.Rows), int(found.Columns)))


def _range(found: Any, slope: float, intercept: float) -> tuple[float, float]:
    """Return the values that are black and white: of the first window, or of the bits that are stored."""
    centre, width = (_first(found.get(key)) for key in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None and width > 1:
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2  # DICOM PS3.3 C.11.2.1.2
    bits, signed = int(found.BitsStored), bool(found.get("PixelRepresentation", 0))
    least = -(2 ** (bits - 1)) if signed else 0
    ends = least * slope + intercept, (least + 2**bits - 1) * slope + intercept
    return min(ends), max(ends)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value if np.isscalar(value) or not hasattr(value, "__iter__") else next(iter(value)))
