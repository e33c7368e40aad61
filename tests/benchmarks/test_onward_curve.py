"""The curve of training on: every epoch is measured once, and the original weights are its first point."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.io import write_jpeg

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def onward(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import onward

    monkeypatch.setattr(onward, "KEPT", Path("no results are kept"))
    yield onward
    for name in ("onward", "measure"):
        sys.modules.pop(name, None)


def photographs(folder: Path, splits: dict[str, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    for split, count in splits.items():
        for label in range(4):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 60, (3, 32, 32), generator=draw) + 19 * label
                write_jpeg(pixels.to(torch.uint8), str(folder / split / f"class{label}" / f"{number}.jpeg"))


def test_each_epoch_is_measured_once_beside_the_original_weights(
    onward: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photographs(tmp_path / "cifar10", {"train": 36, "test": 3})
    photographs(tmp_path / "imagenette", {"train": 36, "val": 3})
    monkeypatch.setattr(onward, "DATA", ("cifar10", "imagenette"))
    monkeypatch.setattr(onward, "images", lambda root, data: ("data=image_folder", f"data.root={root / data}"))
    monkeypatch.setattr(onward, "WAYS", {"gram": onward.WAYS["gram"]})
    monkeypatch.setattr(onward, "TINY", ("backbone.width=4", "data.limit=null", "trainer.max_epochs=2"))
    out = tmp_path / "out"
    onward.work(out, tmp_path, True)
    found = list(onward.curves(out))
    assert [curve[:3] for curve in found] == [("cifar10", "imagenette", "gram"), ("imagenette", "cifar10", "gram")]
    for *_, lines in found:
        assert [line["epoch"] for line in lines] == [0, 1, 2]
        # heads alone learn in the first epoch
        assert lines[0] == {**lines[1], "epoch": 0}
        assert lines[2] != {**lines[1], "epoch": 2}
    rows = list(onward.rows(out))
    assert [(row["from"], row["way"], row["epochs"]) for row in rows] == [
        ("cifar10", "original weights", 0),
        ("cifar10", "gram", 2),
        ("imagenette", "original weights", 0),
        ("imagenette", "gram", 2),
    ]
    assert rows[0]["kNN on the source, %"] == f"{100 * found[0][3][0]['source']:.1f}"
    onward.picture(out, out / "onward.png")
    monkeypatch.setattr(onward.selfsup, "train", None)
    monkeypatch.setattr(onward, "knn", None)
    onward.work(out, tmp_path, True)  # nothing is done again
    monkeypatch.setattr(onward, "KEPT", out)
    assert list(onward.rows(tmp_path / "elsewhere")) == rows  # what is kept stands where nothing was measured
