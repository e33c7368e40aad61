"""Images that are no photographs: any number of channels, 16 bits and floats, from files, cache and shards to views."""

from __future__ import annotations

import io
import math
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import resident

from selfsup.augment import AugmentConfig, build_views, colors_left_out
from selfsup.cli import main
from selfsup.data import load_splits
from selfsup.data.bits import bits_of
from selfsup.data.decode import decode_image, look
from selfsup.data.form import Form, UndecodableError, with_channels
from selfsup.data.statistics import measure
from selfsup.errors import UserError
from selfsup.eval.encoder import prepare_images
from selfsup.registry import sources
from selfsup.settings.values import read_yaml
from selfsup.types import Normalization

SIZE = 8


def random(*shape: int, dtype: Any = np.uint16, seed: int = 0) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).random(shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * np.iinfo(dtype).max).astype(dtype)


def load(root: Path, source: str = "image_folder", **given: Any) -> Any:
    chosen = {"holdout": 0.0, "image_size": SIZE, "test_fraction": 0.0, **given}
    return load_splits(sources[source].config(name=source, root=str(root), **chosen))


def every(part: Any) -> torch.Tensor:
    return part.read(torch.arange(len(part)))


def png16(pixels: np.ndarray[Any, Any]) -> bytes:
    """Write ``[H,W,C]`` as a PNG of 16 bits, chunk by chunk: Pillow writes none in colour."""
    height, width, channels = pixels.shape

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint16"), (2, "float32"), (5, "uint16"), (17, "uint8")])
def test_values_are_the_same_in_memory_in_the_cache_and_streamed(tmp_path, channels, dtype):
    images = random(4, channels, SIZE, SIZE, dtype=dtype)
    for number, image in enumerate(images):
        np.save(tmp_path / f"{number}.npy", image if number % 2 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    expected = torch.from_numpy(images)
    axis: dict[str, Any] = {}
    if channels > SIZE:  # the shorter axis is not that of the channels
        axis = {"channel_axis": "first"}
        for number, image in enumerate(images):
            np.save(tmp_path / f"{number}.npy", image)
    for how in ({}, {"resident_limit_mb": 0}, {"resident_limit_mb": 0, "cache": str(tmp_path / ".cache")}):
        part = load(tmp_path, **how, **axis).train
        assert torch.equal(every(part), expected)
        assert part.facts.channels == channels
    assert f"{channels} channel" in load(tmp_path, **axis).found.notes[0]


def test_both_sides_of_images_that_are_not_square_are_kept(tmp_path):
    """Whole images of several shapes, in memory, in the cache and streamed, give the views of the same values."""
    images = [random(5, SIZE, SIZE + 3 * number, seed=number) for number in range(4)]
    for number, image in enumerate(images):
        np.save(tmp_path / f"{number}.npy", image)
    expected = torch.cat([torch.from_numpy(image).flatten(1) for image in images], dim=1)
    for how in ({}, {"resident_limit_mb": 0}, {"resident_limit_mb": 0, "cache": str(tmp_path / ".cache")}):
        pixels, decoded, size = load(tmp_path, **how).train.read_decodable(torch.arange(4))
        assert decoded.all()
        assert size.tolist() == [[SIZE, SIZE + 3 * number] for number in range(4)]
        assert torch.equal(pixels, expected)
    views = generator(5)(expected, seed=0, index=torch.arange(4), size=size)
    floats = generator(5)(expected.float() / 65535, seed=0, index=torch.arange(4), size=size)
    for one, other in zip(views, floats, strict=True):
        assert (one.image - other.image).abs().max() < 1e-5


def test_shards_hold_them_as_well_and_an_array_beside_an_image_is_none(tmp_path):
    images = random(3, 4, SIZE, SIZE)

    def write(name: str, members: dict[str, bytes]) -> None:
        (tmp_path / name).mkdir()
        with tarfile.open(tmp_path / name / "train-0.tar", "w") as tar:
            for member, content in members.items():
                about = tarfile.TarInfo(member)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))

    write("arrays", {f"{number}.npy": saved(image) for number, image in enumerate(images)})
    cache = str(tmp_path / "index")
    assert torch.equal(every(load(tmp_path / "arrays", "webdataset", cache=cache).train), torch.from_numpy(images))
    picture = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (9, 8, 7)).save(picture, "PNG")
    write("both", {"1.npy": saved(images[0]), "1.png": picture.getvalue()})
    assert every(load(tmp_path / "both", "webdataset", cache=cache).train)[0, :, 0, 0].tolist() == [9, 8, 7]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.npy").write_bytes(saved(images[0]))
    (tmp_path / "folder" / "1.png").write_bytes(picture.getvalue())
    found = load(tmp_path / "folder").found
    assert (found.read, list(found.left_out)) == (1, ["arrays beside images (data.files reads them)"])


