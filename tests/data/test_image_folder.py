import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from selfsup.data import FileDataset, TrainLoader, load_splits
from selfsup.data.decode import decode_image
from selfsup.data.form import Form, UndecodableError
from selfsup.data.listing import list_images
from selfsup.errors import UserError
from selfsup.registry import sources


def _load(root, **settings):
    config = sources["image_folder"].config
    return load_splits(config(root=str(root), **{"holdout": 0, "image_size": 8, "test_fraction": 0.0, **settings}))


def _image(path, colour=(10, 20, 30), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def _numbered(root, names):
    """Images whose red value is their place in ``names``."""
    for number, name in enumerate(names):
        _image(root / name, (number, 0, 0))


def _reds(dataset):
    return dataset.read(torch.arange(len(dataset)))[:, 0, 0, 0].tolist()


# --- kinds of files --------------------------------------------------------------------------------------------------


def _ramp():
    """Four clearly different quarters: red, green, blue, white; sides 16."""
    array = np.zeros((16, 16, 3), np.uint8)
    array[:8, :8, 0] = array[:8, 8:, 1] = array[8:, :8, 2] = 255
    array[8:, 8:] = 255
    return array


def _quarters(image):
    """The colours in the middle of the quarters: top left, top right, bottom left, bottom right."""
    return [image[:, y, x].tolist() for y in (4, 12) for x in (4, 12)]


_COLOURS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize("extension", ["png", "bmp", "webp", "tiff", "ppm", "jpg", "gif"])
def test_formats(tmp_path, extension):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(extension, {})
    Image.fromarray(_ramp()).save(tmp_path / f"a.{extension}", **options)
    image = decode_image(tmp_path / f"a.{extension}", 16)
    assert (image.shape, image.dtype) == ((3, 16, 16), torch.uint8)
    tolerance = 4 if extension == "jpg" else 0
    assert np.abs(np.array(_quarters(image)) - _COLOURS).max() <= tolerance


def test_grey_becomes_three_equal_channels(tmp_path):
    array = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(array).save(tmp_path / "a.png")
    assert torch.equal(decode_image(tmp_path / "a.png", 8), torch.from_numpy(array).expand(3, 8, 8))


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, extension):
    array = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    Image.fromarray(array).save(tmp_path / f"a.{extension}")
    expected = torch.from_numpy((array >> 8).astype(np.uint8)).expand(3, 8, 8)
    assert torch.equal(decode_image(tmp_path / f"a.{extension}", 8, form=Form(lowers=True)), expected)
    whole = decode_image(tmp_path / f"a.{extension}", 8, form=Form(1, "uint16"))
    assert torch.equal(whole, torch.from_numpy(array)[None])


def test_palette_and_one_bit(tmp_path):
    Image.fromarray(_ramp()).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert _quarters(decode_image(tmp_path / "p.png", 16)) == _COLOURS
    Image.new("1", (8, 8), 1).save(tmp_path / "b.png")
    assert (decode_image(tmp_path / "b.png", 8) == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    if mode == "P":
        palette = Image.new("P", (8, 8), 0)
        palette.putpalette([0, 0, 0, 90, 90, 90])
        palette.paste(1, (0, 0, 4, 8))
        palette.save(tmp_path / "a.png", transparency=0)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png", 8)
    assert (decoded[:, :, :4] == (90 if mode == "P" else 0)).all()
    assert (decoded[:, :, 4:] == 255).all()


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tiff")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    for name in ("a.tiff", "a.jpg"):
        red, green, blue = decode_image(tmp_path / name, 8)[:, 4, 4].tolist()
        assert red > 240
        assert green < 15
        assert blue < 15


@pytest.mark.parametrize(("orientation", "order"), [(1, (0, 1, 2, 3)), (3, (3, 2, 1, 0)), (6, (2, 0, 3, 1))])
def test_exif_rotation_is_applied(tmp_path, orientation, order):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_ramp()).save(tmp_path / "a.png", exif=exif)
    assert _quarters(decode_image(tmp_path / "a.png", 16)) == [_COLOURS[i] for i in order]


def test_first_frame_of_a_gif(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "a.gif", 8)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("tall", [False, True])
def test_the_central_square_is_kept(tmp_path, tall):
    array = np.full((16, 48, 3), 7, np.uint8)
    array[:, 16:32] = _ramp()
    Image.fromarray(array.transpose(1, 0, 2) if tall else array).save(tmp_path / "a.png")
    image = decode_image(tmp_path / "a.png", 16)
    assert torch.equal(image.mT if tall else image, torch.from_numpy(_ramp()).permute(2, 0, 1))


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / "a.png")
    image = decode_image(tmp_path / "a.png", 8)[:, :, 1:-1].float()
    assert (image - 100).abs().max() < 3  # sampling without averaging would give 0 or 200


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (300, 2)])
def test_tiny_images_are_enlarged(tmp_path, size):
    _image(tmp_path / "a.png", (1, 2, 3), size)
    assert decode_image(tmp_path / "a.png", 16)[:, 5, 5].tolist() == [1, 2, 3]


