import pytest
import torch
from measuring import changed, evaluate
from PIL import Image
from tiny import resident

from selfsup.cli import main
from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import (
    Encoder,
    add_results,
    clustering,
    eval_config,
    extract_splits,
    knn_loo,
    read_results,
    retrieval,
)
from selfsup.types import Normalization

CONFIG = eval_config(knn={"k": [5, 3], "temperatures": [0.1, 0.5]}, retrieval={"k": [1, 4]}, figures=False)
NAMES = ["knn_loo", "retrieval", "clustering"]


def splits(labels=True):
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(0, 3, (90,), generator=generator)
    images = torch.randint(0, 120, (90, 1, 6, 6), generator=generator)
    images += 60 * (which[:, None, None, None] == torch.arange(6)[:, None] // 2)
    data = resident(
        images.to(torch.uint8),
        which if labels else None,
        name="stripes",
        split="train",
        image_size=6,
        normalization=Normalization((0.3,), (0.2,)),
    )
    train, held, test = (data.subset(rows) for rows in torch.arange(90).split([50, 20, 20]))
    return Splits(train, train, held, test)


def test_leave_one_out_records():
    features = extract_splits(Encoder(None), splits())
    records = evaluate(None, splits(), CONFIG, ["knn_loo"], epoch=7, seed=1)
    assert [(r["k"], r["temperature"]) for r in records] == [(5, 0.1), (5, 0.5), (3, 0.1), (3, 0.5)]
    assert [r["primary"] for r in records] == [True, False, False, False]
    assert [r["value"] for r in records] == [r.accuracy for r in knn_loo(features.train, [5, 3], [0.1, 0.5])]
    details = {"protocol": "knn_loo", "split": "train", "metric": "top1", "index": "flat", "recall": 1.0, "epoch": 7}
    assert {name: records[0][name] for name in details} == details


def test_retrieval_records_put_scored_images_to_the_training_images():
    features = extract_splits(Encoder(None), splits())
    records = {r["metric"]: r for r in evaluate(None, splits(), CONFIG, ["retrieval"])}
    result = retrieval(features.test, features.train, [1, 4])
    assert {metric: record["value"] for metric, record in records.items()} == {
        "map": result.mean_average_precision,
        "r_precision": result.r_precision,
        "recall@1": result.recall[1],
        "recall@4": result.recall[4],
    }
    details = {"protocol": "retrieval", "split": "test", "gallery": "train", "queries": 20, "without_match": 0}
    assert {name: records["map"][name] for name in details} == details


def test_clustering_records_say_how_it_was_fitted():
    features = extract_splits(Encoder(None), splits())
    records = {r["metric"]: r for r in evaluate(None, splits(), CONFIG, ["clustering"], seed=3)}
    result = clustering(features.train, features.test, seed=3, progress=False)
    values = {"nmi": result.nmi, "ari": result.ari, "cluster_accuracy": result.accuracy}
    assert {metric: record["value"] for metric, record in records.items()} == values
    details = {"protocol": "clustering", "split": "test", "clusters": 3, "fitted_on": "train", "seed": 3}
    assert {name: records["nmi"][name] for name in details} == details
    wanted = evaluate(None, splits(), changed(CONFIG, clustering={"clusters": 7}), ["clustering"])
    assert wanted[0]["clusters"] == 7


def test_an_approximate_index_is_recorded_and_its_recall_is_no_setting(tmp_path):
    config = changed(CONFIG, index="half", index_effort=2.0, search_memory_mb=1)
    (record, *_) = evaluate(None, splits(), config, ["knn"])
    assert (record["index"], record["index_effort"]) == ("half", 2.0)
    assert 0.9 < record["recall"] <= 1
    assert "index_effort" not in evaluate(None, splits(), CONFIG, ["knn"])[0]
    for recall in (0.9, 0.8):
        add_results(tmp_path, [{**record, "recall": recall}])
    assert [r["recall"] for r in read_results(tmp_path)] == [0.8]


def test_evaluation_adds_them_to_the_run(tmp_path):
    evaluate(None, splits(), CONFIG, NAMES, run_dir=tmp_path)
    assert {r["protocol"] for r in read_results(tmp_path)} == set(NAMES)


def test_what_cannot_run_is_left_out_unless_it_was_asked_for():
    probe = {"epochs": 1, "learning_rates": [0.1], "weight_decays": [0.0]}
    config = changed(CONFIG, clustering={"clusters": 1000}, linear_probe=probe)
    with pytest.warns(UserWarning, match=r"Left out: .*clustering \(eval\.clustering\.clusters"):
        records = evaluate(None, splits(), config)
    assert {"knn", "knn_loo", "retrieval", "linear_probe"} <= {r["protocol"] for r in records}
    assert "clustering" not in {r["protocol"] for r in records}
    with pytest.raises(UserError, match=r"eval\.clustering\.clusters"):
        evaluate(None, splits(), config, ["clustering"])
    for name in NAMES:
        with pytest.raises(UserError, match="no label"):
            evaluate(None, splits(labels=False), CONFIG, [name])


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name, colour in {"red": (200, 20, 20), "blue": (20, 20, 200)}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for place in range(8):
            noise = torch.randint(0, 50, (16, 16, 3), generator=generator)
            pixels = (torch.tensor(colour) + noise).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "images" / name / f"{place}.png")
    stray = tmp_path / "images" / "blue" / "stray.png"
    stray.write_bytes((tmp_path / "images" / "red" / "0.png").read_bytes())
    return tmp_path / "images"


def test_the_command_names_files(folder, tmp_path, capsys):
    base = ["neighbours", "data=image_folder", f"data.root={folder}", "data.image_size=16", "data.workers=0"]
    base += [f"run_dir={tmp_path / 'out'}", "accelerator=cpu", "eval.knn.k=[5]", "eval.duplicate_similarity=0.9999"]
    assert main([*base, "checkpoint=raw_pixels"]) == 0
    out = capsys.readouterr().out
    assert "1 pair of 2 images" in out
    table = (tmp_path / "out" / "neighbours" / "neighbours.csv").read_text().splitlines()
    assert len(table) == 3
    assert table[1].startswith("duplicate,")
    assert str(folder / "red" / "0.png") in table[1]
    assert str(folder / "blue" / "stray.png") in table[1]
    assert table[2].startswith(f"label,{folder / 'blue' / 'stray.png'},")
    assert table[2].endswith(",red")
    assert (tmp_path / "out" / "neighbours" / "contact_sheet.png").stat().st_size > 1000
    # a network, and another source, whose images are no files
    assert main([*base, "checkpoint=untrained", "backbone=resnet_tiny", "backbone.width=4"]) == 0
    drawn = ["neighbours", "checkpoint=raw_pixels", "data=digits", f"run_dir={tmp_path / 'digits'}"]
    assert main([*drawn, "data.limit=60"]) == 0
    assert (tmp_path / "digits" / "neighbours" / "contact_sheet.png").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "Say what to evaluate"),
        (["checkpoint=raw_pixels", "data=image_folder"], "data.root is not set"),
        (["checkpoint=raw_pixels", "data=digits", "eval.duplicate_similarity=2"], "eval.duplicate_similarity is 2"),
        (["checkpoint=raw_pixels", "data=digits", "eval.index=tree"], "there is no 'tree'"),
        (["checkpoint=raw_pixels", "data=digits", "eval.knn.k=[]"], "eval.knn.k"),
        (["--out", "here"], "no option '--out'"),
    ],
)
def test_the_command_says_what_is_wrong(settings, message, capsys):
    assert main(["neighbours", *settings]) == 2
    assert message in capsys.readouterr().err
