"""Adding or removing images moves no other, and what a run was trained on is kept."""

import io
import tarfile
import unicodedata
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsup.data import load_splits
from selfsup.data.membership import EARLIER, HOLDOUT, PRETRAIN, TEST, TRAIN, Membership, name_keys, read_membership
from selfsup.errors import UserError
from selfsup.registry import sources

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

KINDS = ("image_folder", "webdataset", "parquet")
SETTINGS = {"image_size": 8, "resident_limit_mb": 0, "holdout": 0.3, "test_fraction": 0.3}


def _content(number):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 255 - number, 7)).save(file, "PNG")
    return file.getvalue()


def _write(kind, root, numbers):
    """Write the images with these numbers; shards hold five each, so that most of them move when one is added."""
    root.mkdir(parents=True)
    if kind == "image_folder":
        for number in numbers:
            (root / f"{number % 3}").mkdir(exist_ok=True)
            (root / f"{number % 3}" / f"{number}.png").write_bytes(_content(number))
        return
    for begin in range(0, len(numbers), 5):
        some = numbers[begin : begin + 5]
        if kind == "parquet":
            table = pa.table({"image": [{"bytes": _content(n), "path": "same.png"} for n in some]})
            pq.write_table(table, root / f"{begin:03}-of-{len(numbers)}.parquet")
            continue
        with tarfile.open(root / f"{begin:03}-of-{len(numbers)}.tar", "w") as tar:
            for number in some:
                info = tarfile.TarInfo(f"{number}.png")
                info.size = len(_content(number))
                tar.addfile(info, io.BytesIO(_content(number)))


def _parts(kind, root, **more):
    """The numbers of the images of each part."""
    config = sources[kind].config(root=str(root), cache=None, **{**SETTINGS, **more})
    splits = load_splits(config)
    parts = {"train": splits.train, "holdout": splits.holdout, "test": splits.test}
    return {
        name: set() if part is None else {int(image[0, 0, 0]) for image in part.read(torch.arange(len(part)))}
        for name, part in parts.items()
    }


@pytest.fixture
def _no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))


# --- membership is a function of the image ---------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_home")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(numbers=st.lists(st.integers(0, 250), min_size=12, max_size=30, unique=True), data=st.data())
def test_adding_or_removing_images_moves_no_other(kind, numbers, data):
    gone = set(data.draw(st.lists(st.sampled_from(numbers), max_size=6, unique=True)))
    with TemporaryDirectory() as folder:
        _write(kind, Path(folder) / "more", numbers)
        _write(kind, Path(folder) / "fewer", [number for number in numbers if number not in gone])
        more, fewer = (_parts(kind, Path(folder) / name) for name in ("more", "fewer"))
    assert {name: part - gone for name, part in more.items()} == fewer


