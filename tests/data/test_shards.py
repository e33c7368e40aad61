import datetime
import itertools
import json
import pickle
import tarfile
import time
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY

from selfsup.checkpoint import read_checkpoint
from selfsup.cli import main
from selfsup.data import TrainLoader, eval_batches, load_splits
from selfsup.data.loader import Share, epoch_order
from selfsup.data.sources import webdataset
from selfsup.errors import UserError
from selfsup.registry import sources

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SIDE = 8
KINDS = ("webdataset", "parquet")


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # indices of shards are kept there


def _encoded(number):
    noise = np.random.default_rng(number).integers(0, 256, (9 + number % 5, 13, 3), dtype=np.uint8)
    buffer = BytesIO()
    if number % 2:
        Image.fromarray(noise).save(buffer, "PNG")
    else:
        Image.fromarray(noise).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _write_tar(path, numbers, members):
    """A tar file; ``members(number)`` gives the ends of the names and the contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for ending, content in members(number).items():
                info = tarfile.TarInfo(f"{number:04}.{ending}")
                info.size = len(content)
                tar.addfile(info, BytesIO(content))


def _write_parquet(path, numbers, row_group_size=3, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": _encoded(n), "path": f"{n}.jpg"} for n in numbers]
    columns = {"image": images, "label": [n % 3 for n in numbers], **columns}
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


def _member(number):
    return {"jpg" if number % 2 == 0 else "png": _encoded(number), "cls": str(number % 3).encode()}


def _shards(kind, root, sizes=(7, 5, 8), prefix="shard", start=0):
    """Shards of numbered images whose label is number % 3; returns how many images."""
    for place, size in enumerate(sizes):
        numbers = range(start, start + size)
        if kind == "webdataset":
            _write_tar(root / f"{prefix}-{place:03}.tar", numbers, _member)
        else:
            _write_parquet(root / f"{prefix}-{place:03}.parquet", numbers)
        start += size
    return start


def _folder(root, count):
    for number in range(count):
        path = root / f"c{number % 3}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encoded(number))  # the content says what it is, not the ending


def _load(kind, root, **settings):
    given = {"holdout": 0, "image_size": SIDE, "test_fraction": 0.0, "resident_limit_mb": 0, "max_undecodable": 0.2}
    return load_splits(sources[kind].config(root=str(root), **(given | settings)))


def _equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.label, b.label)


def _indices(batches):
    return [batch.index.tolist() for batch in batches]


# --- the same images from every source -------------------------------------------------------------------------------


def test_every_source_gives_the_same_images(tmp_path):
    count = _shards("webdataset", tmp_path / "tars")
    _shards("parquet", tmp_path / "tables")
    _folder(tmp_path / "images", count)
    # a folder sorts by class; its rows are brought to the order of the numbers
    files = _load("image_folder", tmp_path / "images").train
    by_number = sorted(range(count), key=lambda row: files.row_name(row).split("/")[1])
    expected = files.read_decodable(torch.tensor(by_number))
    every = torch.arange(count)
    for kind, root in (("webdataset", tmp_path / "tars"), ("parquet", tmp_path / "tables")):
        for settings in ({}, {"cache": str(tmp_path / "cache")}, {"resident_limit_mb": 10}):
            train = _load(kind, root, **settings).train
            assert (train.cached, train.resident) == ("cache" in settings, "resident_limit_mb" in settings)
            for ours, theirs in zip(train.read_decodable(every), expected, strict=True):
                assert torch.equal(ours, theirs)
            assert torch.equal(train.labels, every % 3)
            assert train.classes == ("0", "1", "2")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 6])
def test_training_is_the_same_in_memory_cached_and_streamed(tmp_path, kind, window):
    _shards(kind, tmp_path)
    streamed = _load(kind, tmp_path, shuffle_window=window).train
    for _ in range(2):
        _equal(
            TrainLoader(streamed, 6, 0, workers=2, position=lambda: (1, 0)),
            TrainLoader(streamed, 6, 0, position=lambda: (1, 0)),
        )
    cached = _load(kind, tmp_path, shuffle_window=window, cache=str(tmp_path / "cache")).train
    resident = _load(kind, tmp_path, shuffle_window=window, resident_limit_mb=10).train
    _equal(TrainLoader(cached, 6, 0, workers=1), TrainLoader(resident, 6, 0))
    if window is None:
        _equal(TrainLoader(streamed, 6, 0), TrainLoader(resident, 6, 0))
    _equal(eval_batches(streamed, 6, 2), eval_batches(resident, 6))


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("window", "workers"), [(None, 0), (6, 0), (6, 2), pytest.param(None, 2, marks=pytest.mark.long)]
)
def test_order_over_ranks_and_resuming(tmp_path, kind, window, workers):
    _shards(kind, tmp_path)
    train = _load(kind, tmp_path, shuffle_window=window).train.subset(torch.arange(1, 19))
    whole = _indices(TrainLoader(train, 4, 3, workers=workers, position=lambda: (2, 0)))
    assert len({index for batch in whole for index in batch}) == 16
    for world_size in (2, 4):
        shares = [
            _indices(TrainLoader(train, 4, 3, Share(rank, world_size), workers, lambda: (2, 0)))
            for rank in range(world_size)
        ]
        assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    for done in (1, 3):
        rest = _indices(TrainLoader(train, 4, 3, workers=workers, position=lambda done=done: (2, done)))
        assert rest == whole[done:]


def test_a_window_keeps_blocks_together_and_shuffles_within():
    blocks = torch.tensor([2] * 30 + [0] * 20 + [1] * 10 + [0] * 20)  # a part can hold a block in pieces
    orders = [epoch_order(80, seed, epoch, (blocks, 1)) for seed in range(4) for epoch in range(4)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(80))
        met = [key for key, _ in itertools.groupby(blocks[order].tolist())]
        assert sorted(met) == [0, 1, 2]  # one block after the other
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    assert len({tuple(dict.fromkeys(blocks[order].tolist())) for order in orders}) > 2
    assert torch.equal(epoch_order(80, 1, 2, (blocks, 1)), orders[6])
    # two blocks of 40 and 10, or more, are shuffled with each other
    wide = epoch_order(80, 0, 0, (blocks, 80))
    assert len(list(itertools.groupby(blocks[wide].tolist()))) > 10


def test_parquet_reads_each_group_once_in_an_epoch_and_in_evaluation(tmp_path, monkeypatch):
    _write_parquet(tmp_path / "a.parquet", range(40), row_group_size=5)
    train = _load("parquet", tmp_path, shuffle_window=10).train
    train._groups._open.clear()  # what the shapes of some images were read from
    read = []
    groups = type(train._groups)
    inner = groups._read
    monkeypatch.setattr(groups, "_read", lambda self, group: (read.append(group), inner(self, group))[1])
    list(TrainLoader(train, 5, 0, epochs=1))
    assert sorted(read) == list(range(8))
    read.clear()
    list(eval_batches(train, 7))
    assert sorted(read) == sorted(set(read))
    assert len(read) <= 8  # those still held from training are not read again


@pytest.mark.parametrize("kind", KINDS)
def test_datasets_travel_to_spawned_workers(tmp_path, kind):
    _shards(kind, tmp_path)
    train = _load(kind, tmp_path).train
    expected = train.read(torch.arange(len(train)))
    assert torch.equal(pickle.loads(pickle.dumps(train)).read(torch.arange(len(train))), expected)


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("data/train", "data/validation"),
        ("train/a", "val/a"),
        ("toy-train", "toy-val"),
        ("Training/a", "x-TESTING-y"),
        ("train", "valid"),
    ],
)
def test_names_and_folders_say_the_split(tmp_path, kind, train, test):
    _shards(kind, tmp_path, (4, 3), train)
    _shards(kind, tmp_path, (5,), test, start=7)
    splits = _load(kind, tmp_path, test_fraction=0.5)
    assert (len(splits.train), len(splits.test)) == (7, 5)
    assert torch.equal(splits.test.labels, torch.arange(7, 12) % 3)
    assert splits.test.split == "test"


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_split_can_be_chosen(tmp_path, kind):
    for name, size in (("train", 4), ("test", 3), ("validation", 2), ("extra", 6)):
        _shards(kind, tmp_path, (size,), name)
    assert [len(_load(kind, tmp_path, test_split=name).test) for name in (None, "validation", "val")] == [3, 2, 2]
    for wrong in ("train", "extra"):
        with pytest.raises(UserError, match=f"data.test_split is {wrong}, .* test, train, val; choose"):
            _load(kind, tmp_path, test_split=wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_counted_and_what_is_called_val_is_for_choices_beside_a_test_split(tmp_path, kind):
    for name, size in (("train", 4), ("test", 3), ("validation", 2), ("extra", 6)):
        _shards(kind, tmp_path, (size,), name)
    splits = _load(kind, tmp_path, holdout=0.5)
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (4, 2, 3)
    found = splits.found
    assert (found.read, found.total, found.unit) == (9, 15, "images")
    assert {reason: dict(counts) for reason, counts in found.left_out.items()} == {
        "in shards of no split": {next(path.name for path in tmp_path.iterdir() if path.name.startswith("extra")): 6}
    }
    assert {split: count for split, (count, _) in found.splits.items()} == {"train": 4, "holdout": 2, "test": 3}
    # asked for, val is tested on, and by position the hold-out is drawn as it was before
    assert len(_load(kind, tmp_path, test_split="val").test) == 2
    before = _load(kind, tmp_path, holdout=0.5, membership="position")
    assert (len(before.train), len(before.holdout), before.found.total) == (2, 2, 15)


@pytest.mark.parametrize("kind", KINDS)
def test_splits_can_be_said(tmp_path, kind):
    for name, size in (("a", 4), ("b", 3), ("c", 2), ("d/x", 6)):
        _shards(kind, tmp_path, (size,), name)
    splits = _load(kind, tmp_path, splits={"train": ["a-*", "b-*"], "test": ["d"]})
    assert (len(splits.train), len(splits.test), splits.found.total) == (7, 6, 15)
    with pytest.raises(UserError, match=r"data.splits.test: nowhere is not a folder"):
        _load(kind, tmp_path, splits={"train": ["a-*"], "test": ["nowhere"]})


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_test_split_is_that_of_a_folder(tmp_path, kind):
    count = _shards(kind, tmp_path / "shards")
    first, second = (_load(kind, tmp_path / "shards", test_fraction=0.25, subset_seed=seed) for seed in (0, 1))
    assert 0 < len(first.test) < 20
    assert torch.equal(first.test.index, second.test.index)
    assert torch.equal(first.test.keys, second.test.keys)
    by_position = _load(kind, tmp_path / "shards", test_fraction=0.25, membership="position")
    assert (len(by_position.train), len(by_position.test)) == (15, 5)
    assert sorted(first.train.labels.tolist() + first.test.labels.tolist()) == sorted(n % 3 for n in range(count))
    with pytest.raises(UserError, match=r"data.test_split is test but no shard .* named train"):
        _load(kind, tmp_path / "shards", test_split="test")


# --- labels ----------------------------------------------------------------------------------------------------------


def _json(number):
    return {"json": json.dumps({"label": None if number == 3 else f"k{number % 2}"}).encode(), "png": _encoded(number)}


def test_labels_of_a_webdataset(tmp_path):
    _write_tar(tmp_path / "json" / "a.tar", range(5), _json)
    named = _load("webdataset", tmp_path / "json").train
    assert (named.labels.tolist(), named.classes) == ([0, 1, 0, -1, 0], ("k0", "k1"))
    assert _load("webdataset", tmp_path / "json", label_field="other").train.labels is None
    _write_tar(tmp_path / "none" / "a.tar", range(5), lambda n: {"png": _encoded(n), "txt": b"a caption"})
    unlabelled = _load("webdataset", tmp_path / "none").train
    assert (unlabelled.labels, unlabelled.classes, len(unlabelled)) == (None, None, 5)
    _shards("webdataset", tmp_path / "numbers", (4,))
    (tmp_path / "numbers" / "classes.txt").write_text("cat\ndog\nemu\nfox\n")
    assert _load("webdataset", tmp_path / "numbers").train.classes == ("cat", "dog", "emu", "fox")
    (tmp_path / "numbers" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"label 2, but class numbers end at 1"):
        _load("webdataset", tmp_path / "numbers")


def _sparse(name, content, size):
    """A member of some bytes that claims to be of another size, the rest of which is holes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT)[: tarfile.BLOCKSIZE])
    head[156:157] = tarfile.GNUTYPE_SPARSE
    head[386:410] = b"%011o\0%011o\0" % (0, len(content))
    head[483:495] = b"\x80" + size.to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


