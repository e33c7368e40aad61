"""A run is never tested in silence on images it was trained on: its membership is kept, compared and told."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY

from selfsup.checkpoint import INFO, read_checkpoint
from selfsup.cli import main
from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.data.membership import HOLDOUT, PRETRAIN, TEST, TRAINED, read_membership
from selfsup.engine.evaluation import evaluate, load_evaluate_config

OWN = [setting for setting in TINY if not setting.startswith(("data.", "online.", "trainer.max"))]
FOLDER = ["data=image_folder", "data.image_size=32", "online.every_epochs=0", "optimizer.warmup_epochs=0"]


def _pictures(folder, numbers):
    for number in numbers:
        place = folder / ("apple" if number % 2 else "pear")
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3)).astype("uint8")
        Image.fromarray(pixels).resize((32, 32)).save(place / f"{number:03}.png")


def _train(root, run, *more, epochs=1):
    given = [*FOLDER, f"data.root={root}", f"run_dir={run}", f"trainer.max_epochs={epochs}"]
    assert main(["train", "method=simclr", *given, *OWN, *more]) == 0
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 60 pictures, and their folder. Tests copy what they change."""
    folder = tmp_path_factory.mktemp("trained")
    _pictures(folder / "pictures", range(60))
    return folder / "pictures", _train(folder / "pictures", folder / "run")


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """The same in a place where it may be changed; the run knows the pictures as ``pictures`` below it."""
    shutil.copytree(trained[0].parent, tmp_path / "here")
    root, run = tmp_path / "here" / "pictures", tmp_path / "here" / "run"
    file = run / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    content[INFO]["config"]["data"]["root"] = str(root)
    torch.save(content, file)
    with np.load(run / "membership.npz") as kept:
        arrays = dict(kept)
    arrays["about"] = np.array(str(arrays["about"]).replace(str(trained[0]), str(root)))
    np.savez(run / "membership.npz", **arrays)
    return root, run


def _older(run):
    """Make a run look as an earlier version wrote it: without a word of membership."""
    (run / "membership.npz").unlink(missing_ok=True)
    file = run / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    content[INFO].pop("membership")
    content[INFO].pop("images", None)
    content[INFO]["config"]["data"].pop("membership")
    torch.save(content, file)