@given(st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_the_key_of_a_name_is_its_own_and_the_same_in_every_unicode_form(names):
    keys = name_keys(names)
    assert torch.equal(torch.cat([name_keys([name]) for name in names]), keys)
    assert torch.equal(name_keys(unicodedata.normalize("NFD", name) for name in names), keys)
    assert len(keys.unique()) == len({unicodedata.normalize("NFC", name) for name in names})


@pytest.mark.usefixtures("_no_home")
@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_their_shares_and_larger_limits_contain_smaller_ones(tmp_path, kind):
    _write(kind, tmp_path / "data", list(range(250)))
    whole = _parts(kind, tmp_path / "data")
    # four standard deviations of the binomial draw
    assert abs(len(whole["test"]) - 75) < 4 * (250 * 0.3 * 0.7) ** 0.5
    assert abs(len(whole["holdout"]) / (250 - len(whole["test"])) - 0.3) < 4 * (0.3 * 0.7 / 175) ** 0.5
    assert sum(map(len, whole.values())) == len(set().union(*whole.values())) == 250
    small, large = (_parts(kind, tmp_path / "data", limit=limit) for limit in (10, 40))
    assert small["train"] < large["train"] < whole["train"]
    assert (len(small["train"]), small["holdout"], small["test"]) == (10, whole["holdout"], whole["test"])
    other = _parts(kind, tmp_path / "data", subset_seed=1)
    assert other["test"] == whole["test"]
    assert other["holdout"] != whole["holdout"]


def test_samples_that_are_counted_in_every_shard_are_told_apart_and_those_of_test_shards_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    for shard in ("train-0", "train-1", "test-0"):
        with tarfile.open(tmp_path / "data" / f"{shard}.tar", "w") as tar:
            content = _content(3) + bytes(len(shard) * 10 + int(shard[-1]))
            info = tarfile.TarInfo("0000.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    config = sources["webdataset"].config(root=str(tmp_path / "data"), **{**SETTINGS, "holdout": 0.0})
    splits = load_splits(config)
    assert len(torch.cat([splits.train.keys, splits.test.keys]).unique()) == 3


def test_an_empty_part_is_told_with_the_way_out(tmp_path, caplog):
    _write("image_folder", tmp_path / "data", [1, 2])
    config = sources["image_folder"].config(root=str(tmp_path / "data"), image_size=8, holdout=1e-9, test_fraction=1e-9)
    splits = load_splits(config)
    assert (splits.test, len(splits.holdout), len(splits.train)) == (None, 0, 2)
    assert "data.holdout=1e-09 sets none of the 2 training images aside" in caplog.text
    assert "data.test_fraction=1e-09 sets none of the 2 images aside" in caplog.text
    with pytest.raises(UserError, match=r"data.membership is 'path'; it must be one of image, position"):
        load_splits(replace(config, membership="path"))


# --- by position, as before ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_home")
@pytest.mark.parametrize("kind", KINDS)
def test_parts_by_position_are_those_of_earlier_versions(tmp_path, kind):
    _write(kind, tmp_path / "data", list(range(30)))
    # the images in the order of the source, and the two permutations that earlier versions drew
    order = sorted(range(30), key=lambda n: f"{n % 3}/{n}.png") if kind == "image_folder" else list(range(30))
    drawn = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()[:9]
    rest = [order[place] for place in range(30) if place not in drawn]
    held = torch.randperm(21, generator=torch.Generator().manual_seed(5)).tolist()[:6]
    parts = _parts(kind, tmp_path / "data", membership="position", subset_seed=5)
    assert parts["test"] == {order[place] for place in drawn}
    assert parts["holdout"] == {rest[place] for place in held}
    assert parts["train"] == set(range(30)) - parts["test"] - parts["holdout"]


# --- the record ------------------------------------------------------------------------------------------------------


def _membership(keys, parts, **more):
    return Membership("toy", ["/data"], "image", torch.tensor(keys), torch.tensor(parts, dtype=torch.uint8), **more)


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = _membership([5, -7, 9], [PRETRAIN | TRAIN, HOLDOUT, TEST], whole=False)
    written.save(tmp_path)
    read = read_membership(tmp_path)
    assert (read.source, list(read.roots), read.rule, read.whole, read.digest) == (
        "toy",
        ["/data"],
        "image",
        False,
        written.digest,
    )
    assert read.of(HOLDOUT).tolist() == [-7]
    assert read.summary() == {
        "digest": written.digest,
        "rule": "image",
        "pretrain": 1,
        "train": 1,
        "holdout": 1,
        "test": 1,
    }
    assert read_membership(tmp_path / "elsewhere") is None
    (tmp_path / "membership.npz").write_bytes(b"PK no")
    with pytest.raises(UserError, match=r"membership.npz is damaged"):
        read_membership(tmp_path)


def test_the_digest_tells_images_parts_and_places():
    one = _membership([1, 2, 3], [PRETRAIN, 0, TEST])
    others = [
        _membership([1, 2, 4], [PRETRAIN, 0, TEST]),
        _membership([1, 2, 3], [HOLDOUT, 0, TEST]),
        _membership([2, 1, 3], [0, PRETRAIN, TEST]),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 4
    assert _membership([1, 7, 3, 8], [PRETRAIN, EARLIER, TEST, EARLIER]).digest == one.digest


def test_what_was_trained_on_is_never_forgotten():
    first = _membership([1, 2, 3, 4], [PRETRAIN, PRETRAIN, HOLDOUT, TEST])
    second = _membership([2, 3, 4, 5], [HOLDOUT, PRETRAIN, TEST, PRETRAIN]).after(first)
    third = _membership([5], [TEST]).after(second)
    assert sorted(second.of(PRETRAIN | EARLIER).tolist()) == [1, 2, 3, 5]
    assert sorted(third.of(PRETRAIN | EARLIER).tolist()) == [1, 2, 3, 5]
    assert third.digest == _membership([5], [TEST]).digest