@pytest.mark.parametrize("name", ["a.png", "0000.cls", "0000.json"])
def test_a_member_that_claims_more_than_it_holds_is_not_read(tmp_path, name):
    """40 GB of holes would be read into memory, byte by byte of them."""
    _write_tar(tmp_path / "t.tar", range(4), lambda number: _member(number) if number else {"png": _encoded(0)})
    file = tmp_path / "t.tar"
    whole = file.read_bytes()
    begin = tarfile.BLOCKSIZE + -(-len(_encoded(0)) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE  # behind the first image
    file.write_bytes(whole[:begin] + _sparse(name, b"x" * 10, 40 * 2**30) + whole[begin:])
    began = time.monotonic()
    found = _load("webdataset", tmp_path).train
    assert (len(found), found.labels[0]) == (4, -1)
    assert time.monotonic() - began < 30


def test_a_label_of_many_bytes_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MOST_LABEL", 20)
    labels = [b"1", b"1" * 21, b"0"]
    _write_tar(tmp_path / "t.tar", range(3), lambda number: {"png": _encoded(number), "cls": labels[number]})
    assert _load("webdataset", tmp_path).train.labels.tolist() == [1, -1, 0]


def test_labels_of_parquet(tmp_path):
    _write_parquet(tmp_path / "a" / "a.parquet", range(4), label=["x", None, "w", "x"])
    named = _load("parquet", tmp_path / "a").train
    assert (named.labels.tolist(), named.classes) == ([1, -1, 0, 1], ("w", "x"))
    features = {"info": {"features": {"fine": {"_type": "ClassLabel", "names": ["cat", "dog", "emu"]}}}}
    table = pa.table({"jpg": [_encoded(n) for n in range(3)], "fine": [2, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    (tmp_path / "b").mkdir()
    pq.write_table(table, tmp_path / "b" / "a.parquet")
    assert _load("parquet", tmp_path / "b").train.labels is None
    hub = _load("parquet", tmp_path / "b", label_column="fine").train
    assert (hub.labels.tolist(), hub.classes) == ([2, 0, -1], ("cat", "dog", "emu"))
    assert torch.equal(hub.read(torch.arange(3)), named.read(torch.arange(3)))


@pytest.mark.parametrize("value", [[1, 3], 0.25])
def test_labels_that_are_no_classes_are_left_out_with_a_note_or_refused_where_they_are_asked_for(tmp_path, value):
    def member(number):
        return {"png": _encoded(number), "json": json.dumps({"label": value, "own": value}).encode()}

    _write_tar(tmp_path / "a.tar", range(6), member)
    splits = _load("webdataset", tmp_path)
    assert (splits.train.labels, splits.train.classes, splits.found.labels) == (None, None, None)
    assert [note for note in splits.found.notes if note.startswith("label holds no classes and is left out: ")]
    with pytest.raises(UserError, match=r"^data.label_\w+: own holds no classes"):
        _load("webdataset", tmp_path, label_field="own")


def test_days_and_other_values_of_parquet_are_classes_by_their_names(tmp_path):
    days = [datetime.date(2026, 1, 1 + number % 2) for number in range(6)]
    _write_parquet(tmp_path / "a.parquet", range(6), label=days)
    splits = _load("parquet", tmp_path)
    assert splits.train.classes == ("2026-01-01", "2026-01-02")
    assert [splits.train.labels[at] for at in range(6)] == [0, 1] * 3


def test_a_parquet_column_of_lists_or_real_numbers_holds_targets(tmp_path):
    tags, ages = [[0, 2], [1], None, [], [2], [0]], [0.5, None, 2.0, 3.5, 1.0, 4.0]
    _write_parquet(tmp_path / "a.parquet", range(6), label=tags, age=ages, deep=[[[1]]] * 6)
    train = _load("parquet", tmp_path).train
    assert train.labels is None
    assert (train.targets.kind, train.targets.names) == ("multilabel", ("0", "1", "2"))
    rows = [[1, 0, 1], [0, 1, 0], [-1] * 3, [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert train.targets.of(train.index).tolist() == [rows[i] for i in train.index.tolist()]
    images = train.read(torch.arange(6))
    halves = _load("parquet", tmp_path, test_fraction=0.5)
    for part in (halves.train, halves.test):
        at = [int((images == image).flatten(1).all(1).nonzero()) for image in part.read(torch.arange(len(part)))]
        assert part.targets.of(part.index).tolist() == [rows[train.index[place]] for place in at]
    train = _load("parquet", tmp_path, label_column="age").train
    assert train.targets.kind == "real"
    assert [v == v and v for (v,) in train.targets.of(train.index).tolist()] == [ages[i] or False for i in train.index]
    for column, message in (("deep", "own|deep holds no classes"), ("gone", "there is no gone")):
        with pytest.raises(UserError, match=message):
            _load("parquet", tmp_path, label_column=column)
    with pytest.raises(UserError, match="label holds no classes"):
        _load("parquet", tmp_path, label_column="label", targets="classes")


def test_real_numbers_in_cls_are_no_classes(tmp_path):
    _write_tar(tmp_path / "a.tar", range(4), lambda n: {"png": _encoded(n), "cls": f"{n / 4 + 1e-3}".encode()})
    splits = _load("webdataset", tmp_path)
    assert splits.train.labels is None
    assert "it holds real numbers" in splits.found.notes[0]


def test_the_next_column_that_holds_classes_is_taken(tmp_path):
    _write_parquet(tmp_path / "a.parquet", range(4), label=[[1]] * 4, cls=["x", "y", "x", "x"])
    splits = _load("parquet", tmp_path)
    assert (splits.train.labels.tolist(), splits.found.labels) == ([0, 1, 0, 0], "the column cls")


def test_rows_that_hold_only_paths_are_told_from_damaged_images(tmp_path):
    images = [{"bytes": None, "path": f"photos/{n}.jpg"} for n in range(5)]
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    pq.write_table(pa.table({"image": images}, schema=schema), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"5 of the 5 rows .* only its path.*embed_table_storage.*data=image_folder"):
        _load("parquet", tmp_path)


def test_the_image_of_a_sample_can_be_chosen(tmp_path):
    _write_tar(tmp_path / "a.tar", range(3), lambda n: {"seg.png": _encoded(n + 100), "jpg": _encoded(2 * n)})
    first = _load("webdataset", tmp_path).train
    assert first.row_name(1) == "a.tar/0001.jpg"
    assert _load("webdataset", tmp_path, image="seg.png").train.row_name(1) == "a.tar/0001.seg.png"
    with pytest.raises(UserError, match=r"data.image"):
        _load("webdataset", tmp_path, image="webp")


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cached", [False, True])
def test_bad_members_are_counted_and_skipped(tmp_path, kind, cached, caplog):
    def member(number):
        return {"png": b"no image" if number == 2 else _encoded(number)}

    if kind == "webdataset":
        _write_tar(tmp_path / "a.tar", range(12), member)
    else:
        images = [{"bytes": None if n == 2 else _encoded(n), "path": "p"} for n in range(12)]
        _write_parquet(tmp_path / "a.parquet", range(12), image=images)
    settings = {"cache": str(tmp_path / "cache")} if cached else {}
    train = _load(kind, tmp_path, **settings).train
    batches = list(TrainLoader(train, 12, 0, epochs=1))
    assert 2 not in batches[0].index
    assert sorted(batches[0].index.tolist()).count(3) == 2
    name = "a.tar/0002.png" if kind == "webdataset" else "a.parquet/2"
    assert [record for record in caplog.records if name in record.getMessage()]
    assert _indices(eval_batches(train, 6)) == [[0, 1, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    said = r"^1 of 12 images .* above 0.0" if kind == "webdataset" else r"^data.root: 1 of the 12 rows .* only its path"
    with pytest.raises(UserError, match=said):
        list(eval_batches(_load(kind, tmp_path, max_undecodable=0.0, **settings).train, 6))


@pytest.mark.parametrize("damage", ["cut", "cut at a header", "overwritten", "compressed", "no tar"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    _shards("webdataset", tmp_path, (6, 6))
    path = tmp_path / "shard-001.tar"
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        places = [member.offset for member in tar]
    if damage == "cut":
        path.write_bytes(content[: places[6] + 600])
    elif damage == "cut at a header":
        path.write_bytes(content[: places[6] + 100])
    elif damage == "overwritten":
        path.write_bytes(content[: places[6]] + b"x" * 512 + content[places[6] + 512 :])
    elif damage == "compressed":
        with tarfile.open(path, "w:gz") as tar:
            tar.add(__file__)
    else:
        path.write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"shard-001.tar is not a tar file, is compressed or is damaged"):
        _load("webdataset", tmp_path)


def test_the_index_is_built_once_and_anew_when_a_shard_changes(tmp_path, monkeypatch):
    from selfsup.data.sources import webdataset

    _shards("webdataset", tmp_path / "shards", (4,))
    for settings in ({}, {"cache": str(tmp_path / "cache")}):
        expected = _load("webdataset", tmp_path / "shards", **settings).train
        with monkeypatch.context() as patch:
            patch.setattr(webdataset, "_scan", lambda *arguments: pytest.fail("scanned again"))
            kept = _load("webdataset", tmp_path / "shards", **settings).train
        assert torch.equal(kept.read(torch.arange(4)), expected.read(torch.arange(4)))
        assert torch.equal(kept.labels, expected.labels)
    _shards("webdataset", tmp_path / "shards", (5,), start=3)
    assert _load("webdataset", tmp_path / "shards").train.labels.tolist() == [0, 1, 2, 0, 1]


def test_an_index_that_cannot_be_kept_is_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    _shards("webdataset", tmp_path / "shards", (4,))
    assert len(_load("webdataset", tmp_path / "shards").train) == 4
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_folders_that_cannot_be_used(tmp_path, kind):
    config = sources[kind].config
    (tmp_path / "shards.tar.gz").touch()
    for root in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=r"^data.root"):
            load_splits(config(root=root and str(root)))
    for setting, value in (("test_fraction", 1.0), ("max_undecodable", -0.1), ("shuffle_window", 0)):
        with pytest.raises(UserError, match=f"^data.{setting}"):
            load_splits(config(root=str(tmp_path), **{setting: value}))


def test_parquet_files_that_cannot_be_used(tmp_path):
    _write_parquet(tmp_path / "a.parquet", range(4), second=[b"x"] * 4, boxes=[[1]] * 4)
    with pytest.raises(UserError, match=r"^data.image_column: label holds no .*: image, second"):
        _load("parquet", tmp_path, image_column="label")
    with pytest.raises(UserError, match=r"^data.label_column: there is no other"):
        _load("parquet", tmp_path, label_column="other")
    with pytest.raises(UserError, match=r"^data.label_column: boxes holds no classes"):
        _load("parquet", tmp_path, label_column="boxes", targets="classes")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"^data.root: a file in .* is not a Parquet file"):
        _load("parquet", tmp_path)
    (tmp_path / "b.parquet").unlink()
    pq.write_table(pa.table({"x": [b"1"], "y": [b"2"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"^data.image_column is not set and x, y could hold"):
        _load("parquet", tmp_path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs the package pyarrow.*selfsup\[parquet\]"):
        _load("parquet", tmp_path)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.long)])
def test_training_from_the_command_line(tmp_path, monkeypatch, kind):
    _shards(kind, tmp_path / "shards", (12, 12), "train")
    _shards(kind, tmp_path / "shards", (9,), "test", start=24)
    monkeypatch.chdir(tmp_path)
    settings = [setting for setting in TINY if not setting.startswith("data.")]
    streamed, cached = ["data.workers=1", "data.resident_limit_mb=0"], ["data.cache=cache", "data.resident_limit_mb=0"]
    for run_dir, more in (("streamed", streamed), ("cached", cached)):
        more = ["data.image_size=16", "data.shuffle_window=null", *more, f"run_dir={run_dir}"]
        assert main(["train", f"data={kind}", "data.root=shards", *more, *settings]) == 0
        assert main(["knn", f"checkpoint={run_dir}", "eval.knn.k=[3]"]) == 0
    ours, theirs = (read_checkpoint(name)["state_dict"] for name in ("streamed", "cached"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_long_images_and_classes_without_training_images_are_told(tmp_path, kind):
    buffer = BytesIO()
    Image.new("RGB", (80, 8)).save(buffer, "PNG")
    for split, label in (("train", 0), ("test", 1)):
        if kind == "webdataset":
            members = {"png": buffer.getvalue(), "cls": str(label).encode()}
            _write_tar(tmp_path / f"{split}-0.tar", range(3), lambda n, members=members: members)
        else:
            table = pa.table(
                {"image": [{"bytes": buffer.getvalue() + bytes(n)} for n in range(3)], "label": [label] * 3}
            )
            pq.write_table(table, tmp_path / f"{split}-0.parquet")
    notes = " ".join(_load(kind, tmp_path, shuffle_window=None).found.notes)
    assert "keeps 40% of a typical image" in notes
    assert "1 class has no training image, 1 for one" in notes