def _knn(run, *more, protocol="knn"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = load_evaluate_config([f"checkpoint={run}", "eval.knn_k=[3]", *more])
        records = evaluate(config, [protocol], progress=False)
    return records, [str(w.message) for w in caught if "trained on" in str(w.message)]


def _names(root, part):
    files = load_splits(load_config([*FOLDER, f"data.root={root}", "data.resident_limit_mb=0"]).data)
    return {getattr(files, part).path(place).name for place in range(len(getattr(files, part)))}


def test_a_run_keeps_its_membership(trained):
    run = trained[1]
    kept, about = read_membership(run), json.loads((run / "environment.json").read_text())["membership"]
    info = read_checkpoint(run)[INFO]["membership"]
    assert about == info == kept.summary()
    assert about["rule"] == "image"
    assert about["pretrain"] + about["holdout"] + about["test"] == 60
    assert len(kept.of(TRAINED)) == about["pretrain"]
    assert (run / "config.yaml").read_text().count("membership: image") == 1


def test_the_same_images_are_evaluated_without_a_word(trained):
    records, told = _knn(trained[1])
    assert told == []
    assert not {"left_out_as_trained", "trained_on", "choices_on"} & records[0].keys()


def test_choices_without_a_hold_out_are_said_to_be_made_on_images_that_were_trained_on(trained, tmp_path, capsys):
    run = _train(trained[0], tmp_path / "run", "data.holdout=0")
    assert (
        "note: data.holdout=0: choices, and online/knn, are made on a part of the training" in capsys.readouterr().out
    )
    own = json.loads((run / "results.json").read_text())["results"][0]
    kept_back = len(_names(trained[0], "holdout"))  # what the other run, with a hold-out, does not train on
    assert (own["protocol"], own["images"]) == ("training", len(_names(trained[0], "pretrain")) + kept_back)
    records = evaluate(load_evaluate_config([f"checkpoint={run}", "eval.linear_probe.epochs=1"]), ["linear_probe"])
    assert "note: there is no hold-out (data.holdout): choices are made on a part" in capsys.readouterr().out
    seen = "a part of the training images, which pretraining sees too, without their labels"
    assert [record["choices_on"] for record in (own, *records)] == [seen, seen]
    assert records[0]["selected_on"].startswith("10% of train")


def test_one_image_more_moves_no_other_and_is_told(copied, capsys):
    root, run = copied
    before = {part: _names(root, part) for part in ("pretrain", "holdout", "test")}
    _pictures(root, [1000])
    after = {part: _names(root, part) for part in ("pretrain", "holdout", "test")}
    assert all(before[part] <= after[part] for part in before)
    assert not after["test"] & before["pretrain"]
    _, told = _knn(run)
    assert len(told) == 1
    assert "0 of the" in told[0]
    assert "are gone, 1 images are new" in told[0]
    count = len(before["pretrain"])
    assert main(["train", f"resume={run}", "trainer.max_epochs=2", "trainer.progress=false"]) == 0
    said = capsys.readouterr().out
    assert f"note: data.root: 0 of the {count} images this run was trained on are gone, 1 images are new" in said
    assert "not the one that the images as they were would have given" in said
    kept = read_membership(run)
    assert not set(kept.of(TEST | HOLDOUT).tolist()) & set(kept.of(TRAINED).tolist())
    assert _knn(run)[1] == []


def test_images_that_are_gone_stay_in_the_record(copied):
    root, run = copied
    gone = sorted(_names(root, "pretrain"))[:5]
    for name in gone:
        next(root.rglob(name)).unlink()
    count = len(read_membership(run).of(TRAINED))
    assert main(["train", f"resume={run}", "trainer.max_epochs=2", "trainer.progress=false"]) == 0
    kept = read_membership(run)
    assert (len(kept.of(TRAINED)), len(kept.of(PRETRAIN))) == (count, count - 5)


def test_test_images_that_were_trained_on_are_left_out_and_recorded(copied):
    root, run = copied
    kept = read_membership(run)
    records, told = _knn(run, "data.test_fraction=0.6")
    drawn = load_splits(load_config([*FOLDER, f"data.root={root}", "data.test_fraction=0.6"]).data).membership
    count = len(set(drawn.of(TEST).tolist()) & set(kept.of(TRAINED).tolist()))
    assert count > 0
    assert f"{count} of the {len(drawn.of(TEST))} test images were trained on" in told[0]
    assert "left out" in told[0]
    test = [record for record in records if record["split"] == "test"]
    assert all(record["left_out_as_trained"]["test"] == count for record in test)
    # another folder is none of the run's business, whatever its files are called
    shutil.copytree(root, root.parent / "others")
    for number, path in enumerate(sorted((root.parent / "others").rglob("*.png"))):
        path.rename(path.with_name(f"other{number}.png"))
    assert _knn(run, "data=image_folder", f"data.root={root.parent / 'others'}", "data.image_size=32")[1] == []
    # but a folder within the run's is
    records, told = _knn(run, "data=image_folder", f"data.root={root / 'apple'}", protocol="diagnostics")
    assert records[0]["trained_on"] == "unknown"
    assert "but the run was trained on images in" in told[0]


def test_a_run_of_an_earlier_version_has_the_parts_it_had(tmp_path):
    root = tmp_path / "pictures"
    _pictures(root, range(60))
    run = _train(root, tmp_path / "run", "data.membership=position")
    trained_on = set(read_membership(run).of(PRETRAIN).tolist())
    _older(run)
    records, told = _knn(run)
    assert told == []
    assert "trained_on" not in records[0]
    # by position 12 of 60 are test images, which were not among those trained on
    evaluated = load_evaluate_config([f"checkpoint={run}"])
    parts = load_splits(evaluated.data).membership
    assert (evaluated.data.membership, len(parts.of(TEST)), set(parts.of(PRETRAIN).tolist())) == (
        "position",
        12,
        trained_on,
    )
    assert _knn(run, "data=image_folder", f"data.root={root}", "data.image_size=32")[1] == []
    # drawn otherwise: the parts it had are drawn again, and what it was trained on is left out
    records, told = _knn(run, "data.membership=image")
    assert "test images were trained on" in told[0]
    assert records[0]["left_out_as_trained"]["test"] > 0
    # an image more, and by position nobody knows
    _pictures(root, [1000])
    records, told = _knn(run)
    assert "which images this run was trained on was not recorded, or they have changed since" in told[0]
    assert records[0]["trained_on"] == "unknown"


def test_a_resumed_run_of_an_earlier_version_goes_on_by_position_and_says_so(tmp_path, capsys):
    root = tmp_path / "pictures"
    _pictures(root, range(60))
    run = _train(root, tmp_path / "run", "data.membership=position")
    _older(run)
    assert main(["train", f"resume={run}", "trainer.max_epochs=2", "trainer.progress=false"]) == 0
    assert "was not recorded" in capsys.readouterr().out
    kept = read_membership(run)
    assert (kept.rule, kept.whole, len(kept.of(TEST))) == ("position", False, 12)
    assert _knn(run)[0][0]["trained_on"] == "unknown"


def test_sources_of_fixed_content_have_the_parts_they_had_and_nothing_to_tell(tmp_path, capsys):
    run = tmp_path / "run"
    settings = [*TINY, "online.every_epochs=0", f"run_dir={run}"]
    assert main(["train", "method=simclr", "data=shapes", *settings, "trainer.max_epochs=1"]) == 0
    drawn = torch.randperm(72, generator=torch.Generator().manual_seed(0))[7:].sort().values
    kept = read_membership(run)
    assert (kept.rule, kept.of(PRETRAIN).tolist()) == ("position", drawn.tolist())
    _older(run)
    assert main(["train", f"resume={run}", "trainer.max_epochs=2", "trainer.progress=false"]) == 0
    assert "recorded" not in capsys.readouterr().out
    assert _knn(run)[1] == []
    assert _knn(run, "data=shapes", "data.train_size=200", "data.test_size=40")[1] == []  # others than the run's
    _, told = _knn(run, "data.subset_seed=1")
    assert "hold-out images were trained on; these are left out" in told[0]
    assert "0 of the 40 test images" in told[0]
