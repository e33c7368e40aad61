"""Files of embeddings: every image of a folder once, with its path, equal to what extract_features gives."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY

import selfsup
from selfsup.cli import main
from selfsup.data import load_splits
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.eval import extract_features
from selfsup.exporting import embedding


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second that no test may change."""
    short = ["trainer.max_epochs=1", "online.every_epochs=0", "data.image_size=40"]
    return train(selfsup.load_config([*TINY, *short, f"run_dir={tmp_path_factory.mktemp('embed') / 'run'}"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose mean grey tells which file they are, in two class folders, and a damaged one."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(23):
        place = root / ("cats" if number % 3 else "dogs") / f"ümläut {number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (30 + number, 40), (10 * number,) * 3).save(place)
    (root / "cats" / "broken.png").write_bytes(b"\x89PNG no picture")
    return root


def settings(checkpoint: object, folder: Path, *more: str) -> list[str]:
    return [f"checkpoint={checkpoint}", "data=image_folder", f"data.root={folder}", "data.max_undecodable=0.05", *more]


CPU = ("data.workers=0", "accelerator=cpu")
MEAN = """
import torch
from selfsup.types import Normalization

class Mean(torch.nn.Module):
    normalization = Normalization((0.0,) * 3, (1.0,) * 3)

    def forward(self, images):
        return images.mean((2, 3)) * 255
"""


def needs(ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
@pytest.mark.parametrize("block", [5, 8192])
def test_every_row_is_of_the_file_it_names(
    ending: str, block: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(ending)
    monkeypatch.setattr(embedding, "BLOCK", block)
    (tmp_path / "mean.py").write_text(MEAN)
    config = selfsup.load_evaluate_config(
        settings(f"module:{tmp_path}/mean.py:Mean", folder, "data.image_size=16", "eval.batch_size=4", *CPU)
    )
    path, count = selfsup.embed(config, tmp_path / f"e{ending}", progress=False)
    found = selfsup.read_embeddings(path)
    assert count == len(found.features) == 23
    names = sorted(str(p) for p in folder.rglob("*.png"))
    assert found.paths == [name for name in names if "broken" not in name]
    assert [names[row] for row in found.features.index.tolist()] == found.paths
    greys = torch.tensor([10.0 * int(Path(name).stem.split()[1]) for name in found.paths])
    torch.testing.assert_close(found.features.features, greys[:, None].expand(-1, 3), rtol=0, atol=0.01)
    assert found.classes is not None
    assert [found.classes[label] for label in found.features.labels.tolist()] == [
        Path(n).parent.name for n in found.paths
    ]
    assert set(found.split) == {"train"}
    assert (found.about["image_size"], found.about["std"]) == (16, [1.0] * 3)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], "nothing is left behind"


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_it_equals_extract_features(ending: str, trained: Path, folder: Path, tmp_path: Path) -> None:
    needs(ending)
    config = selfsup.load_evaluate_config(settings(trained, folder, *CPU))
    assert config.data.image_size == 40, "the size of the run"
    path, _ = selfsup.embed(config, tmp_path / f"e{ending}", progress=False)
    config.data.holdout = config.data.test_fraction = 0.0
    expected = extract_features(selfsup.load_backbone(trained), load_splits(config.data).train, progress=False)
    found = selfsup.read_embeddings(path)
    torch.testing.assert_close(found.features.features, expected.features, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.features.index, expected.index)
    assert torch.equal(found.features.labels, expected.labels)
    assert found.features.features.dtype == torch.float32
    assert found.about["epoch"] == 1


def test_a_source_without_files_and_its_test_images(trained: Path, tmp_path: Path) -> None:
    config = selfsup.load_evaluate_config([f"checkpoint={trained}", *CPU])
    found = selfsup.read_embeddings(selfsup.embed(config, tmp_path / "e.npz", progress=False)[0])
    assert found.paths is None
    assert (found.split.count("train"), found.split.count("test")) == (72, 40)
    splits = load_splits(config.data)
    expected = extract_features(selfsup.load_backbone(trained), splits.test, progress=False)
    torch.testing.assert_close(found.features.features[72:], expected.features, rtol=1e-5, atol=1e-6)


def test_an_unlabelled_folder_with_a_test_folder(trained: Path, tmp_path: Path) -> None:
    for number, part in enumerate(["train"] * 4 + ["test"] * 2):
        (tmp_path / "p" / part).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (40 * number, 0, 0)).save(tmp_path / "p" / part / f"{number}.png")
    config = selfsup.load_evaluate_config(settings(trained, tmp_path / "p", *CPU))
    found = selfsup.read_embeddings(selfsup.embed(config, tmp_path / "e.npz", progress=False)[0])
    assert found.split == ["train"] * 4 + ["test"] * 2
    assert [Path(p).relative_to(tmp_path / "p").parts[0] for p in found.paths] == found.split
    assert found.features.labels is None
    assert found.classes is None


def test_numpy_and_pandas_style_readers_need_no_selfsup(trained: Path, folder: Path, tmp_path: Path) -> None:
    config = selfsup.load_evaluate_config(settings(trained, folder, *CPU))
    selfsup.embed(config, tmp_path / "e.npz", progress=False)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as archive:
        assert archive["features"].shape == (23, len(archive["features"][0]))
        assert archive["features"].dtype == np.float32
        assert len(archive["paths"]) == len(archive["labels"]) == 23
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra 'parquet' is not installed")
    selfsup.embed(config, tmp_path / "e.parquet", progress=False)
    table = parquet.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["index", "split", "path", "label", "features"]
    with np.load(tmp_path / "e.npz") as archive:
        assert np.array_equal(np.stack(table["features"].to_numpy()), archive["features"])


def test_the_command(trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = settings(trained, folder, *CPU)[1:]
    out = str(tmp_path / "f.npz")
    assert main(["embed", str(trained), *data, "--out", out]) == 0, capsys.readouterr().err
    assert "23 images" in capsys.readouterr().out
    for arguments, message in {
        (str(trained), *data, "--out", out): "not overwritten",
        (str(trained), *data, "--out", str(tmp_path / "f.csv")): ".npz or .parquet",
        (str(trained), *data): "--out",
        ("raw_pixels", *data, "--out", str(tmp_path / "g.npz")): "no network",
        (str(tmp_path / "none"), *data, "--out", str(tmp_path / "g.npz")): "none",
        ("a", "b", "--out", str(tmp_path / "g.npz")): "selfsup embed RUN",
    }.items():
        assert main(["embed", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "g.npz").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    np.savez(tmp_path / "code.npz", features=np.array([print], dtype=object))
    (tmp_path / "text.npz").write_text("nothing")
    (tmp_path / "empty.csv").write_text("")
    for name in ("other.npz", "code.npz", "text.npz", "gone.npz", "empty.csv"):
        with pytest.raises(UserError, match=name):
            selfsup.read_embeddings(tmp_path / name)


def test_without_pyarrow(trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return original(name, *rest)

    monkeypatch.setattr("selfsup.errors.importlib.import_module", missing)
    config = selfsup.load_evaluate_config(settings(trained, folder, *CPU))
    with pytest.raises(UserError, match=r"selfsup\[parquet\]"):
        selfsup.embed(config, tmp_path / "e.parquet", progress=False)


def test_every_split_of_a_folder_is_embedded(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val", "test"):
        for number in range(3):
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (9 * number,) * 3).save(tmp_path / "images" / split / f"{number}.png")
    out = tmp_path / "out.npz"
    assert main(["embed", *settings(trained, tmp_path / "images", *CPU), "--out", str(out)]) == 0
    assert selfsup.read_embeddings(out).split == ["train"] * 3 + ["val"] * 3 + ["test"] * 3
    assert "data: 9 of 9 files" in capsys.readouterr().out
