"""What is data: names of splits, tables of labels, lists of files, and every file counted once."""

import contextlib
import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import TINY

from selfsup.cli import main
from selfsup.data import decode, load_splits
from selfsup.data.divide import divide_by_choice, divide_by_name
from selfsup.data.found import BROKEN, HIDDEN, MISSING, NO_DECODER, NO_IMAGE, NOT_TAKEN, OWN, SYSTEM, UNDECODABLE
from selfsup.data.listing import list_images, why_left_out
from selfsup.data.targets import why_no_classes
from selfsup.errors import UserError
from selfsup.registry import sources


def _load(root, **given):
    config = sources["image_folder"].config
    chosen = {"holdout": 0, "image_size": 8, "test_fraction": 0.0, **given}
    return load_splits(config(root=[str(r) for r in root] if isinstance(root, list) else str(root), **chosen))


def _draw(root, *names, size=(8, 8)):
    """Images whose red value is their place in ``names``."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 0, 0)).save(root / name, "PNG")


def _reds(part):
    return part.read(torch.arange(len(part)))[:, 0, 0, 0].tolist()


def _classes(part):
    return [part.classes[label] if label >= 0 else None for label in part.labels.tolist()]


# --- splits by name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "testing"), ("train", "valid"), ("train", "validation"), ("TRAIN", "val")],
)
def test_names_of_splits(tmp_path, train, test):
    _draw(tmp_path, f"{train}/a/1.png", f"{train}/b/1.png", f"{test}/a/1.png", f"{test}/b/1.png")
    splits = _load(tmp_path, test_fraction=0.5)
    assert (_reds(splits.train), _reds(splits.test)) == ([0, 1], [2, 3])
    assert splits.train.classes == ("a", "b")
    assert splits.found.splits == {"train": (2, f"folder {train}"), "test": (2, f"folder {test}")}


def test_classes_without_a_training_image_and_limits_are_told(tmp_path):
    _draw(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png", "test/d/1.png")
    found = _load(tmp_path, limit=1).found
    assert found.notes == ["2 classes have no training image, c for one"]
    assert found.splits["train"] == (1, "folder train, data.limit=1")


def test_val_beside_test_is_the_holdout(tmp_path):
    _draw(tmp_path, "train/1.png", "val/1.png", "test/1.png", "extra/1.png", "extra/2.png", "loose.png")
    splits = _load(tmp_path, holdout=0.1)
    assert [_reds(part) for part in (splits.train, splits.holdout, splits.test)] == [[0], [1], [2]]
    assert splits.found.left_out == {NOT_TAKEN: Counter({"extra/": 2, "beside the folders": 1})}
    chosen = _load(tmp_path, test_split="val")
    assert (_reds(chosen.train), len(chosen.holdout), _reds(chosen.test)) == ([0], 0, [1])
    assert chosen.found.left_out[NOT_TAKEN]["folder test"] == 1


@pytest.mark.parametrize(
    ("names", "split", "below"),
    [
        (["a/1", "b/1"], None, None),  # no names of splits
        (["a/train/1", "a/test/2", "b/train/3"], "train test train", "a/1 a/2 b/3"),  # classes above splits
        (["set/train/a/1", "set/valid/b/2"], "train val", "a/1 b/2"),  # one folder above all
        (["images/train/1", "images/val/2"], "train val", "1 2"),
        (["train/images/1", "valid/images/2"], "train val", "images/1 images/2"),
        (["train/test/1", "train/b/2", "test/test/3"], "train train test", "test/1 b/2 test/3"),  # a class called test
        (["test/1", "b/2"], None, None),  # no partner: a class
        (["train/1", "sub/train/2", "sub/test/3", "test/4"], "train - - test", "1 - - 4"),  # the nearest to the root
        (["a/train/1", "a/b/2"], None, None),
    ],
)
def test_where_names_of_splits_count(names, split, below):
    found = divide_by_name(names)
    assert (found is None) is (split is None)
    if found is not None:
        assert found.split == [None if word == "-" else word for word in split.split()]
        kept = [rest for rest, word in zip(found.below, found.split, strict=True) if word]
        assert kept == [word for word in below.split() if word != "-"]


def test_a_train_folder_beside_classes_is_told(tmp_path):
    _draw(tmp_path, "train/1.png", "bus/1.png", "car/1.png")
    found = _load(tmp_path).found
    assert found.left_out[NOT_TAKEN] == {"bus/": 1, "car/": 1}
    assert "data.splits={train: [.]}" in " ".join(found.notes)
    every = _load(tmp_path, splits={"train": ["."]})
    assert every.train.classes == ("bus", "car", "train")


def test_only_test_and_validation_need_a_choice(tmp_path):
    _draw(tmp_path, "test/a/1.png", "val/b/1.png")
    with pytest.raises(UserError, match=r"none called train; set data\.splits="):
        _load(tmp_path)
    assert len(_load(tmp_path, splits={"train": "test", "test": "val"}).test) == 1


def test_an_empty_test_folder_is_not_replaced_by_a_draw(tmp_path):
    _draw(tmp_path, "train/1.png", "train/2.png")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "1.dng").touch()
    with pytest.raises(UserError, match=r"^data\.root: folder test, .* holds no images .*\.dng"):
        _load(tmp_path, test_fraction=0.5)


def test_splits_are_chosen():
    names = ["a/1.png", "a/2.png", "b/x/3.png", "c [d]/4.png", "e/5.png"]
    found = divide_by_choice(names, {"train": ["a", "*/x"], "holdout": "./c [d]/", "test": ["e/*.png"]})
    assert found.split == ["train", "train", "train", "holdout", "test"]
    assert found.below == ["1.png", "2.png", "b/x/3.png", "4.png", "5.png"]
    assert found.left_out == {}
    assert divide_by_choice(names, {"train": ["a"]}).left_out == {"b/": 1, "c [d]/": 1, "e/": 1}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"test": ["a"]}, "train is missing"),
        ({"train": ["a"], "val": ["b"]}, "val is not a split here"),
        ({"train": []}, "names no folder"),
        ({"train": ["z"]}, "z is not a folder of images"),
        ({"train": ["."], "test": ["a"]}, r"a/1\.png is of both train and test"),
    ],
)
def test_impossible_splits(chosen, message):
    with pytest.raises(UserError, match=rf"^data\.splits.*{message}"):
        divide_by_choice(["a/1.png", "b/1.png"], chosen)


def test_splits_and_test_split_are_one_too_many(tmp_path):
    _draw(tmp_path, "train/1.png", "test/1.png")
    with pytest.raises(UserError, match=r"^data\.test_split and data\.splits"):
        _load(tmp_path, splits={"train": ["train"]}, test_split="test")
    with pytest.raises(UserError, match=r"^data\.test_split is val"):
        _load(tmp_path, test_split="val")


# --- what is read ----------------------------------------------------------------------------------------------------


def test_files_that_are_not_read_are_counted_by_reason(tmp_path):
    _draw(tmp_path, "1.png", "2.jp2x.png", "odd.JPG")
    Image.new("RGB", (8, 8)).save(tmp_path / "3.jp2")
    for name in ("a.HEIC", "b.heic", "raw.cr2", "notes.txt", "README", "._1.png", ".git/x.png", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0")
    for folder in ("__MACOSX/1.png", "@eaDir/1.png", "x/__pycache__/1.png"):
        _draw(tmp_path, folder)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = _load(tmp_path, max_undecodable=0.5).found
    heif = {".heic, pip install 'selfsup[heif]' reads them": 2} if not decode.heif_is_readable() else {}
    assert found.left_out[NO_DECODER] == heif | {".cr2": 1}
    assert found.left_out[NO_IMAGE] == {".txt": 1, "without ending": 1}
    assert found.left_out[HIDDEN] == {"._*": 1, ".git/": 1}
    assert found.left_out[SYSTEM] == {"Thumbs.db": 1, "__MACOSX/": 1, "@eaDir/": 1, "__pycache__/": 1}
    assert found.left_out[BROKEN] == {"gone.png": 1, "pipe.png": 1}
    assert found.left_out[UNDECODABLE].total() == (1 if heif else 3)
    assert found.read == 4
    assert found.total == 18
    text = "\n".join(found.lines())
    assert "4 of 18 files" in text
    assert ".cr2" in text


def test_runs_and_caches_are_no_data(tmp_path):
    _draw(tmp_path, "cat/1.png", "dog/1.png", "runs/first/figures/views.png", "old/second/figures/a/b.png")
    for name in ("runs/first/config.yaml", "runs/first/metrics.csv", "old/second/config.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "old" / "second" / "checkpoints").mkdir()
    _load(tmp_path, cache=str(tmp_path / "cache"))
    _draw(tmp_path, "sheet/contact_sheet.png", "venv/pictures/1.png")
    for name in ("sheet/neighbours.csv", "venv/pyvenv.cfg", "venv/bin/python"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = _load(tmp_path)
    assert found.train.classes == ("cat", "dog")
    kinds = {kind.partition("-")[0] for kind in found.found.left_out[OWN]}
    assert kinds == {"runs/first/", "old/second/", "cache/image_folder", "sheet/", "venv/"}
    with pytest.raises(UserError, match="in run folders and caches"):
        _load(tmp_path / "runs")


def test_a_folder_with_a_configuration_alone_is_data(tmp_path):
    _draw(tmp_path, "1.png")
    (tmp_path / "config.yaml").touch()
    assert len(_load(tmp_path).train) == 1


NAMES = st.sampled_from(
    ["train", "Test", "valid", "ä ö", "日本", "cat", "runs", ".hidden", "@eaDir", "set [b]", "a=b, c", "__pycache__"]
)
FILES = st.sampled_from(
    ["1.png", "2.JPG", "x.jp2", "é.webp", "a.HEIC", "b.cr2", "notes.txt", "._1.png", "Thumbs.db", "README", "c.tar.gz"]
)
FOLDERS = st.lists(NAMES, max_size=3).map("/".join)
RUN = st.tuples(FOLDERS, st.sampled_from([("config.yaml", "metrics.csv"), ("images.u8", "about.json")]))


@settings(max_examples=25, deadline=None)
@given(st.sets(st.tuples(FOLDERS, FILES), max_size=12), st.lists(RUN, max_size=2))
def test_every_file_is_counted_exactly_once(tmp_path_factory, files, runs):
    root = tmp_path_factory.mktemp("tree")
    for folder, names in [(f, (n,)) for f, n in files] + runs:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (root / folder / name).touch()
    there = [os.path.relpath(os.path.join(f, n), root) for f, _, names in os.walk(root) for n in names]
    found = list_images(root)
    assert len(found.names) + found.left_out.total() == len(there)
    assert len(set(found.names)) == len(found.names)
    assert {*found.names} <= {*there}
    owned = [folder for folder, _ in runs]
    for name in found.names:
        assert why_left_out(name.rpartition("/")[2]) is None
        assert not any(part in (".hidden", "@eaDir", "__pycache__") for part in name.split("/"))
        assert not any(folder == "" or name.startswith(f"{folder}/") for folder in owned)
    division = None
    with contextlib.suppress(UserError):  # where all folders are called test and val
        division = divide_by_name(found.names, found.folders)
    if division is not None:
        assert sum(split is not None for split in division.split) + division.left_out.total() == len(found.names)
    shutil.rmtree(root)


def test_several_roots(tmp_path):
    _draw(tmp_path, "x/a/1.png", "x/b/1.png", "y/z/train/b/1.png", "y/z/test/c/1.png")
    splits = _load([tmp_path / "x", tmp_path / "y" / "z"])
    assert _classes(splits.train) == ["a", "b", "b"]
    assert (_reds(splits.train), _reds(splits.test), _classes(splits.test)) == ([0, 1, 2], [3], ["c"])
    assert [splits.train.index.tolist(), splits.found.read] == [[0, 1, 2], 4]
    with pytest.raises(UserError, match="would be read twice"):
        _load([tmp_path / "x", tmp_path / "x" / "a"])
    with pytest.raises(UserError, match="names 2 folders, and data=cifar10 reads one"):
        load_splits(sources["cifar10"].config(root=[str(tmp_path), "b"]))


def test_a_list_of_files(tmp_path):
    _draw(tmp_path / "images", "a/1.png", "b/2.png", "b/3.png")
    (tmp_path / "list.txt").write_text("\ufeffb/3.png\n\n./a/1.png\nb/gone.png\n", "utf-8")
    splits = _load(tmp_path / "images", files=str(tmp_path / "list.txt"))
    assert (_reds(splits.train), _classes(splits.train)) == ([0, 2], ["a", "b"])
    assert splits.found.left_out == {MISSING: Counter({"b/gone.png": 1})}
    (tmp_path / "own.txt").write_text(f"images/a/1.png\n{tmp_path}/images/b/2.png\n", "utf-8")
    config = sources["image_folder"].config(files=str(tmp_path / "own.txt"), holdout=0, test_fraction=0, image_size=8)
    assert len(load_splits(config).train) == 2
    (tmp_path / "list.txt").write_text("a/1.png\n./a/1.png\n", "utf-8")
    with pytest.raises(UserError, match=r"^data\.files: .* more than once"):
        _load(tmp_path / "images", files=str(tmp_path / "list.txt"))


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "classes"), [(1, ["x", "x", "y"]), (2, ["a", "b", "b"]), (-1, ["deep", "b", "b"]), (-2, ["a", "x", "y"])]
)
def test_the_folder_that_is_the_class(tmp_path, level, classes):
    _draw(tmp_path, "x/a/deep/1.png", "x/b/1.png", "y/b/1.png")
    assert _classes(_load(tmp_path, class_level=level).train) == classes


def test_folders_that_are_nearly_classes_are_told(tmp_path):
    _draw(tmp_path, "all/a/1.png", "all/b/1.png")
    assert "data.class_level=2" in " ".join(_load(tmp_path).found.notes)
    _draw(tmp_path, "more/1.png", "loose.png")
    assert "1 image lies in no class folder, loose.png" in " ".join(_load(tmp_path).found.notes)
    with pytest.raises(UserError, match=r"^data\.class_level is 0"):
        _load(tmp_path, class_level=0)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_labels_from_a_table(tmp_path, ending):
    _draw(tmp_path / "images", "a/1.png", "a/2.png", "b/3.png", "4.png")
    rows = [("images/a/1.png", "cat"), ("2", "dog"), ("b\\3.png", "cat"), ("gone.png", "dog")]
    path = tmp_path / f"labels.{ending}"
    if ending == "csv":
        path.write_text("Weight;File Name;Species\n" + "".join(f"1.5;{f};{k}\n" for f, k in rows), "utf-8")
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"file_name": [f for f, _ in rows], "species": [k for _, k in rows]}), path)
    splits = _load(tmp_path / "images", labels=str(path))
    assert dict(zip(_reds(splits.train), _classes(splits.train), strict=True)) == {
        0: "cat",
        1: "dog",
        2: "cat",
        3: None,
    }
    assert splits.found.without_label == 1
    assert splits.found.classes == ("cat", "dog")
    assert "1 row of" in " ".join(splits.found.notes)
    assert "gone.png" in " ".join(splits.found.notes)


def test_a_table_without_a_header_and_with_numbers(tmp_path):
    _draw(tmp_path, "1.png", "2.png")
    (tmp_path / "labels.csv").write_text("1.png,1\n2.png,0\n", "utf-8")
    assert _classes(_load(tmp_path, labels=str(tmp_path / "labels.csv")).train) == ["1", "0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,weight\na/1.png,0.5\na/2.png,x\na/3.png,1.5\n",
            "1 cells hold .* than numbers, .x. in the column weight of a/2",
        ),
        ("file,label\na/1.png,cat\na/1.png,dog\n", "two labels, cat and dog"),
        ("file,label\n1.png,cat\n", "can be a/1.png and b/1.png"),
        ("file,label\nz.png,cat\n", "no row of .* names an image"),
        ("file,x,y2\na/1.png,1,2\n", "data.label_column is not set"),
        ("x,y2,label\na/1.png,1,2\n", "data.file_column is not set"),
        ("file\na/1.png\n", "does not have two columns"),
        ("file,label\na/1.png,\n", "has no label for any image"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, message):
    _draw(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    (tmp_path / "labels.csv").write_text(text, "utf-8")
    with pytest.raises(UserError, match=message):
        _load(tmp_path, labels=str(tmp_path / "labels.csv"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["a", "b", None], None),
        ([1, 2, -1], None),
        ([1.0, 2.0, float("nan")], None),
        (["tabby, tabby cat", "dog"], None),
        (["1.5", "2"], "real"),
        ([0.5, None], "real"),
        (["1.5", "B"], None),
        ([[1, 2], [3]], "several"),
        (["['a']", "[]"], "several"),
        (list(range(60)), "60 values for 60 images"),
        (list(range(60)) * 2, None),
    ],
)
def test_what_can_be_classes(values, reason):
    found = why_no_classes(values)
    assert (found is None) if reason is None else (reason in found)


# --- settings for what cannot be read as it is -----------------------------------------------------------------------


def test_floating_point_images_have_the_range_that_is_given(tmp_path):
    for number, value in enumerate((-1.0, 0.0, 1.0, 5.0, float("nan"))):
        Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / f"{number}.tif")
    with pytest.raises(UserError, match=r"^3 of 5 .*\(3: floating-point .* data\.value_range=\[low,high\]\)"):
        _load(tmp_path)
    assert _reds(_load(tmp_path, value_range=[-1, 3]).train) == [0, 0.25, 0.5, 1, 0]
    assert _reds(_load(tmp_path, value_range=[-1, 3], depth="uint8").train) == [0, 64, 128, 255, 0]
    with pytest.raises(UserError, match=r"^data\.value_range"):
        _load(tmp_path, value_range=[1, 0])


def test_grey_images_of_12_bits(tmp_path):
    for number, value in enumerate((0, 2048, 4095)):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / f"{number}.png")
    assert _reds(_load(tmp_path).train) == [0, 2048, 4095]
    assert _reds(_load(tmp_path, depth="uint8").train) == [0, 8, 15]
    assert _reds(_load(tmp_path, value_range=[0, 4095]).train) == [0, 32776, 65535]
    assert _reds(_load(tmp_path, value_range=[0, 4095], depth="uint8").train) == [0, 128, 255]


def test_reasons_are_grouped_and_settings_named(tmp_path):
    _draw(tmp_path, "1.png", "2.png", "3.png")
    _draw(tmp_path, "large1.png", "large2.png", size=(40, 40))
    (tmp_path / "x.png").write_bytes(b"no image")
    message = r"^3 of 6 images .*\(2: more than 1,000 pixels: raise data\.max_pixels, 1: of a type that no decoder"
    with pytest.raises(UserError, match=message):
        _load(tmp_path, max_pixels=1000)
    found = _load(tmp_path, max_pixels=1000, max_undecodable=0.5).found
    assert (found.read, found.left_out[UNDECODABLE].total()) == (3, 3)
    assert len(_load(tmp_path, max_undecodable=0.2).train) == 5


def test_settings_that_change_pixels_have_caches_of_their_own(tmp_path):
    Image.fromarray(np.full((8, 8), 1.0, np.float32)).save(tmp_path / "1.tif")
    Image.fromarray(np.full((8, 8), 1.0, np.float32)).save(tmp_path / "2.tif")
    cache = str(tmp_path / ".cache")
    kept = [_reds(_load(tmp_path, value_range=[0, high], cache=cache, resident_limit_mb=0).train) for high in (1, 2, 1)]
    assert kept == [[1, 1], [0.5, 0.5], [1, 1]]


def test_a_cache_remembers_why(tmp_path):
    _draw(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    for _ in range(2):
        found = _load(tmp_path, cache=str(tmp_path / ".cache"), max_undecodable=0.5, resident_limit_mb=0).found
        assert [key for key in found.left_out[UNDECODABLE] if "of a type that no decoder" in key]


def test_a_note_where_the_square_leaves_most_out(tmp_path):
    _draw(tmp_path, "1.png", "2.png", "3.png", size=(80, 8))
    assert "keeps 40% of a typical image (80 × 8 pixels)" in " ".join(_load(tmp_path).found.notes)
    _draw(tmp_path, "1.png", "2.png", size=(12, 8))
    assert _load(tmp_path).found.notes == []


def test_heic(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    pillow_heif.register_heif_opener()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "IMG_1.HEIC", format="HEIF")
    shutil.copy(tmp_path / "IMG_1.HEIC", tmp_path / "IMG_2.jpg")  # phones do that
    reds = _reds(_load(tmp_path).train)
    assert len(reds) == 2
    assert all(abs(red - 200) < 12 for red in reds)


def test_heic_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "heif_is_readable", lambda: False)
    _draw(tmp_path, "1.png", "2.png")
    (tmp_path / "IMG_1.HEIC").touch()
    assert "1 images of a type that no installed decoder reads (.heic, pip install 'selfsup[heif]'" in "\n".join(
        _load(tmp_path).found.lines()
    )


# --- where it is said ------------------------------------------------------------------------------------------------


def test_runs_and_evaluations_say_what_they_found(tmp_path, capsys):
    root = tmp_path / "my, [pictures] = 1"
    _draw(root, *(f"{split}/{kind}/{n}.png" for split in ("first", "second") for kind in "ab" for n in range(12)))
    (root / "IMG_1.cr2").touch()
    run = tmp_path / "run"
    chosen = [
        "data=image_folder",
        f"data.root={root}",
        "data.image_size=8",
        "data.splits={train: [first], test: [second]}",
    ]
    short = ["trainer.max_epochs=1", "online.every_epochs=0", "batch_size=4", f"run_dir={run}"]
    tiny = [setting for setting in TINY if not setting.startswith(("data.", "trainer.max", "online.", "batch_size"))]
    assert main(["train", "method=simclr", *tiny, *short, *chosen]) == 0
    said = capsys.readouterr().out
    assert "data: 48 of 49 files in" in said
    assert ".cr2" in said
    assert "test 24 (data.splits: second)" in said
    kept = json.loads((run / "environment.json").read_text("utf-8"))["data"]
    assert (kept["total"], kept["read"], kept["classes"]) == (49, 48, ["a", "b"])
    assert kept["splits"]["test"] == {"images": 24, "from": "data.splits: second"}
    knn = ["knn", f"checkpoint={run}", "eval.knn_k=[1]", "accelerator=cpu"]
    assert main(knn) == 0
    assert "data: " not in capsys.readouterr().out
    second = [f"data.root=[{tmp_path / 'x'},{tmp_path / 'y'}]", "data.test_fraction=0.5"]
    for folder in "xy":
        _draw(tmp_path / folder, *(f"{kind}/{n}.png" for kind in "ab" for n in range(6)))
    assert main([*knn, "data=image_folder", *second, f"run_dir={tmp_path / 'other'}"]) == 0
    assert "data: 24 of 24 files in" in capsys.readouterr().out
