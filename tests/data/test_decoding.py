"""Only what is used is decoded, once; undecodable images do not flood the screen; what needs no image comes first."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from selfsup.data import ResidentDataset, load_splits
from selfsup.data import encoded as encoded_module
from selfsup.data.undecodable import Undecodable
from selfsup.engine import training
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.registry import sources

Config = Callable[..., Any]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each file is decoded."""
    counts: Counter[str] = Counter()
    original = encoded_module.decode_image

    def decode(source: Any, *args: Any, **settings: Any) -> Any:
        counts[str(source)] += 1
        return original(source, *args, **settings)

    monkeypatch.setattr(encoded_module, "decode_image", decode)
    return counts


def folder(root: Path, broken: tuple[int, ...] = ()) -> Path:
    for split, count in (("train", 60), ("test", 20)):
        (root / split).mkdir(parents=True)
        for number in range(count):
            path = root / split / f"{number:02d}.png"
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
            if split == "train" and number in broken:
                path.write_bytes(b"broken")
    return root


def load(root: Path, **settings: Any) -> Any:
    return load_splits(sources["image_folder"].config(root=str(root), image_size=8, **settings))


def test_a_limit_is_decoded_and_nothing_else_until_it_is_read(tmp_path: Path, decoded: Counter[str]) -> None:
    splits = load(folder(tmp_path), limit=10)
    assert isinstance(splits.pretrain, ResidentDataset)
    assert len(splits.pretrain) == len(decoded) == 10
    assert splits.test.resident
    some = splits.test.subset(torch.tensor([4, 7]))
    assert some.read(torch.arange(2))[:, 0, 0, 0].tolist() == [4, 7]
    assert len(decoded) == 12
    splits.test.read(torch.tensor([7, 3, 7]))
    assert len(decoded) == 13
    assert set(decoded.values()) == {1}
    assert splits.found.splits["test"][0] == 20


def test_a_limit_is_filled_up_where_images_are_damaged(tmp_path: Path) -> None:
    """It holds the images that would be drawn if the damaged ones were not there."""
    broken = tuple(range(0, 60, 7))
    whole = load(folder(tmp_path / "whole"))
    damaged = load(folder(tmp_path / "damaged", broken), limit=20, max_undecodable=0.5)
    drawn = load(tmp_path / "whole", limit=len(whole.pretrain) - 20).pretrain.index.tolist()
    good = [number for number in drawn if number not in broken]
    assert len(damaged.pretrain) == 20
    assert not set(damaged.pretrain.index.tolist()) & set(broken)
    assert set(damaged.pretrain.index.tolist()) <= set(good)
    with pytest.raises(UserError, match=r"data.limit is 54 but only \d+ training images are left"):
        load(tmp_path / "damaged", limit=54, max_undecodable=0.5, holdout=0.0)


def test_many_undecodable_images_are_counted_and_three_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "selfsup"):
        load(folder(tmp_path, tuple(range(30))), max_undecodable=0.9, holdout=0.0)
    named = [record.levelname for record in caplog.records if "is left out" in record.getMessage()]
    assert named == ["WARNING"] * 3 + ["INFO"] * 27
    (count,) = [record.getMessage() for record in caplog.records if "cannot be decoded so far" in record.getMessage()]
    assert count.startswith("30 images in ")
    caplog.clear()
    seen = Undecodable(tmp_path, 1000, 0.5)
    for row in range(200):  # as they turn up while a training reads from the disk
        seen.report({row: (f"{row}.png", "empty")})
    shown = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(shown) == 3 + 3
    assert [line.partition(" ")[0] for line in shown[3:]] == ["4", "10", "100"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.accelerator=gpu", "trainer: "),
        ("backbone.name=resnet1000", "there is|has no network 'resnet1000'"),
        ("augment.sizes=[1]", "must be at least 2"),
        ("data.limit=8", "batch_size is 16 but data.limit leaves only 8"),
    ],
)
def test_what_needs_no_image_is_found_before_one_is_read(
    setting: str, message: str, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "gpu" in setting:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def read(_: Any) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr(training, "load_splits", read)
    config = tiny_config()
    section, _, rest = setting.partition(".")
    name, _, value = rest.partition("=")
    setattr(getattr(config, section), name, [1] if value == "[1]" else int(value) if value.isdigit() else value)
    with pytest.raises(UserError, match=message):
        train(config)