def saved(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits(channels):
    pixels = random(SIZE, SIZE, channels)
    form = Form(3 if channels > 2 else 1, "uint16")
    found = decode_image(png16(pixels), SIZE, form=form).numpy().transpose(1, 2, 0).astype(np.float64)
    expected = pixels.astype(np.float64)
    if channels in (2, 4):  # over white
        opaque = expected[..., -1:] / 65535
        expected = expected[..., :-1] * opaque + 65535 * (1 - opaque)
    assert np.abs(found - expected).max() <= 0.5
    assert look(png16(pixels))[:3] == (form.channels, "uint16", False)


def test_tiff_of_several_channels_or_pages(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="the extra tiff is not installed")
    pytest.importorskip("imagecodecs", reason="the extra tiff is not installed")
    image = random(5, SIZE, SIZE)
    ways = {
        "planes": {"photometric": "minisblack", "planarconfig": "separate"},
        "pages": {"photometric": "minisblack", "metadata": None},
        "packed": {"photometric": "minisblack", "compression": "lzw"},
        "big": {"photometric": "minisblack", "bigtiff": True, "byteorder": ">"},
    }
    for name, how in ways.items():
        file = io.BytesIO()
        tifffile.imwrite(file, image, **how)
        assert look(file.getvalue())[:3] == (5, "uint16", False), name
        assert torch.equal(decode_image(file.getvalue(), SIZE, form=Form(5, "uint16")), torch.from_numpy(image)), name
    last = io.BytesIO()
    tifffile.imwrite(last, image[:4].transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    assert torch.equal(decode_image(last.getvalue(), SIZE, form=Form(4, "uint16")), torch.from_numpy(image[:4]))
    near_infrared = io.BytesIO()  # 8 bits, colour, and a fourth channel of which nothing is said
    eight = random(SIZE, SIZE, 4, dtype=np.uint8)
    tifffile.imwrite(near_infrared, eight, photometric="rgb", extrasamples=["unspecified"])
    assert look(near_infrared.getvalue())[:3] == (4, "uint8", False)
    found = decode_image(near_infrared.getvalue(), SIZE, form=Form(4))
    assert torch.equal(found, torch.from_numpy(eight).permute(2, 0, 1))
    colour = io.BytesIO()  # Pillow reads it with 8 bits
    tifffile.imwrite(colour, image[:3].transpose(1, 2, 0), photometric="rgb")
    assert torch.equal(decode_image(colour.getvalue(), SIZE, form=Form(3, "uint16")), torch.from_numpy(image[:3]))


def test_tiff_is_turned_upright_and_white_is_bright():
    tifffile = pytest.importorskip("tifffile", reason="the extra tiff is not installed")
    pytest.importorskip("imagecodecs", reason="the extra tiff is not installed")
    grey = random(SIZE, SIZE + 3, dtype=np.uint8)
    for turned in range(1, 9):
        files = []
        for pixels in (grey, grey.astype(np.uint16) * 257, np.stack([grey] * 5)):
            file = io.BytesIO()
            about = [(274, "H", 1, turned, True)]
            tifffile.imwrite(file, pixels, photometric="miniswhite", extratags=about, metadata=None)
            files.append(file.getvalue())
        forms = Form(), Form(1, "uint16"), Form(5)
        pillow, deep, pages = (
            decode_image(content, SIZE, form=form, max_aspect=4) for content, form in zip(files, forms, strict=True)
        )
        assert look(files[1]).shape == deep.shape[1:] == pillow.shape[1:]
        assert torch.equal(deep[0].int(), pillow[0].int() * 257)
        assert torch.equal(pages, pillow[:1].expand(5, -1, -1))
    ends = Form(1, "float32", value_range=(0.0, 1000.0))  # of a negative
    tifffile.imwrite(file := io.BytesIO(), np.full((SIZE, SIZE), 250, np.uint16), photometric="miniswhite")
    assert decode_image(file.getvalue(), SIZE, form=ends)[0, 0, 0].item() == pytest.approx(0.75)


def test_colours_that_pillow_reads_with_8_bits_are_said(tmp_path):
    for number in range(4):
        pixels = random(SIZE, SIZE, 3, seed=number).astype(">u2" if number else "u1")
        head = b"P6\n# by hand\n%d %d\n%d\n" % (SIZE, SIZE, 65535 if number else 255)
        (tmp_path / f"{number}.ppm").write_bytes(head + pixels.tobytes())
    found = load(tmp_path).found
    assert found.notes[0].startswith(
        "3 of 4 images that were looked at have colours of more than 8 bits, 1.ppm for one, and are read with 8"
    )
    (tmp_path / "grey").mkdir()
    grey = random(SIZE, SIZE).astype(">u2")
    (tmp_path / "grey" / "1.pgm").write_bytes(b"P5 %d %d 65535\n" % (SIZE, SIZE) + grey.tobytes())
    part = load(tmp_path / "grey")
    assert torch.equal(every(part.train)[0, 0], torch.from_numpy(grey.astype(np.uint16)))
    assert not [note for note in part.found.notes if "looked at" in note]


@pytest.mark.parametrize(
    ("head", "bits"),
    [
        (b"\0\0\0\x20ftypavif" + b"\0\0\0\x10pixi\0\0\0\0\x03\x0a\x0a\x0a", 10),
        (b"\0\0\0\x20ftypheic" + b"\0\0\0\x10pixi\0\0\0\0\x03\x08\x08\x08" + b"pixi\0\0\0\0\x01\x0c", 12),
        (b"\xff\x4f\xff\x51" + bytes(36) + b"\0\x03" + b"\x0f\x01\x01" * 3, 16),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\xff\x4f\xff\x51" + bytes(36) + b"\0\x02" + b"\x87\x01\x01" * 2, 8),
        (b"\x01\xda\0\x02", 16),
        (b"P6 8 8 255\n" + b"999 ", 8),
        (b"P3 8 8 1023\n", 16),
        (b"", 8),
        (b"pixi\0\0\0\0\x01\x0c", 8),
    ],
)
def test_the_head_of_a_file_says_its_bits(head, bits):
    assert bits_of(head) == bits


def test_dicom(tmp_path):
    """Values times slope plus intercept, then data.value_range, the window, or the stored bits; negatives turned."""
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    stored = np.linspace(0, 4095, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)

    def write(**given: Any) -> bytes:
        about = pydicom.dataset.FileMetaDataset()
        about.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        about.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        about.MediaStorageSOPInstanceUID = "1.2.3"
        made = pydicom.dataset.Dataset()
        made.file_meta = about
        fixed = {"Rows": SIZE, "Columns": SIZE, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
        fixed |= {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
        for name, value in {**fixed, **given}.items():
            setattr(made, name, value)
        signed = given.get("PixelRepresentation", 0) == 1
        made.PixelData = (stored.astype(np.int16) - 2048 if signed else stored).tobytes()
        file = io.BytesIO()
        made.save_as(file, enforce_file_format=True)
        return file.getvalue()

    scaled = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    windowed = {**scaled, "WindowCenter": [40, 300], "WindowWidth": [400, 2000]}
    units = stored * 2.0 - 1024
    cases = [
        (write(), None, stored / 4095),
        (write(PixelRepresentation=1), None, stored / 4095),
        (write(**scaled), None, stored / 4095),
        (write(**windowed), None, (units - 39.5) / 399 + 0.5),  # DICOM's linear function
        (write(**windowed), (-1000.0, 1000.0), (units + 1000) / 2000),
        (write(**scaled, PhotometricInterpretation="MONOCHROME1"), (-1000.0, 1000.0), 1 - (units + 1000) / 2000),
        (write(PhotometricInterpretation="MONOCHROME1"), None, 1 - stored / 4095),
    ]
    for content, value_range, expected in cases:
        assert look(content)[:3] == (1, "float32", False)
        found = decode_image(content, SIZE, form=Form(1, "float32", value_range=value_range))
        assert np.abs(found[0].numpy() - expected.clip(0, 1)).max() < 1e-6
    (tmp_path / "1.dcm").write_bytes(write())
    assert every(load(tmp_path).train).shape == (1, 1, SIZE, SIZE)


def test_colour_as_grey_and_grey_as_colour(tmp_path):
    Image.new("RGB", (SIZE, SIZE), (200, 100, 50)).save(tmp_path / "1.png")
    Image.new("L", (SIZE, SIZE), 77).save(tmp_path / "2.jpg")
    assert every(load(tmp_path).train)[:, :, 0, 0].tolist() == [[200, 100, 50], [77, 77, 77]]
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert every(load(tmp_path, channels=1).train)[:, :, 0, 0].tolist() == [[grey], [77]]
    message = r"^data\.channels: .* 1 of 3 \(1\.png for one\), 1 of 1 \(2\.jpg for one\); set data\.channels="
    with pytest.raises(UserError, match=message):
        load(tmp_path, channels=0)
    with pytest.raises(UndecodableError, match="5 channels"):
        with_channels(torch.zeros(5, 2, 2), 3)


def test_mixed_channels_are_counted_and_one_setting_leaves_the_others_out(tmp_path):
    for number in range(6):
        np.save(tmp_path / f"{number}.npy", random(5 if number else 2, SIZE, SIZE))
    with pytest.raises(UserError, match=r"5 of 5 \(1\.npy for one\), 1 of 2 \(0\.npy for one\); set data\.channels=5 "):
        load(tmp_path)
    with pytest.raises(UserError, match=r"^1 of 6 images .* 0\.npy for one \(1: 2 channels where 5 are read") as error:
        load(tmp_path, channels=5, max_undecodable=0.0)
    assert "raise data.max_undecodable" in str(error.value)
    found = load(tmp_path, channels=5, max_undecodable=0.2)
    assert (len(found.train), found.found.left_out["undecodable"].total()) == (5, 1)


def test_depth_is_lowered_only_where_it_is_asked_for(tmp_path):
    value = 0x8000  # of which division by 257 would make 127
    (tmp_path / "1.png").write_bytes(png16(np.full((SIZE, SIZE, 3), value, np.uint16)))
    Image.new("RGB", (SIZE, SIZE), (9, 9, 9)).save(tmp_path / "2.png")
    assert every(load(tmp_path).train)[:, 0, 0, 0].tolist() == [value, 9 * 257]  # white stays white
    assert every(load(tmp_path, depth="uint8").train)[:, 0, 0, 0].tolist() == [value >> 8, 9]
    floats = every(load(tmp_path, depth="float32").train)[:, 0, 0, 0]
    torch.testing.assert_close(floats, torch.tensor([value / 65535, 9 / 255]))
    with pytest.raises(UndecodableError) as error:  # one that turns up late, among photographs
        decode_image(tmp_path / "1.png", SIZE)
    assert (
        error.value.reason == "uint16 values where the others have uint8: set data.depth=uint16, or uint8 to lower them"
    )


def test_arrays_that_do_not_say_what_they_are():
    for array, reason in (
        (random(SIZE, SIZE, SIZE), "data.channel_axis"),
        (random(2, 2, SIZE, SIZE), "arrays that are not"),
        (np.full((2, SIZE, SIZE), np.nan), "data.value_range"),
        (np.full((2, SIZE, SIZE), -1, np.int16), "data.value_range"),
        (np.full((2, SIZE, SIZE), "a"), "real numbers"),
    ):
        with pytest.raises(UndecodableError) as error:
            decode_image(saved(array), SIZE, form=Form(2, "float32"))
        assert reason in error.value.reason


# --- views and evaluation --------------------------------------------------------------------------------------------


def generator(channels: int, **settings: Any) -> Any:
    statistics = Normalization((0.5,) * channels, (0.25,) * channels)
    return build_views(AugmentConfig("simclr", small=False, counts=[2], **settings), 16, statistics)


def test_16_bits_and_floats_give_the_views_of_8_bits():
    images = torch.from_numpy(random(6, 5, 20, 20, dtype=np.uint8))
    index = torch.arange(6)
    views = generator(5)
    deep = (images.int() * 257).to(torch.uint16)
    expected = views(images, seed=3, index=index)
    for others in (deep, images.double() / 255):
        for one, other in zip(expected, views(others, seed=3, index=index), strict=True):
            assert (one.image - other.image).abs().max() < 1e-5
            assert torch.equal(one.to_source, other.to_source)
    statistics = Normalization((0.5,) * 5, (0.25,) * 5)
    first, second = (prepare_images(stored, 16, 5, statistics) for stored in (images, deep))
    assert (first - second).abs().max() < 1e-5


def test_operations_of_colour_step_aside_and_the_others_treat_all_channels_alike():
    images = torch.from_numpy(random(6, 5, 20, 20, dtype=np.uint8))
    order = torch.tensor([3, 1, 4, 0, 2])
    views = generator(5, override={"jitter_p": 1.0, "gray_p": 1.0, "solarize_p": 0.5})
    for one, other in zip(views(images, seed=1), views(images[:, order], seed=1), strict=True):
        torch.testing.assert_close(one.image[:, order], other.image)
        assert not torch.equal(one.image[:, 0], one.image[:, 1])  # no grey
    assert colors_left_out(views, 5) == ["jitter.saturation", "jitter.hue", "gray"]
    assert colors_left_out(views, 3) == []
    with pytest.raises(UserError, match=r"data\.mean: there are statistics of 5 channels for images of 4"):
        views(images[:, :4])


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_statistics_are_those_of_all_pixels(dtype):
    images = random(70, 3, 5, 7, dtype=dtype, seed=4)
    found = measure(resident(torch.from_numpy(images), name="noise", image_size=5, normalization=None), progress=False)
    white = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    for channel in range(3):
        values = [float(value) / white for value in images[:, channel].ravel()]
        mean = math.fsum(values) / len(values)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        assert abs(found.mean[channel] - mean) < 1e-14
        assert abs(found.std[channel] - std) < 1e-13
        assert found.least[channel] == pytest.approx(min(values), rel=1e-12)
        assert found.most[channel] == pytest.approx(max(values), rel=1e-12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("five")
    for number in range(60):
        (root / f"c{number % 2}").mkdir(exist_ok=True)
        image = random(5, 16, 16, seed=number) // 2
        image[number % 2 :: 2] += 2**14
        np.save(root / f"c{number % 2}" / f"{number}.npy", image)
    return root


def test_from_statistics_to_an_export_on_the_command_line(folder, tmp_path, capsys):
    size = ["data.image_size=16", "data.holdout=0.2"]
    file = tmp_path / "statistics.yaml"
    file.write_text("# mine\nbatch_size: 8\n")
    assert main(["data", str(folder), "--statistics", "--write", str(file), *size]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("data.mean="))
    values = read_yaml(file)
    assert file.read_text().startswith("# mine\n")
    assert values["batch_size"] == 8
    assert [len(values["data"][key]) for key in ("mean", "std")] == [5, 5]
    run = tmp_path / "run"
    small = ["backbone=resnet_tiny", "backbone.width=4", "batch_size=16", "trainer.max_epochs=1"]
    small += ["trainer.accelerator=cpu", "online.every_epochs=0", f"run_dir={run}", *size]
    assert main(["train", str(folder), "method=simclr", *small]) == 2
    assert "data.mean and data.std need 5 values each" in capsys.readouterr().err
    assert not run.exists()
    assert main(["train", str(folder), "method=simclr", *small, *line.split()]) == 0
    said = capsys.readouterr().out
    assert "note: images are read as 5 channels of uint16, black and white at 0 and 65535" in said
    assert "note: jitter.saturation, jitter.hue, gray of the views are left out" in said
    assert "uint16" in (run / "environment.json").read_text()
    assert main(["knn", str(run), "accelerator=cpu"]) == 0
    assert main(["embed", str(run), "--out", str(tmp_path / "f.npz"), "accelerator=cpu"]) == 0
    assert main(["export", str(run), "--format", "exported", "--out", str(tmp_path / "n.pt2")]) == 0
    capsys.readouterr()
    assert main(["knn", str(run), "data=shapes", "accelerator=cpu"]) == 2
    assert "takes images of 5 channel(s) and those of shapes have 3, by" in capsys.readouterr().err
