import json
import logging
import os
import resource
import signal
import time

import numpy as np
import processes
import pytest
import torch
from PIL import Image

from selfsup.data import FileDataset, TrainLoader, cache, eval_batches, load_splits
from selfsup.data.form import UndecodableError
from selfsup.errors import UserError
from selfsup.registry import sources

SIDE = 8


def _folder(root, count, broken=()):
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (9 + number % 5, 13, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        if number in broken:
            path.write_bytes(b"no image")
    return root


def _load(root, where, **settings):
    given = {"holdout": 0, "image_size": SIDE, "test_fraction": 0.0, "resident_limit_mb": 0, "max_undecodable": 0.2}
    config = sources["image_folder"].config(root=str(root), cache=where and str(where), **(given | settings))
    return load_splits(config)


def _caches(where):
    return sorted(path.name for path in where.iterdir() if path.is_dir())


def _files(where):
    return {
        str(path.relative_to(where)): path.read_bytes()
        for path in where.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def _equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.label, b.label)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_cut_short_while_it_is_read_is_a_sentence(tmp_path, workers):
    """And no end of the process: what is mapped into memory and no longer there cannot be read."""
    train = _load(_folder(tmp_path / "images", 90), tmp_path / "cache").train
    batches = iter(TrainLoader(train, 6, 0, workers=workers))
    next(batches)
    os.truncate(next((tmp_path / "cache").rglob("images.u8")), 10)
    with pytest.raises(UserError, match=r"data\.cache: .*images\.u8 is damaged; delete"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_equals_streamed(tmp_path, workers):
    root = _folder(tmp_path / "images", 23, broken=(4, 5))
    streamed, cached = _load(root, None).train, _load(root, tmp_path / "cache").train
    assert (streamed.cached, cached.cached) == (False, True)
    ours, theirs = (TrainLoader(part, 6, 0, workers=workers) for part in (cached, streamed))
    for _ in range(3):  # with what is read ahead at the ends of epochs
        _equal(ours, theirs)
    _equal(eval_batches(cached, 4, workers), eval_batches(streamed, 4, workers))
    positions = torch.tensor([20, 3, 7])
    _equal(eval_batches(cached.subset(positions), 2, workers), eval_batches(streamed.subset(positions), 2, workers))


def test_resident_images_come_from_the_cache(tmp_path, monkeypatch):
    root = _folder(tmp_path / "images", 10, broken=(3,))
    decoded = _load(root, None, resident_limit_mb=10).train
    _load(root, tmp_path / "cache")
    monkeypatch.setattr(FileDataset, "_decode", lambda self, row: pytest.fail("decoded again"))
    cached = _load(root, tmp_path / "cache", resident_limit_mb=10).train
    assert cached.resident
    _equal(eval_batches(cached, 4), eval_batches(decoded, 4))


@pytest.mark.parametrize("workers", [0, 1])
def test_later_epochs_do_not_decode(tmp_path, monkeypatch, workers):
    root = _folder(tmp_path / "images", 12)
    _load(root, tmp_path / "cache")
    monkeypatch.setattr(FileDataset, "_decode", lambda self, row: pytest.fail("decoded again"))
    train = _load(root, tmp_path / "cache").train
    assert len(list(eval_batches(train, 5, workers))) == 3


def test_train_and_test_have_caches_of_their_own(tmp_path):
    root = _folder(tmp_path / "images", 12)
    splits = _load(root, tmp_path / "cache", test_fraction=0.25)
    assert len(_caches(tmp_path / "cache")) == 2
    streamed = _load(root, None, test_fraction=0.25)
    _equal(eval_batches(splits.test, 5), eval_batches(streamed.test, 5))
    _equal(eval_batches(splits.train, 5), eval_batches(streamed.train, 5))


# --- undecodable files -----------------------------------------------------------------------------------------------


def test_undecodable_files_are_remembered_and_reported(tmp_path, caplog, monkeypatch):
    root = _folder(tmp_path / "images", 12, broken=(2,))
    for attempt in range(2):
        if attempt:
            monkeypatch.setattr(FileDataset, "_decode", lambda self, row: pytest.fail("decoded again"))
        caplog.clear()
        train = _load(root, tmp_path / "cache").train
        list(TrainLoader(train, 6, 0))
        assert [r.getMessage() for r in caplog.records if "002.png" in r.getMessage() and r.levelno == logging.WARNING]
        with pytest.raises(UserError, match=r"002\.png cannot be decoded"):
            train.read(torch.arange(len(train)))
        with pytest.raises(UserError, match=r"^1 of 12 images .* data.max_undecodable above 0.0"):
            _load(root, tmp_path / "cache", max_undecodable=0.0)


def test_a_cache_that_lacks_images_for_want_of_a_package_is_built_again_when_that_is_there(
    tmp_path, caplog, monkeypatch
):
    root = _folder(tmp_path / "images", 6)
    good = FileDataset.encoded
    with pytest.MonkeyPatch.context() as patch:

        def needs(self, row):
            if row == 3:
                raise UndecodableError("003.png", "it needs a package: pip install 'selfsup[x]'")
            return good(self, row)

        patch.setattr(FileDataset, "encoded", needs)
        patch.setattr(cache, "PACKAGES", ())
        for _ in range(2):
            assert len(next(eval_batches(_load(root, tmp_path / "cache", max_undecodable=0.3).train, 6)).index) == 5
        assert "built again" not in caplog.text
    monkeypatch.setattr(cache, "PACKAGES", ("torch",))
    train = _load(root, tmp_path / "cache").train
    assert torch.equal(train.read(torch.arange(6)), _load(root, None).train.read(torch.arange(6)))
    assert "built without a package that is here now, and is built again" in caplog.text
    assert len(_caches(tmp_path / "cache")) == 1


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_a_failure_that_may_pass_is_not_remembered(tmp_path, error):
    root = _folder(tmp_path / "images", 6)
    good = FileDataset.encoded
    with pytest.MonkeyPatch.context() as patch:

        def fails(self, row):
            if row == 3:
                raise UndecodableError("003.png") from error
            return good(self, row)

        patch.setattr(FileDataset, "encoded", fails)
        with pytest.raises(UserError, match="may pass"):
            _load(root, tmp_path / "cache")
    cached, streamed = _load(root, tmp_path / "cache").train, _load(root, None).train
    assert torch.equal(cached.read(torch.arange(6)), streamed.read(torch.arange(6)))


def test_a_file_that_may_not_be_read_is_undecodable(tmp_path):
    root = _folder(tmp_path / "images", 6)
    train = _load(root, None).train
    (root / "a" / "002.png").unlink()  # since it was listed
    train.use_cache(tmp_path / "cache")
    assert train.read_decodable(torch.arange(6))[1].tolist() == [number != 1 for number in range(6)]  # a/000, a/002, …


# --- the key ---------------------------------------------------------------------------------------------------------


def test_the_same_files_and_settings_have_the_same_cache(tmp_path):
    root = _folder(tmp_path / "images", 6)
    for settings in ({}, {"limit": 3}, {"holdout": 0.5}, {"subset_seed": 3}, {"mean": [0.0, 0.0, 0.0]}):
        _load(root, tmp_path / "cache", **settings)
    assert len(_caches(tmp_path / "cache")) == 1


def _replaced(root):
    """Other content of the same size, with the old date."""
    path = root / "a" / "002.png"
    old = path.stat()
    content = bytearray(path.read_bytes())
    Image.new("RGB", (20, 20), "red").save(path)
    path.write_bytes(path.read_bytes() + bytes(len(content) - path.stat().st_size))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)


CHANGES = {
    "content": lambda root: Image.new("RGB", (9, 9), "red").save(root / "a" / "002.png"),
    "content of the same size and date": _replaced,
    "repaired": lambda root: Image.new("RGB", (9, 9), "red").save(root / "b" / "001.png"),
    "added": lambda root: Image.new("RGB", (9, 9)).save(root / "a" / "100.png"),
    "removed": lambda root: (root / "a" / "002.png").unlink(),
    "renamed": lambda root: (root / "a" / "002.png").rename(root / "a" / "zzz.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_files_is_never_missed(tmp_path, change):
    root = _folder(tmp_path / "images", 6, broken=(1,))
    _load(root, tmp_path / "cache")
    time.sleep(0.02)  # the clock of the file system is coarse
    CHANGES[change](root)
    cached, streamed = _load(root, tmp_path / "cache").train, _load(root, None).train
    assert len(_caches(tmp_path / "cache")) == 2
    every = torch.arange(len(streamed))
    for ours, theirs in zip(cached.read_decodable(every)[:2], streamed.read_decodable(every)[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_settings_that_change_pixels_make_another_cache(tmp_path, monkeypatch):
    root = _folder(tmp_path / "images", 6)
    _load(root, tmp_path / "cache")
    assert _load(root, tmp_path / "cache", source_size=12).train.read(torch.tensor([0])).shape == (1, 3, 12, 12)
    assert len(_caches(tmp_path / "cache")) == 2
    _load(root, tmp_path / "cache", max_aspect=1.2)
    assert len(_caches(tmp_path / "cache")) == 3
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    _load(root, tmp_path / "cache")
    assert len(_caches(tmp_path / "cache")) == 4


# --- interrupted and concurrent builds -------------------------------------------------------------------------------


def _build(words):
    """Build a cache, slowly, in a process of its own: where each image that is decoded leaves its row in a file."""
    root, where, pause, log = words
    decode = FileDataset._decode

    def slow(self, row):
        time.sleep(float(pause))
        with open(log, "a") as file:
            file.write(f"{row}\n")
        return decode(self, row)

    FileDataset._decode = slow
    cache.TASK, cache.SYNC = 2, 8 * 3 * 8 * 8  # journal after eight images
    print(_load(root, where).train.cached)


def _start(root, where, pause, log, name="said"):
    return processes.Running(_build, [str(root), str(where), str(pause), str(log)], log.parent, name)


def _lines(path):
    return path.read_text().split() if path.exists() else []


def test_a_killed_build_goes_on_and_gives_the_same_bytes(tmp_path):
    root = _folder(tmp_path / "images", 60, broken=(7, 50))
    _load(root, tmp_path / "whole")
    where, log = tmp_path / "cache", tmp_path / "log"

    def noted():
        journal = next(where.glob("*.part/journal.u8"), None)
        return 0 if journal is None else sum(state != 0 for state in journal.read_bytes())

    killed = _start(root, where, 0.05, log)
    processes.wait_for(lambda: noted() >= 16, killed)
    killed.signal(signal.SIGKILL)
    killed.wait()
    kept = noted()
    assert 16 <= kept < 60
    assert [name for name in _caches(where) if not name.endswith(".part")] == []  # nothing that would be read
    # what the journal does not vouch for is written anew, whatever is there
    part = next(where.glob("*.part"))
    journal = np.frombuffer((part / "journal.u8").read_bytes(), np.uint8)
    sides = np.fromfile(part / "shapes.i32", np.int32).reshape(60, 2)
    assert len(np.unique(sides, axis=0)) > 3  # each image has its own shape
    pixels = np.memmap(part / "images.u8", np.uint8, "r+")
    pixels[np.repeat(journal == 0, 3 * sides.prod(1))] = 99
    pixels.flush()

    log.unlink()
    resumed = _start(root, where, 0, log).wait()
    assert resumed.stdout.strip() == "True", resumed.stderr
    assert len(_lines(log)) == 60 - kept
    assert _files(where) == _files(tmp_path / "whole")
    assert len(_files(where)) == 3


def test_a_build_killed_before_it_was_renamed_is_only_renamed(tmp_path, monkeypatch):
    root = _folder(tmp_path / "images", 6)
    _load(root, tmp_path / "cache")
    whole = _files(tmp_path / "cache")
    folder = next(path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    folder.rename(f"{folder}.part")
    (tmp_path / "cache" / f"{folder.name}.part" / "journal.u8").write_bytes(b"\1" * 6)
    monkeypatch.setattr(FileDataset, "_decode", lambda self, row: pytest.fail("decoded again"))
    _load(root, tmp_path / "cache")
    assert _files(tmp_path / "cache") == whole


def test_two_processes_build_one_cache_once(tmp_path):
    root = _folder(tmp_path / "images", 24, broken=(7,))
    where, log = tmp_path / "cache", tmp_path / "log"
    both = [_start(root, where, 0.05, log, name) for name in ("one", "other")]
    for done in [process.wait() for process in both]:
        assert done.stdout.strip() == "True", done.stderr
    assert sorted(map(int, _lines(log))) == list(range(24))  # each image by one of them
    _load(root, tmp_path / "whole")
    assert _files(where) == _files(tmp_path / "whole")


# --- what can go wrong -----------------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(tmp_path):
    root = _folder(tmp_path / "images", 6)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data.cache: .* cannot be written .* data.cache to another folder"):
        _load(root, tmp_path / "file")


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk(tmp_path, monkeypatch, call):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    root = _folder(tmp_path / "images", 6)
    monkeypatch.setattr(cache.os, call, full)
    with pytest.raises(UserError, match=r"data.cache: .*No space left on device.* takes 1.37e-06 GB .* free the space"):
        _load(root, tmp_path / "cache")
    monkeypatch.undo()
    assert torch.equal(
        _load(root, tmp_path / "cache").train.read(torch.arange(6)), _load(root, None).train.read(torch.arange(6))
    )


def test_a_file_system_that_cannot_reserve(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    root = _folder(tmp_path / "images", 6)
    monkeypatch.setattr(cache.os, "posix_fallocate", unsupported)
    assert _load(root, tmp_path / "cache").train.cached


def test_a_damaged_cache_is_named(tmp_path):
    root = _folder(tmp_path / "images", 6)
    _load(root, tmp_path / "cache")
    images = next((tmp_path / "cache").glob("*/images.u8"))
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"images.u8 is damaged; delete"):
        _load(root, tmp_path / "cache")


def _at(key, value):
    return lambda content: json.dumps(json.loads(content) | {key: value}).encode()


ABOUT = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-30],
    "no text": lambda content: b"\xff\xfe\0",
    "100,000 levels": lambda content: b"[" * 10**5 + b"]" * 10**5,
    "a list": lambda content: b"[]",
    "no keys": lambda content: b"{}",
    "rows that are a number": _at("undecodable", 3),
    "a row that is text": _at("undecodable", ["4"]),
    "a row that is no image": _at("undecodable", [6]),
    "a row below the first": _at("undecodable", [-1]),
    "a reason too many": _at("reasons", ["x", "y"]),
    "reasons that are numbers": _at("reasons", [5]),
}
SHAPES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "an image missing": lambda content: content[:-8],
    "an image of no height": lambda content: bytes(4) + content[4:],
    "an image of height -1": lambda content: b"\xff" * 4 + content[4:],
}


@pytest.mark.parametrize(
    ("name", "change"),
    [*(("about.json", c) for c in ABOUT.values()), *(("shapes.i32", c) for c in SHAPES.values())],
    ids=[*(f"about, {what}" for what in ABOUT), *(f"shapes, {what}" for what in SHAPES)],
)
def test_a_damaged_part_of_a_cache_is_named(tmp_path, name, change):
    root = _folder(tmp_path / "images", 6, broken=(4,))
    _load(root, tmp_path / "cache")
    file = next((tmp_path / "cache").glob(f"*/{name}"))
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=rf"data\.cache: .*{name} is damaged; delete"):
        _load(root, tmp_path / "cache")


@pytest.mark.parametrize("name", ["about.json", "shapes.i32", "images.u8"])
def test_a_pipe_in_a_cache_is_not_waited_for(tmp_path, name):
    root = _folder(tmp_path / "images", 6, broken=(4,))
    _load(root, tmp_path / "cache")
    file = next((tmp_path / "cache").glob(f"*/{name}"))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=rf"data\.cache: .*{name} is damaged; delete"):
        _load(root, tmp_path / "cache")


def test_a_part_cannot_make_a_cache(tmp_path):
    part = _load(_folder(tmp_path / "images", 6), None).train.subset(torch.tensor([1]))
    with pytest.raises(ValueError, match="before subset"):
        part.use_cache(tmp_path / "cache")


def test_a_disk_that_is_full_when_the_shapes_are_written(tmp_path):
    """NumPy's own writer says nothing of it: what it leaves was taken for the shapes when there was room again."""
    root = _folder(tmp_path / "images", 6)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(UserError, match=r"data\.cache: .* cannot be written or read \(File too large\)"):
            _load(root, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _load(root, tmp_path / "cache").train.cached
