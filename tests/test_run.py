"""The Python front door: settings by name, datasets and networks of one's own, and a run as an object."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import selfsup
from selfsup.config import load_config, to_yaml
from selfsup.errors import UserError
from selfsup.eval import Record, add_results
from selfsup.settings.overrides import words_of

IMAGES = torch.randint(0, 256, (48, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
DATA = TensorDataset(IMAGES, torch.arange(48) % 3)
FEW = {"trainer": {"max_epochs": 1, "progress": False, "accelerator": "cpu", "log_every_steps": 1}, "batch_size": 16}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> selfsup.Run:
    folder = tmp_path_factory.mktemp("runs") / "first"
    return selfsup.train([*TINY, "trainer.max_epochs=1"], method="simclr", run_dir=folder)


def test_settings_by_name_are_those_of_overrides() -> None:
    settings: dict[str, Any] = {
        "method": {"name": "moco", "temperature": 0.3},
        "data": "cifar10",
        "trainer": {"max_epochs": 20, "progress": False},
        "optimizer": {"kwargs": {"betas": [0.8, 0.9]}},
        "augment": {"counts": [2, 3], "recipe": "swav"},
        "run_dir": Path("a, b=ü"),
        "seed": 3,
    }
    words = ["method=moco", "method.temperature=0.3", "data=cifar10", "trainer.max_epochs=20", "trainer.progress=false"]
    words += [
        "optimizer.kwargs.betas=[0.8,0.9]",
        "augment.counts=[2,3]",
        "augment.recipe=swav",
        "run_dir=a, b=ü",
        "seed=3",
    ]
    assert load_config(words_of(settings)) == load_config(words)
    with pytest.raises(UserError, match="temprature"):
        selfsup.train(method={"name": "moco", "temprature": 0.3})


def test_a_run_is_a_path_and_shows_what_it_holds(run: selfsup.Run) -> None:
    assert os.fspath(run) == str(run) == str(run.path)
    assert (run / "config.yaml").is_file()
    assert run == selfsup.Run(str(run.path))
    assert run.config.method.name == "simclr"
    assert run.metrics["step"].is_monotonic_increasing
    assert float(run.metrics["train/loss"].dropna().iloc[0]) > 0
    assert list(run.results["metric"]) == ["seconds"]
    assert set(run.figures) >= {"views"}
    assert run.checkpoint == run.path / "checkpoints" / "last.ckpt"
    assert run.environment["versions"]["torch"] == metadata.version("torch")
    shown = run._repr_html_()
    assert "simclr" in shown
    assert "<img" in shown


def test_a_run_gives_its_network_and_is_evaluated(run: selfsup.Run) -> None:
    assert run.backbone()(torch.zeros(2, 3, 32, 32)).shape == (2, 32)
    table = run.evaluate(["knn"], eval={"figures": False, "knn_k": 5}, accelerator="cpu")
    assert set(table["protocol"]) == {"knn"}
    assert len(run.results) == 1 + len(table)


def test_runs_are_listed_and_chosen(run: selfsup.Run, tmp_path: Path) -> None:
    found = selfsup.runs(run.path.parent, method="simclr")
    assert list(found) == [run]
    assert list(found.table["run"]) == [str(run)]
    assert "simclr" in found._repr_html_()
    assert len(selfsup.runs(run.path.parent, method="moco")) == 0
    with pytest.raises(UserError, match="there is no methd to choose by"):
        selfsup.runs(run.path.parent, methd="moco")
    with pytest.raises(UserError, match="There is no folder"):
        selfsup.runs(tmp_path / "none")
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.warns(UserWarning, match="1 folders cannot be read as runs"):
        assert len(selfsup.runs(tmp_path)) == 0
    with pytest.raises(UserError, match="is not a run folder"):
        selfsup.Run(tmp_path / "none")


def test_runs_side_by_side(run: selfsup.Run, tmp_path: Path) -> None:
    """Three seeds of a method become a row with their mean and deviation; another method is one of its own."""
    places = []
    for method, seed, value in [("moco", 0, 0.4), ("moco", 1, 0.5), ("moco", 2, 0.6), ("simclr", 0, 0.7)]:
        folder = tmp_path / f"{method}-{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(load_config([f"method={method}", f"seed={seed}"])))
        how = {"k": 20, "primary": True}
        add_results(folder, [Record(protocol="knn", split="test", metric="top1", value=value, how=how)])
        places.append(selfsup.Run(folder))
    found = selfsup.compare(places)
    table = found.table.set_index("method")
    assert list(table["runs"]) == [3, 1]
    assert float(table.loc["moco", "kNN"]) == pytest.approx(0.5)
    assert float(table.loc["moco", "kNN std"]) == pytest.approx(0.1)
    assert table["kNN std"].isna().to_dict() == {"moco": False, "simclr": True}
    assert list(found.runs["seed"]) == [0, 1, 2, 0]
    shown = found._repr_html_()
    assert "0.500" in shown
    assert "<img" in shown
    assert any("has no linear probe result" in note for note in found.notes)
    selfsup.compare(places, tmp_path / "comparison")
    assert (tmp_path / "comparison" / "comparison.html").is_file()
    with pytest.raises(UserError, match="name at least one run"):
        selfsup.compare([])


def test_all_that_is_named_is_there() -> None:
    for name in dir(selfsup):
        assert getattr(selfsup, name) is not None
    assert {"train", "evaluate", "compare", "runs", "Run", "eval", "methods"} <= set(dir(selfsup))


def test_ones_own_dataset_and_network(tmp_path: Path) -> None:
    own = network()
    before = [p.clone() for p in own.parameters()]
    run = selfsup.train(
        method="simclr", backbone=own, data=DATA, run_dir=tmp_path / "own", online={"every_epochs": 0}, **FEW
    )
    assert all(torch.equal(a, b) for a, b in zip(before, own.parameters(), strict=True)), "a copy is trained"
    trained = run.backbone(network())
    assert not torch.equal(trained.network[0].weight, before[0])
    table = run.evaluate(
        ["knn"], data={"dataset": DATA, "test": DATA}, eval={"figures": False, "knn_k": 1}, accelerator="cpu"
    )
    value = table.set_index("metric").loc["top1", "value"]
    assert float(value) > 0.5  # most test images are in the bank, as they are the training images
    going_on = selfsup.train(resume=run, data=DATA, backbone=network(), trainer={"max_epochs": 2})
    assert going_on == run
    assert int(going_on.metrics["epoch"].max()) == 1


def test_any_module_is_evaluated() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(2, 3))

    data = {"dataset": DATA, "test": DATA, "image_size": 8}
    (record,) = (r for r in selfsup.evaluate(Mean(), ["knn"], data=data, eval={"knn_k": 1}) if r["metric"] == "top1")
    assert record["checkpoint"] == "own:Mean"
    with pytest.raises(UserError, match="checkpoint=own has no data of its own"):
        selfsup.evaluate(Mean(), ["knn"])


def test_features_of_any_dataset_and_plain_tensors() -> None:
    found = selfsup.eval.extract_features(network(), DATA, progress=False)
    again = selfsup.eval.extract_features(network(), selfsup.data.as_images(DATA), progress=False)
    assert torch.equal(found.features, again.features)
    assert found.labels is not None
    assert torch.equal(found.labels, DATA.tensors[1])
    mine = selfsup.eval.FeatureSet(found.features, found.labels)
    assert torch.equal(mine.index, torch.arange(48))
    assert selfsup.eval.knn(mine, mine, k=1) == {1: 1.0}
    probe = selfsup.eval.linear_probe(mine, mine, epochs=2, progress=False)
    assert 0 <= probe.accuracy <= 1


def test_what_was_given_must_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from selfsup.data.sources import own as data
    from selfsup.nn import wrap

    monkeypatch.setattr(data, "_given", [])
    monkeypatch.setattr(wrap, "_given", [])
    with pytest.raises(UserError, match="data=own is a dataset that was given from Python"):
        selfsup.train(data="own", method="simclr")
    with pytest.raises(UserError, match=r"backbone\.name=own is a network that was given from Python"):
        selfsup.train(
            backbone={"name": "own"}, **{**FEW, "method": "simclr", "data": {"name": "shapes", "train_size": 40}}
        )
    config = load_config(["method=simclr"])
    with pytest.raises(UserError, match="seed: a finished configuration"):
        selfsup.train(config, seed=1)