def test_a_large_jpeg_is_shrunk_well(tmp_path):
    Image.fromarray(_ramp()).resize((1600, 1200), Image.Resampling.NEAREST).save(tmp_path / "a.jpg", quality=95)
    image = decode_image(tmp_path / "a.jpg", 16)
    assert np.abs(np.array(_quarters(image)) - _COLOURS).max() <= 6


def _pillow(path):
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpegs_are_decoded_as_pillow_decodes_them(tmp_path, orientation, mode, subsampling):
    noise = np.random.default_rng(orientation).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if mode == "L" else {"subsampling": subsampling}
    Image.fromarray(noise).convert(mode).save(tmp_path / "a.jpg", quality=80, exif=exif, **options)
    expected = torch.from_numpy(np.array(_pillow(tmp_path / "a.jpg"))).permute(2, 0, 1)
    assert torch.equal(decode_image(tmp_path / "a.jpg", 24), expected)
    assert torch.equal(decode_image((tmp_path / "a.jpg").read_bytes(), 24), expected)


@pytest.mark.parametrize(("shape", "size"), [((50, 50), 24), ((40, 64), 32), ((64, 40), 57), ((20, 20), 33)])
def test_resizing_is_that_of_pillow_within_a_level(tmp_path, shape, size):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    square = _pillow(tmp_path / "a.png").crop((left, top, left + side, top + side))
    expected = np.array(square.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(decode_image(tmp_path / "a.png", size).numpy().astype(int) - expected).max() <= 1


def test_too_many_pixels(tmp_path):
    _image(tmp_path / "a.png", size=(11, 11))
    with pytest.raises(UndecodableError, match="11 × 11 pixels"):
        decode_image(tmp_path / "a.png", 8, max_pixels=120)
    assert decode_image(tmp_path / "a.png", 8, max_pixels=121).shape == (3, 8, 8)


def test_a_declared_giant_is_not_decoded(tmp_path):
    _image(tmp_path / "a.bmp")
    content = bytearray((tmp_path / "a.bmp").read_bytes())
    content[18:26] = (60000).to_bytes(4, "little") * 2
    (tmp_path / "a.bmp").write_bytes(content)
    with pytest.raises(UndecodableError):
        decode_image(tmp_path / "a.bmp", 8)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UndecodableError):
        decode_image(tmp_path / "a.png", 8)


