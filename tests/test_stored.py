"""Runs that earlier versions wrote open, evaluate and go on in this one; ``stored/store.py`` adds one."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from selfsup import Run, load_backbone
from selfsup.checkpoint import FORMAT, INFO, read_checkpoint
from selfsup.data import load_splits
from selfsup.engine.training import load_resumed_config, train
from selfsup.errors import UserError
from selfsup.eval import FeatureSet, extract_features

STORED = sorted(path for path in (Path(__file__).parent / "stored").iterdir() if (path / "config.yaml").is_file())


@pytest.fixture(params=STORED, ids=[path.name for path in STORED])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def test_this_format_is_stored_and_small() -> None:
    formats = {read_checkpoint(path)[INFO].get("format", 0) for path in STORED}
    assert formats == set(range(FORMAT + 1)), "run tests/stored/store.py, and commit what it makes"
    for path in STORED:
        assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 200_000, path


def test_it_opens_and_gives_the_features_that_it_gave(stored: Path) -> None:
    run = Run(stored)
    assert run.config.method.name == "moco"
    assert {"training", "knn"} <= set(run.results["protocol"])
    assert run.metrics["train/loss"].notna().sum() == 4
    splits = load_splits(run.config.data)
    for name in ("train", "test"):
        (file,) = (stored / "features").glob(f"*{name}*")
        there = FeatureSet.load(file)
        found = extract_features(load_backbone(stored), getattr(splits, name), progress=False)
        assert torch.equal(found.index, there.index)
        torch.testing.assert_close(found.features, there.features, rtol=1e-4, atol=1e-5)


def test_it_evaluates_as_it_did(stored: Path) -> None:
    before = json.loads((stored / "results.json").read_text())["results"]
    known = {r["k"]: r["value"] for r in before if r["protocol"] == "knn"}
    table = Run(stored).evaluate(["knn"], eval={"cache": False, "figures": False}, accelerator="cpu")
    found = dict(zip(table["k"], table["value"], strict=True))
    assert found.keys() == known.keys()
    assert all(found[k] == pytest.approx(known[k], abs=0.051) for k in known)  # two of forty images
    after = json.loads((stored / "results.json").read_text())["results"]
    assert [r for r in after if r["protocol"] == "training"] == [r for r in before if r["protocol"] == "training"]


def test_it_goes_on(stored: Path) -> None:
    before = list(csv.DictReader((stored / "metrics.csv").open()))
    train(load_resumed_config([f"resume={stored}", "trainer.max_epochs=2"]))
    after = list(csv.DictReader((stored / "metrics.csv").open()))
    shared = [{key: row.get(key) for key in rows} for row, rows in zip(after, before, strict=False)]
    assert shared == before
    content = read_checkpoint(stored)
    assert (content["global_step"], content[INFO]["epochs_done"]) == (8, 2)
    assert content[INFO]["format"] == FORMAT
    assert {r["epochs"] for r in json.loads((stored / "results.json").read_text())["results"] if "epochs" in r} >= {2}


@pytest.mark.parametrize(("number", "writer"), [(FORMAT + 1, "9.9.0"), (FORMAT + 1, None), ("one", "9.9.0")])
def test_a_later_format_is_refused(number: object, writer: str | None, tmp_path: Path) -> None:
    content = torch.load(STORED[-1] / "checkpoints" / "last.ckpt", weights_only=True)
    content[INFO] |= {"format": number, "version": writer} if writer else {"format": number}
    torch.save(content, tmp_path / "later.ckpt")
    for read in (read_checkpoint, load_backbone):
        with pytest.raises(UserError, match=rf"later.ckpt is of the checkpoint format {number}, written by selfsup"):
            read(tmp_path / "later.ckpt")
