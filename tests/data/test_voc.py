"""A folder laid out as PASCAL VOC: lists, masks that follow their images, and what is wrong with a folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measuring import evaluate
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import VOCSegmentation

from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.data.found import NOT_LISTED
from selfsup.errors import UserError
from selfsup.eval import eval_config

COLOURS = np.array([[20, 20, 20], [230, 30, 30], [30, 230, 30]], np.uint8)


def numbers(row, width=48, height=32):
    """Class numbers with an outline of 255: a rectangle of class 1 on the left and one of class 2 on the right."""
    truth = np.zeros((height, width), np.uint8)
    truth[6 + row % 5 : 26, 10:22] = 1
    truth[4:20, 27 : 34 + row % 4] = 2
    outline = np.zeros_like(truth, bool)
    outline[:, 1:] |= truth[:, 1:] != truth[:, :-1]
    return truth, np.where(outline, 255, truth).astype(np.uint8)


def write(root, train=8, val=4, ending=".jpg"):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    stems = [f"2007_{i:06d}" for i in range(train + val)]
    for i, stem in enumerate(stems):
        truth, mask = numbers(i)
        Image.fromarray(COLOURS[truth]).save(root / "JPEGImages" / f"{stem}{ending}", quality=95)
        picture = Image.fromarray(mask, "L")
        if i % 2:  # with a palette, as the real ones have; and plain grey
            picture = picture.convert("P")
            picture.putdata(mask.flatten().tolist())
        picture.save(root / "SegmentationClass" / f"{stem}.png")
    lists = root / "ImageSets/Segmentation"
    (lists / "train.txt").write_text("\n".join(stems[:train]) + "\n")
    (lists / "val.txt").write_text("\n".join(stems[train:]) + "\n")
    Image.fromarray(COLOURS[numbers(0)[0]]).save(root / "JPEGImages" / "unlisted.jpg")
    return root


def load(root, *more):
    given = ["data=voc", f"data.root={root}", "data.image_size=32", "data.holdout=0.25", "data.classes=[left,right]"]
    return load_splits(load_config([*given, *more]).data)


@pytest.mark.parametrize("resident", [True, False])
def test_the_lists_are_the_splits(tmp_path, resident):
    splits = load(write(tmp_path), "data.resident_limit_mb=" + ("100" if resident else "0"))
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (6, 2, 4)
    assert splits.train.resident == resident
    assert splits.train.labels is None
    assert splits.train.classes == ("left", "right")
    assert (splits.found.read, splits.found.left_out) == (12, {NOT_LISTED: {"": 1}})


@pytest.mark.parametrize("resident", [True, False])
def test_masks_follow_their_images(tmp_path, resident):
    splits = load(write(tmp_path, ending=".png"), "data.resident_limit_mb=" + ("100" if resident else "0"))
    for part, first in ((splits.train, 0), (splits.holdout, 0), (splits.test, 8)):
        chosen = torch.tensor([len(part) - 1, 0])
        images, masks = part.read(chosen), part.read_masks(chosen)
        for image, mask, index in zip(images, masks, part.index[chosen].tolist(), strict=True):
            truth, known = numbers(first + index)
            # the short side is 32 already: the middle 32 columns of 48
            assert np.array_equal(mask.numpy(), known[:, 8:40])
            assert np.array_equal(image.permute(1, 2, 0).numpy(), COLOURS[truth[:, 8:40]])


def test_smaller_masks_keep_to_class_numbers_and_place(tmp_path):
    test = load(write(tmp_path), "data.image_size=16").test
    masks = test.read_masks(torch.arange(4))
    assert masks.shape == (4, 16, 16)
    assert set(masks.flatten().tolist()) == {0, 1, 2, 255}
    for mask, row in zip(masks, range(8, 12), strict=True):
        known = numbers(row)[1][:, 8:40]
        both = torch.from_numpy(known).view(16, 2, 16, 2)
        inside = (both == both[:, :1, :, :1]).all(3).all(1)  # blocks of one value say what half the size must hold
        assert inside.float().mean() > 0.7
        assert torch.equal(mask[inside], both[:, 0, :, 0][inside])


def test_torchvision_reads_the_same_folder(tmp_path):
    root = write(tmp_path / "VOCdevkit" / "VOC2012")
    theirs = VOCSegmentation(str(tmp_path), year="2012", image_set="val")
    ours = load(tmp_path).test
    assert len(ours) == len(theirs)
    for position, (_, mask) in enumerate(theirs):
        assert np.array_equal(ours.read_masks(torch.tensor([position]))[0].numpy(), np.asarray(mask)[:, 8:40])
    assert load(root.parent).test.index.tolist() == ours.index.tolist()


def test_pascal_names_its_twenty_classes(tmp_path):
    splits = load_splits(load_config(["data=voc", f"data.root={write(tmp_path)}", "data.image_size=32"]).data)
    assert len(splits.train.classes) == 20
    # torchvision's own segmentation networks are trained on these, after a background
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    assert list(splits.train.classes) == FCN_ResNet50_Weights.DEFAULT.meta["categories"][1:]


def test_without_a_test_list_there_are_no_test_images(tmp_path):
    assert load(write(tmp_path), "data.test_list=null").test is None


def test_both_segmentation_protocols_run_on_it(tmp_path):
    class Means(nn.Module):
        def forward_dense(self, images):
            return F.adaptive_avg_pool2d(images, 16)

    config = eval_config(segmentation={"epochs": 5}, segmentation_knn={"k": 3})
    wanted = ["segmentation", "segmentation_knn"]
    records = evaluate(Means(), load(write(tmp_path / "v")), config, wanted, run_dir=tmp_path / "run")
    assert [r["protocol"] for r in records] == wanted
    assert all(set(r["per_class"]) == {"background", "left", "right"} for r in records)
    assert all(record["value"] > 0.7 for record in records)
    assert (tmp_path / "run" / "figures" / "segmentation.png").exists()


# what is wrong


def broken(root, change):
    write(root)
    masks, lists = root / "SegmentationClass", root / "ImageSets" / "Segmentation"
    first = masks / "2007_000000.png"
    if change == "missing":
        first.unlink()
    elif change == "damaged":
        first.write_bytes(first.read_bytes()[:60])
    elif change == "colours":
        Image.new("RGB", (48, 32)).save(first)
    elif change == "size":
        Image.new("L", (32, 48)).save(first)
    elif change == "list":
        (lists / "train.txt").unlink()
    elif change == "empty":
        (lists / "train.txt").write_text("\n")
    elif change == "image":
        (root / "JPEGImages" / "2007_000003.jpg").unlink()
    elif change == "folder":
        masks.rename(root / "elsewhere")
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"2007_000000\.png cannot be read as a mask"),
        ("damaged", r"2007_000000\.png cannot be read as a mask"),
        ("colours", "mode RGB"),
        ("size", "32 × 48 pixels and its image 48 × 32"),
        ("list", r"there is no .*train\.txt; choose one of those there are \(val\)"),
        ("empty", "names no images"),
        ("image", "1 of the 8 images .*2007_000003"),
        ("folder", "no folder SegmentationClass"),
    ],
)
def test_a_broken_folder_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load(broken(tmp_path, change))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"voc was not found in .*data\.root"):
        load(tmp_path)


def test_a_damaged_image_is_left_out_with_its_mask(tmp_path):
    root = write(tmp_path, train=8)
    (root / "JPEGImages" / "2007_000009.jpg").write_bytes(b"no image")
    test = load(root, "data.max_undecodable=0.5").test
    assert test.index.tolist() == [0, 2, 3]
    masks = test.read_masks(torch.arange(3))
    for mask, row in zip(masks, (8, 10, 11), strict=True):
        assert np.array_equal(mask.numpy(), numbers(row)[1][:, 8:40])


def test_grey_may_be_asked_for(tmp_path):
    for limit in (100, 0):
        root = tmp_path / "voc"
        splits = load(root if root.exists() else write(root), "data.channels=1", f"data.resident_limit_mb={limit}")
        assert splits.train.channels == splits.train.read(torch.arange(1)).shape[1] == 1
