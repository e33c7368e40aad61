"""Files that are no squares: all of them is kept, in memory, in a cache and streamed, and views say where they are."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from selfsup.augment import ViewGenerator, ViewRecipe
from selfsup.config import from_values, load_config
from selfsup.data import FileDataset, TrainLoader, eval_batches, load_splits
from selfsup.data.decode import decode_image, shape_of
from selfsup.data.encoded import Decoding
from selfsup.eval.encoder import Encoder
from selfsup.eval.pixels import masked_maps
from selfsup.functional import location_grid
from selfsup.ragged import Images, unpack
from selfsup.types import ImageFacts, Normalization

SIDES = [(30, 30), (30, 75), (80, 30), (48, 30), (30, 41), (60, 100)]  # height, width
PLACES = [{}, {"cache": True}, {"resident_limit_mb": 10}]


def ramp(height, width):
    """An image whose red is x and whose green is y, from the outer corner of the first pixel to that of the last."""
    x, y = ((np.arange(side) + 0.5) / side * 255 for side in (width, height))
    shape = (height, width)
    channels = np.broadcast_to(x, shape), np.broadcast_to(y[:, None], shape), np.full(shape, 128)
    return np.stack(channels, 2).round().astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ramps")
    for number, (height, width) in enumerate(SIDES):
        Image.fromarray(ramp(height, width)).save(root / f"{number}.png")
    return root


def load(root, tmp_path=None, **settings):
    given = {"root": str(root), "holdout": 0.0, "test_fraction": 0.0, "image_size": 30, "resident_limit_mb": 0}
    if settings.pop("cache", False):
        settings["cache"] = str(tmp_path / "cache")
    given |= settings
    return load_splits(
        load_config(["data=image_folder", *(f"data.{key}={value}" for key, value in given.items())]).data
    )


def whole(dataset):
    image, decoded, size = dataset.read_decodable(torch.arange(len(dataset)))
    assert decoded.all()
    return unpack(Images(image, size))


@pytest.mark.parametrize("settings", PLACES)
def test_both_sides_are_kept_wherever_the_pixels_are(folder, tmp_path, settings):
    train = load(folder, tmp_path, source_size=24, **settings).train
    assert (train.cached, train.resident) == ("cache" in settings, "resident_limit_mb" in settings)
    for image, (height, width) in zip(whole(train), SIDES, strict=True):
        expected = tv.resize(torch.from_numpy(ramp(height, width)).permute(2, 0, 1), 24, antialias=True)
        assert image.shape == expected.shape  # torchvision's rounding of the longer side
        assert (image.int() - expected.int()).abs().max() <= 1
    squares = train.read(torch.arange(len(SIDES)))
    assert squares.shape == (len(SIDES), 3, 24, 24)
    for batch in TrainLoader(train, 3, 0, workers=0, epochs=1):
        for image, index in zip(unpack(Images(batch.image, batch.size)), batch.index.tolist(), strict=True):
            assert torch.equal(image, whole(train)[index])


def test_images_that_memory_is_asked_for_come_in_the_order_of_the_question(folder):
    facts = ImageFacts("ramps", "train", 3, 30, Normalization((0.0,) * 3, (1.0,) * 3))
    names = [f"{number}.png" for number in range(len(SIDES))]
    part = FileDataset(folder, names, torch.arange(len(SIDES)) * 10, facts, decoding=Decoding(max_aspect=4.0))
    expected = whole(part)
    part.keep_in_memory()
    for order in ([4, 1, 0], [3, 5, 0, 1], [0]):
        image, decoded, size = part.read_decodable(torch.tensor(order))
        assert decoded.all()
        for found, row in zip(unpack(Images(image, size)), order, strict=True):
            assert torch.equal(found, expected[row])
    some = part.subset(torch.tensor([4, 1, 3])).first(torch.tensor([2, 0]))
    assert (some.index.tolist(), some.labels.tolist()) == ([4, 3], [40, 30])


def test_of_very_long_images_the_middle_is_kept(folder):
    for most in (1.0, 1.5, 4.0):
        for image, (height, width) in zip(whole(load(folder, max_aspect=most).train), SIDES, strict=True):
            short = min(height, width)
            kept = [min(side, int(short * most)) for side in (height, width)]
            assert list(image.shape[1:]) == [side * 30 // short for side in kept]
            span = [float(channel.max() - channel.min()) / 255 for channel in image[:2].float()]
            assert span == pytest.approx([kept[1] / width, kept[0] / height], abs=0.06)
            assert image[:2].float().mean(dim=(1, 2)).tolist() == pytest.approx([127.5, 127.5], abs=4)  # the middle


def test_squares_are_what_they_were(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for ending in ("png", "jpg"):
        Image.fromarray(noise).resize((400, 400)).save(tmp_path / f"a.{ending}")
        for side in (30, 400, 420):
            square = decode_image(tmp_path / f"a.{ending}", side)
            assert torch.equal(decode_image(tmp_path / f"a.{ending}", side, max_aspect=4.0), square)
    batch = next(eval_batches(load(tmp_path).train, 2))
    assert batch.size is None
    assert batch.image.shape == (2, 3, 30, 30)


@pytest.mark.parametrize(("format", "orientation"), [("JPEG", 1), ("JPEG", 6), ("PNG", 8), ("TIFF", 6), ("WEBP", 3)])
# the sides of the second, divided by eight as a JPEG is shrunk, do not have its shape
@pytest.mark.parametrize("size", [(401, 299), (2063, 1500)])
def test_the_head_of_a_file_says_the_shape(tmp_path, format, orientation, size):
    image = Image.new("RGB", size, "red")
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a", format=format, exif=exif)
    for most in (1.0, 1.2, 4.0):
        decoded = decode_image(tmp_path / "a", 64, max_aspect=most)
        assert shape_of(tmp_path / "a", 64, 2**26, most) == decoded.shape[1:]
    assert (decoded.shape[1] > decoded.shape[2]) == (orientation > 4)


@pytest.mark.parametrize("settings", PLACES)
def test_a_view_of_a_wide_or_tall_file_says_where_it_is(folder, tmp_path, settings):
    """The colour of every pixel of a view is its place in the file; sides that a central square lacks are seen."""
    train = load(folder, tmp_path, **settings).train
    recipe = ViewRecipe(scale=(0.1, 0.6), jitter_p=0.0, gray_p=0.0)
    views = ViewGenerator([recipe, recipe], [16, 16], Normalization((0.0,) * 3, (1.0,) * 3))
    reached = torch.zeros(2)
    for seed in range(12):
        batch = next(eval_batches(train, len(SIDES)))
        for view in views(batch.image, seed, batch.index, size=batch.size):
            found, expected = view.image[:, :2].permute(0, 2, 3, 1), location_grid(view.to_source, 16)
            step = 1 / torch.tensor([[min(s), min(s)] for s in SIDES])[:, None, None]
            assert ((found - expected).abs() < 0.7 * step + 0.006).all()
            reached = torch.maximum(reached, (expected - 0.5).abs().amax((0, 1, 2)))
    assert (reached > 0.47).all()


def test_the_views_of_an_image_do_not_depend_on_the_others(folder):
    train = load(folder).train
    views = ViewGenerator([ViewRecipe(blur_p=0.5), ViewRecipe()], [16, 12])
    together = next(eval_batches(train, len(SIDES)))
    made = views(together.image, 3, together.index, size=together.size)
    for row, alone in enumerate(eval_batches(train, 1)):
        for view, single in zip(made, views(alone.image, 3, alone.index, size=alone.size), strict=True):
            assert torch.equal(view.to_source[row], single.to_source[0])
            torch.testing.assert_close(view.image[row], single.image[0], rtol=0, atol=2e-5)


def test_masks_lie_on_the_squares_of_their_images(tmp_path):
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    for number, (height, width) in enumerate([(33, 70), (90, 41), (120, 200)]):
        mask = ramp(height, width)[:, :, number % 2]
        Image.fromarray(np.stack([mask] * 3, 2)).save(tmp_path / "JPEGImages" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "SegmentationClass" / f"{number}.png")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("0\n1\n2\n")
    for limit in (0, 10):
        settings = ["data=voc", f"data.root={tmp_path}", "data.test_list=null", "data.image_size=32", "data.holdout=0"]
        train = load_splits(load_config([*settings, f"data.resident_limit_mb={limit}"]).data).train
        every = torch.arange(3)
        assert {image.shape[1:] for image in whole(train)} == {(32, 67), (70, 32), (32, 53)}
        difference = train.read(every)[:, 0].int() - train.read_masks(every).int()
        # the nearest pixel of the file is at most half of one away: 255 levels over its side
        for part, side in zip(difference, (70, 90, 120), strict=True):
            assert part.abs().max() <= 0.5 * 255 / 33 + 2
            assert part.float().mean().abs() < 0.25 * 255 / side


def test_masks_lie_on_whole_frames_where_a_rectangle_is_evaluated(tmp_path):
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    shapes = [(48, 64), (96, 128), (90, 41), (60, 131)]  # two of the aspect, a high one, a wide one
    for number, (height, width) in enumerate(shapes):
        both = ramp(height, width)
        Image.fromarray(both).save(tmp_path / "JPEGImages" / f"{number}.png")
        Image.fromarray(both[:, :, number % 2]).save(tmp_path / "SegmentationClass" / f"{number}.png")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("0\n1\n2\n3\n")
    for limit, resize in ((0, None), (10, None), (10, 30)):
        settings = ["data=voc", f"data.root={tmp_path}", "data.test_list=null", "data.image_size=[24,32]"]
        more = ["data.source_size=36", "data.holdout=0", f"data.resident_limit_mb={limit}"]
        train = load_splits(load_config([*settings, *more]).data).train
        assert train.read_masks(torch.arange(4)).shape == (4, 36, 48)
        encoder = Encoder(None, batch_size=4, progress=False, resize=resize)
        with masked_maps(encoder, train) as batches:
            ((maps, masks),) = batches
        assert (maps.shape[2:], masks.shape) == ((24, 32), (4, 24, 32))
        share = 1.0 if resize is None else 24 / 30
        for number, (shape, picture, mask) in enumerate(zip(shapes, maps, masks, strict=True)):
            difference = 255 * picture[number % 2] - mask.float()
            side, cells = shape[1 - number % 2], (32, 24)[number % 2]
            assert difference.mean().abs() < 0.3 * 255 / side + 1
            assert difference.abs().max() <= 255 * share / cells + 255 / side + 2
        # nothing of a frame of the aspect is cut
        assert mask_reach(masks[0]) == pytest.approx(255 * share, abs=14)
    upright = load_splits(load_config([*settings[:3], "data.image_size=[32,24]", *more]).data).train
    assert upright.read_masks(torch.arange(4)).shape == (4, 48, 36)


def mask_reach(mask):
    return float(mask.max()) - float(mask.min())


def test_runs_that_saved_no_such_setting_go_on_with_central_squares(tmp_path):
    config = load_config(["method=simclr", "data=image_folder", f"data.root={tmp_path}"])
    assert config.data.max_aspect == 4.0
    saved = asdict(config)
    del saved["data"]["max_aspect"]
    assert from_values(saved).data.max_aspect == 1.0
    assert not hasattr(from_values(asdict(load_config(["method=simclr", "data=shapes"]))).data, "max_aspect")
