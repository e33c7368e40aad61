"""A map of features as a file that a page can bring to life: places, classes, neighbours, and the images, small."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from selfsup.writing import replacing

if TYPE_CHECKING:
    from selfsup.eval.shown import FeatureMap

FILE = "feature_map.npz"
QUALITY = 82  # of the JPEG that holds all images
LARGEST = 2**26  # bytes of a map that is read; one of ours holds a hundredth of that


@dataclass(frozen=True)
class Atlas:
    """A map of features.

    Attributes:
        points: float32 ``[N,2]``.
        labels: int64 ``[N]``, -1 where one is missing, or all of them.
        neighbours: int64 ``[N,k]``: places in the map, nearest first.
        classes: Names of the labels, or nothing.
        title: What the images are.
        side: Pixels of an image.
        sheet: All images in rows of ``columns``, as a JPEG.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    classes: tuple[str, ...]
    title: str
    side: int
    sheet: bytes

    @property
    def columns(self) -> int:
        """Images in a row of the sheet."""
        return columns_of(len(self.points))


def columns_of(count: int) -> int:
    """Return how many of so many images stand in a row of a sheet."""
    return math.ceil(math.sqrt(count))


def save_atlas(shown: FeatureMap, folder: str | Path) -> Path:
    """Write a map of features into a folder of figures."""
    from PIL import Image

    count, _, side, _ = shown.pictures.shape
    columns = columns_of(count)
    sheet = Image.new("RGB", (columns * side, math.ceil(count / columns) * side))
    for place, picture in enumerate(shown.pictures.permute(0, 2, 3, 1).numpy()):
        sheet.paste(Image.fromarray(picture), (place % columns * side, place // columns * side))
    picture_file = io.BytesIO()
    sheet.save(picture_file, "JPEG", quality=QUALITY)
    labels = np.full(count, -1) if shown.labels is None else shown.labels.numpy()
    path = Path(folder) / FILE
    arrays: dict[str, NDArray[Any]] = {
        "points": shown.points.numpy().astype(np.float32),
        "labels": labels.astype(np.int64),
        "neighbours": shown.neighbours.numpy(),
        "classes": np.array(list(shown.classes or ()), dtype=np.str_),
        "title": np.array(shown.title),
        "side": np.array(side),
        "sheet": np.frombuffer(picture_file.getvalue(), dtype=np.uint8),
    }
    with replacing(path, "make room, or set eval.figures=false") as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return path


def read_atlas(folder: str | Path) -> Atlas | None:
    """Return the map in a folder of figures, or None where there is none that can be read, or one of a foreign size."""
    path = Path(folder) / FILE
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > LARGEST:
                return None
        with np.load(path, allow_pickle=False) as found:
            atlas = Atlas(
                found["points"].astype(np.float32),
                found["labels"].astype(np.int64),
                found["neighbours"].astype(np.int64),
                tuple(map(str, found["classes"])),
                str(found["title"]),
                int(found["side"]),
                found["sheet"].tobytes(),
            )
    except (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None
    count = len(atlas.points)
    fits = atlas.points.shape == (count, 2) and len(atlas.labels) == len(atlas.neighbours) == count > 0
    known = fits and bool(np.isfinite(atlas.points).all()) and bool((atlas.neighbours < count).all())
    return atlas if known and bool((atlas.neighbours >= 0).all()) else None