def test_floating_point_images_are_named(tmp_path):
    Image.fromarray(np.full((4, 4), 1.5, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UndecodableError, match=r"a\.tiff.*no known range"):
        decode_image(tmp_path / "a.tiff", 8, form=Form(1, "float32"))


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_truncated_files(tmp_path, extension):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{extension}")
    content = (tmp_path / f"a.{extension}").read_bytes()
    (tmp_path / f"a.{extension}").write_bytes(content[: len(content) // 2])
    with pytest.raises(UndecodableError):
        decode_image(tmp_path / f"a.{extension}", 8)


# --- listing ---------------------------------------------------------------------------------------------------------


def test_listing_is_sorted_relative_and_leaves_out_what_is_no_image(tmp_path):
    for name in ("b/2.PNG", "b/10.jpg", "a.png", "b/.hidden.png", ".git/x.png", "notes.txt", "b/c/d/1.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path).names == ["a.png", "b/10.jpg", "b/2.PNG", "b/c/d/1.webp"]


def test_listing_follows_links_but_not_in_circles(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.png").touch()
    (tmp_path / "root" / "below").mkdir(parents=True)
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "root" / "below" / "up").symlink_to(tmp_path / "root")
    assert list_images(tmp_path / "root").names == ["linked/1.png"]


def test_many_files_are_listed_without_being_opened(tmp_path):
    for folder in range(20):
        (tmp_path / f"{folder:02}").mkdir()
        for number in range(1000):
            (tmp_path / f"{folder:02}" / f"{number:04}.jpg").touch()  # empty: opening one would fail
    splits = _load(tmp_path, resident_limit_mb=0, test_fraction=0.2, holdout=0.1)
    assert len(splits.train) + len(splits.holdout) + len(splits.test) == 20_000
    # each image falls by its own hash; four standard deviations of a binomial draw
    assert abs(len(splits.test) - 4000) < 4 * (20_000 * 0.2 * 0.8) ** 0.5
    assert abs(len(splits.holdout) - 1600) < 4 * (16_000 * 0.1 * 0.9) ** 0.5
    assert isinstance(splits.train, FileDataset)


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident_limit_mb", [0, 100])
def test_a_folder_for_each_class(tmp_path, resident_limit_mb):
    names = ["cat/1.png", "cat/deep/2.png", "dog/1.png", "emu/1.png"]
    _numbered(tmp_path, names)
    train = _load(tmp_path, resident_limit_mb=resident_limit_mb).train
    assert train.resident is (resident_limit_mb > 0)
    assert train.classes == ("cat", "dog", "emu")
    assert train.labels.tolist() == [0, 0, 1, 2]
    assert _reds(train) == train.index.tolist() == [0, 1, 2, 3]
    part = train.subset(torch.tensor([3, 1])).subset(torch.tensor([1, 0]))
    assert (_reds(part), part.labels.tolist(), part.index.tolist()) == ([1, 3], [0, 2], [1, 3])


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["a/1.png", "2.png"], ["images/1.png", "images/2.png"]])
def test_folders_without_labels(tmp_path, names):
    _numbered(tmp_path, names)
    train = _load(tmp_path).train
    assert train.labels is None
    assert train.classes is None
    assert len(train) == 2


def test_labels_on_request(tmp_path):
    _numbered(tmp_path, ["a/1.png", "b/2.png"])
    assert _load(tmp_path, labelled=False).train.labels is None
    _image(tmp_path / "loose.png")
    with pytest.raises(UserError, match=r"data.labelled is true but loose.png"):
        _load(tmp_path, labelled=True)


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_train_and_a_test_folder(tmp_path, test):
    _numbered(tmp_path, ["train/a/1.png", "train/b/1.png", f"{test}/b/1.png", f"{test}/c/1.png"])
    splits = _load(tmp_path, test_fraction=0.5)
    assert splits.train.classes == splits.test.classes == ("a", "b", "c")
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([0, 1], [1, 2])
    assert (_reds(splits.train), _reds(splits.test)) == ([0, 1], [2, 3])


def test_a_drawn_test_split_is_fixed(tmp_path):
    _numbered(tmp_path, [f"{number:02}.png" for number in range(20)])
    first, second = (_load(tmp_path, test_fraction=0.25, subset_seed=seed) for seed in (0, 1))
    assert _reds(first.test) == _reds(second.test)
    assert (len(first.train), len(first.test)) == (15, 5)
    assert sorted(_reds(first.train) + _reds(first.test)) == list(range(20))


def test_no_test_split(tmp_path):
    _numbered(tmp_path, ["1.png", "2.png"])
    assert _load(tmp_path, test_fraction=0.0).test is None


@pytest.mark.parametrize(("image_size", "source_size", "side"), [(224, None, 256), (32, None, 32), (32, 50, 50)])
def test_source_size(tmp_path, image_size, source_size, side):
    _numbered(tmp_path, ["1.png", "2.png"])
    train = _load(tmp_path, image_size=image_size, source_size=source_size).train
    assert train.read(torch.tensor([0])).shape == (1, 3, side, side)
    assert train.image_size == image_size


def test_resident_equals_streamed(tmp_path):
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (9 + number, 13, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number:02}.png")
    streamed, resident = (_load(tmp_path, resident_limit_mb=limit).train for limit in (0, 100))
    pairs = zip(TrainLoader(streamed, 4, 0), TrainLoader(resident, 4, 0), strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.index, theirs.index)


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_resident_leaves_out_the_undecodable_and_names_them(tmp_path, caplog):
    _numbered(tmp_path, [f"{number}.png" for number in range(6)])
    (tmp_path / "2.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        train = _load(tmp_path, max_undecodable=0.2).train
    assert train.index.tolist() == _reds(train) == [0, 1, 3, 4, 5]
    assert [record for record in caplog.records if "2.png" in record.getMessage()]


@pytest.mark.parametrize(("allowed", "fails"), [(0.0, True), (0.1, True), (0.2, False)])
def test_too_many_undecodable_files(tmp_path, allowed, fails):
    _numbered(tmp_path, [f"{number}.png" for number in range(10)])
    for number in (2, 3):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    if fails:
        with pytest.raises(UserError, match=r"data.max_undecodable"):
            _load(tmp_path, max_undecodable=allowed)
    else:
        assert len(_load(tmp_path, max_undecodable=allowed).train) == 8


def test_reading_an_undecodable_file_names_it(tmp_path):
    _numbered(tmp_path, ["1.png", "2.png"])
    (tmp_path / "2.png").write_bytes(b"broken")
    train = _load(tmp_path, resident_limit_mb=0).train
    with pytest.raises(UserError, match=r"2\.png cannot be decoded"):
        train.read(torch.tensor([0, 1]))


def test_names_that_are_not_ascii(tmp_path):
    _numbered(tmp_path, ["ä ö/1 ü.png", "日本/写真.png"])
    assert _reds(_load(tmp_path, resident_limit_mb=0).train) == [0, 1]


@pytest.mark.parametrize("kind", ["none", "missing", "file", "empty", "empty_test"])
def test_folders_that_cannot_be_used(tmp_path, kind):
    config = sources["image_folder"].config
    root = {"none": None, "missing": str(tmp_path / "nowhere"), "file": str(tmp_path / "file")}.get(kind, str(tmp_path))
    (tmp_path / "file").touch()
    if kind == "empty_test":
        _image(tmp_path / "train" / "1.png")
        (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=r"data.root"):
        load_splits(config(root=root))


@pytest.mark.parametrize("setting", ["test_fraction", "max_undecodable"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_impossible_fractions(tmp_path, setting, value):
    _image(tmp_path / "1.png")
    with pytest.raises(UserError, match=f"data.{setting}"):
        _load(tmp_path, **{setting: value})
