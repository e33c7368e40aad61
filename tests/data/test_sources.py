import gzip
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from scipy.io import savemat

from selfsup.data import load_splits
from selfsup.data.idx import read_idx
from selfsup.errors import UserError
from selfsup.registry import sources


def _load(name, root=None, **settings):
    return load_splits(sources[name].config(root=None if root is None else str(root), **{"holdout": 0, **settings}))


def _all(dataset):
    return dataset.read(torch.arange(len(dataset)))


def _random(*shape, high=256):
    return np.random.default_rng(0).integers(0, high, shape, dtype=np.uint8)


# --- IDX -----------------------------------------------------------------------------------------------------------


def _idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def _write_idx(folder, compressed, train=6, test=4):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        arrays[prefix] = _random(count, 28, 28), _random(count, high=10)
        for array, name in zip(arrays[prefix], ("images-idx3", "labels-idx1"), strict=True):
            content = _idx(array)
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content) if compressed else content)
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("name", "below"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")])
@pytest.mark.parametrize("nested", [False, True])
def test_idx_sources(tmp_path, name, below, nested, compressed):
    arrays = _write_idx(tmp_path / below if nested else tmp_path, compressed)
    splits = _load(name, tmp_path)
    for part, prefix in ((splits.train, "train"), (splits.test, "t10k")):
        images, labels = arrays[prefix]
        assert torch.equal(_all(part), torch.from_numpy(images)[:, None])
        assert part.labels.tolist() == labels.tolist()
        assert (part.channels, part.image_size, len(part.classes)) == (1, 28, 10)


def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFSUP_DATA", str(tmp_path / "none"))
    monkeypatch.setattr("selfsup.data.sources.fashion_mnist.DEBIAN_FOLDER", tmp_path / "debian")
    _write_idx(tmp_path / "debian", True)
    assert len(_load("fashion_mnist").train) == 6
    with pytest.raises(UserError, match=r"data.download=true"):  # a root that is given is the only place
        _load("fashion_mnist", tmp_path / "none")


def test_the_environment_names_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFSUP_DATA", str(tmp_path))
    _write_idx(tmp_path, False)
    assert len(_load("mnist").train) == 6


def test_truncated_and_foreign_idx_files_are_named(tmp_path):
    whole = _idx(_random(5, 28, 28))
    cases = {
        "short": whole[:-1],
        "long": whole + b"x",
        "header": whole[:10],
        "empty": b"",
        "int": struct.pack(">BBBBI", 0, 0, 0x0C, 1, 1) + b"1234",
        "short.gz": gzip.compress(whole)[:-20],
        "fake.gz": b"not gzip",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_idx(tmp_path / name)


def test_idx_reads_any_number_of_dimensions(tmp_path):
    for shape in ((7,), (2, 3), (2, 3, 4, 1)):
        array = _random(*shape)
        (tmp_path / "file").write_bytes(_idx(array))
        assert torch.equal(read_idx(tmp_path / "file"), torch.from_numpy(array))


def test_incomplete_or_mixed_idx_folders(tmp_path):
    _write_idx(tmp_path, False)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte"):
        _load("mnist", tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(_idx(_random(9, high=10)))
    with pytest.raises(UserError, match="do not belong together"):
        _load("mnist", tmp_path)


# --- through torchvision ---------------------------------------------------------------------------------------------


@pytest.fixture
def _any_checksum(monkeypatch):
    """Small files cannot have the checksums of the real ones."""
    for module in ("cifar", "svhn"):
        check = f"torchvision.datasets.{module}.check_integrity"
        monkeypatch.setattr(check, lambda path, md5=None: os.path.isfile(path))


def _pickle(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def _planes(rows):
    return torch.from_numpy(rows.reshape(-1, 3, 32, 32))


@pytest.mark.usefixtures("_any_checksum")
def test_cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    rows, labels = _random(12, 3072), _random(12, high=10).tolist()
    for batch in range(5):
        part = slice(2 * batch, 2 * batch + 2)
        _pickle(folder / f"data_batch_{batch + 1}", {"data": rows[part], "labels": labels[part]})
    _pickle(folder / "test_batch", {"data": rows[10:], "labels": labels[10:]})
    _pickle(folder / "batches.meta", {"label_names": list("abcdefghij")})
    splits = _load("cifar10", tmp_path)
    assert torch.equal(_all(splits.train), _planes(rows[:10]))
    assert torch.equal(_all(splits.test), _planes(rows[10:]))
    assert splits.train.labels.tolist() + splits.test.labels.tolist() == labels
    assert splits.train.classes == tuple("abcdefghij")


@pytest.mark.usefixtures("_any_checksum")
def test_cifar100(tmp_path):
    folder = tmp_path / "cifar-100-python"
    rows, labels = _random(12, 3072), _random(12, high=100).tolist()
    _pickle(folder / "train", {"data": rows[:9], "fine_labels": labels[:9], "coarse_labels": [0] * 9})
    _pickle(folder / "test", {"data": rows[9:], "fine_labels": labels[9:], "coarse_labels": [0] * 3})
    _pickle(folder / "meta", {"fine_label_names": [str(n) for n in range(100)]})
    splits = _load("cifar100", tmp_path)
    assert torch.equal(_all(splits.train), _planes(rows[:9]))
    assert torch.equal(_all(splits.test), _planes(rows[9:]))
    assert splits.train.labels.tolist() + splits.test.labels.tolist() == labels
    assert len(splits.train.classes) == 100


@pytest.mark.usefixtures("_any_checksum")
def test_svhn(tmp_path):
    images, labels = _random(32, 32, 3, 7), np.array([[1], [2], [10], [9], [5], [10], [3]], np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": images[..., :5], "y": labels[:5]})
    savemat(tmp_path / "test_32x32.mat", {"X": images[..., 5:], "y": labels[5:]})
    splits = _load("svhn", tmp_path)
    expected = torch.from_numpy(images).permute(3, 2, 0, 1)
    assert torch.equal(_all(splits.train), expected[:5])
    assert torch.equal(_all(splits.test), expected[5:])
    assert splits.train.labels.tolist() == [1, 2, 0, 9, 5]  # the files write 10 for the digit 0


def test_damaged_cifar_is_refused(tmp_path):
    _pickle(tmp_path / "cifar-10-batches-py" / "data_batch_1", {"data": _random(2, 3072), "labels": [0, 1]})
    with pytest.raises(UserError, match=r"data.root"):
        _load("cifar10", tmp_path)


def _write_stl10(root, unlabelled=6):
    folder = root / "stl10_binary"
    folder.mkdir()
    images = {}
    for name, count in (("train", 5), ("test", 3), ("unlabeled", unlabelled)):
        images[name] = _random(count, 3, 96, 96)
        images[name].transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")  # stored column by column
    np.array([1, 10, 3, 4, 5], np.uint8).tofile(folder / "train_y.bin")
    np.array([6, 7, 8], np.uint8).tofile(folder / "test_y.bin")
    return {name: torch.from_numpy(array) for name, array in images.items()}


def test_stl10(tmp_path):
    images = _write_stl10(tmp_path)
    splits = _load("stl10", tmp_path)
    assert torch.equal(_all(splits.train), images["train"])
    assert torch.equal(_all(splits.test), images["test"])
    assert torch.equal(_all(splits.pretrain), torch.cat([images["train"], images["unlabeled"]]))
    assert splits.train.labels.tolist() == [0, 9, 2, 3, 4]
    assert splits.pretrain.labels.tolist() == [0, 9, 2, 3, 4] + [-1] * 6
    assert (splits.train.split, splits.pretrain.split) == ("train", "train+unlabelled")


def test_stl10_without_the_unlabelled_images(tmp_path):
    images = _write_stl10(tmp_path)
    (tmp_path / "stl10_binary" / "unlabeled_X.bin").unlink()
    with pytest.raises(UserError, match=r"data.unlabelled=false"):
        _load("stl10", tmp_path)
    assert torch.equal(_all(_load("stl10", tmp_path, unlabelled=False).pretrain), images["train"])


def test_truncated_stl10(tmp_path):
    _write_stl10(tmp_path)
    path = tmp_path / "stl10_binary" / "test_X.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"test_X.bin is truncated"):
        _load("stl10", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn", "stl10"])
def test_missing_data_says_what_to_set(tmp_path, name):
    with pytest.raises(UserError, match=r"set data.root .* data.download=true"):
        _load(name, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn", "stl10"])
def test_failed_download_is_a_user_error(tmp_path, monkeypatch, name):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match="could not be fetched"):
        _load(name, tmp_path, download=True)


# --- scikit-learn ----------------------------------------------------------------------------------------------------


def test_digits():
    from sklearn.datasets import load_digits

    splits = _load("digits")
    assert (len(splits.train), len(splits.test)) == (1438, 359)
    stored = load_digits()
    ours = sorted(
        (tuple(image), label)
        for part in (splits.train, splits.test)
        for image, label in zip(_all(part).flatten(1).tolist(), part.labels.tolist(), strict=True)
    )
    scaled = np.rint(stored.data * 255 / 16).astype(int)
    assert ours == sorted(
        (tuple(image), int(label)) for image, label in zip(scaled.tolist(), stored.target, strict=True)
    )
    assert (splits.train.channels, splits.train.image_size) == (1, 16)
    pixels = _all(splits.train).double() / 255
    assert pixels.mean().item() == pytest.approx(splits.train.normalization.mean[0], abs=2e-3)
    assert pixels.std().item() == pytest.approx(splits.train.normalization.std[0], abs=2e-3)
