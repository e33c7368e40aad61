from dataclasses import replace

import pytest
import torch
from measuring import changed, evaluate
from tiny import resident
from torch import nn

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import PROTOCOLS, Encoder, Record, eval_config, extract_splits, knn, raw_pixels, read_results
from selfsup.types import Normalization

CONFIG = eval_config(
    knn={"k": [5, 3], "temperatures": [0.1, 0.5]},
    linear_probe={"learning_rates": [0.1, 0.01], "weight_decays": [0.0], "epochs": 3},
    batch_size=16,
    figures=False,
)


def splits(test=True, labels=True, holdout=True):
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
        classes=("up", "middle", "down"),
    )
    part = torch.arange(90).split([50, 20, 20])
    held = data.subset(part[1] if holdout else part[1][:0])
    return Splits(data.subset(part[0]), data.subset(part[0]), held, data.subset(part[2]) if test else None)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(36, 8)
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return self.inner(images.flatten(1))


def test_knn_records_name_their_protocol():
    records = evaluate(None, splits(), CONFIG, ["knn"], epoch=7, seed=1)
    assert [(r["k"], r["temperature"]) for r in records] == [(5, 0.1), (5, 0.5), (3, 0.1), (3, 0.5)]
    assert [r["primary"] for r in records] == [True, False, False, False]
    expected = knn(raw_pixels(splits().train), raw_pixels(splits().test), k=(5, 3), temperature=0.5)
    assert {r["k"]: r["value"] for r in records if r["temperature"] == 0.5} == expected
    first = records[0]
    details = {"protocol": "knn", "split": "test", "metric": "top1", "data": "stripes", "image_size": 6, "dim": 36}
    details |= {"train_images": 50, "holdout_images": 20, "test_images": 20, "epoch": 7, "seed": 1}
    assert {name: first[name] for name in details} == details
    assert first["seconds"] >= 0
    assert first["peak_memory_mb"] > 0


def test_the_probe_record_says_how_the_setting_was_chosen():
    (record,) = evaluate(None, splits(), CONFIG, ["linear_probe"], epoch=7, seed=1)
    assert record["split"] == "test"
    assert record["selected_on"] == "holdout"
    assert record["grid"]["learning_rates"] == [0.1, 0.01]
    assert record["chosen"] in record["settings"]
    assert len(record["settings"]) == 2
    assert set(record["per_class"]) == {"0", "1", "2"}


def test_without_test_images_the_holdout_is_scored_and_not_chosen_on():
    parts = splits(test=False)
    records = evaluate(None, parts, CONFIG, ["knn"])
    assert {record["split"] for record in records} == {"holdout"}
    expected = knn(raw_pixels(parts.train), raw_pixels(parts.holdout), k=5, temperature=0.1)
    assert records[0]["value"] == expected[5]
    (probe,) = evaluate(None, parts, CONFIG, ["linear_probe"])
    assert probe["split"] == "holdout"
    assert probe["selected_on"] == "10% of train (5 images)"


def test_without_a_holdout_the_choice_is_made_on_training_images():
    (probe,) = evaluate(None, splits(holdout=False), CONFIG, ["linear_probe"])
    assert (probe["split"], probe["selected_on"]) == ("test", "10% of train (5 images)")
    with pytest.raises(UserError, match=r"data\.holdout"):
        evaluate(None, splits(holdout=False, test=False), CONFIG, ["knn"])


def test_all_protocols_on_one_extraction(tmp_path):
    network = Network()
    one_extraction = ["diagnostics", "knn", "linear_probe"]
    records = evaluate(network, splits(), CONFIG, protocols=one_extraction, run_dir=tmp_path, epoch=2)
    assert network.images == 90
    assert {(r["protocol"], r["metric"]) for r in records} == {
        ("knn", "top1"),
        ("linear_probe", "top1"),
        ("diagnostics", "uniformity"),
        ("diagnostics", "rank_me"),
        ("diagnostics", "feature_std"),
        ("diagnostics", "alpha_req"),
        ("diagnostics", "tolerance"),
    }
    assert read_results(tmp_path) == records
    again = evaluate(network, splits(), CONFIG, protocols=one_extraction, run_dir=tmp_path, epoch=2)
    assert network.images == 90, "the second evaluation reads the cache"
    assert len(read_results(tmp_path)) == len(records)
    assert [r["value"] for r in again] == [r["value"] for r in records]


def test_kept_features_have_the_labels_of_now(tmp_path):
    parts, network = splits(), Network()
    (first, *_) = evaluate(network, parts, CONFIG, protocols=["knn"], run_dir=tmp_path)
    parts.test.labels = (parts.test.labels + 1) % 3
    (again, *_) = evaluate(network, parts, CONFIG, protocols=["knn"], run_dir=tmp_path)
    assert network.images == 90, "the second evaluation reads the cache"
    (fresh, *_) = evaluate(network, parts, CONFIG, protocols=["knn"])
    assert again.value == fresh.value != first.value


def test_no_cache_when_it_is_off(tmp_path):
    network = Network()
    for _ in range(2):
        evaluate(network, splits(), changed(CONFIG, cache=False), protocols=["knn"], run_dir=tmp_path)
    assert network.images == 180
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_diverged_setting_is_still_json(tmp_path):
    config = changed(CONFIG, linear_probe={"learning_rates": [1e30, 0.1], "weight_decays": [1.0]})
    evaluate(None, splits(), config, run_dir=tmp_path)
    (probe,) = [r for r in read_results(tmp_path) if r["protocol"] == "linear_probe"]
    assert probe["settings"][0]["holdout_loss"] is None
    assert probe["chosen"]["learning_rate"] == 0.1


def test_images_without_labels_get_the_diagnostics(tmp_path):
    with pytest.warns(UserWarning, match=r"Left out: .*knn, knn_loo, .*no label"):
        records = evaluate(Network(), splits(labels=False), changed(CONFIG, figures=True), run_dir=tmp_path)
    assert {record["protocol"] for record in records} == {"diagnostics", "layers", "invariance"}
    assert (tmp_path / "figures" / "neighbours.png").exists()
    with pytest.raises(UserError, match="no label"):
        evaluate(None, splits(labels=False), CONFIG, ["knn"])


def test_figures_are_drawn_into_the_run(tmp_path):
    evaluate(None, splits(), changed(CONFIG, figures=True), run_dir=tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "confusion.png",
        "feature_map.npz",
        "feature_map.png",
        "neighbours.png",
        "spectrum.png",
    ]


def test_features_of_the_parts_are_kept_by_name(tmp_path):
    extract_splits(Encoder(Network()), splits(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holdout.pt", "test.pt", "train.pt"]


class Broken(Network):
    """Gives the first image of every batch no features."""

    def forward(self, images):
        features = super().forward(images)
        features[0] = float("nan")
        return features


def test_what_cannot_run_is_told_and_the_rest_goes_on(tmp_path):
    with pytest.warns(UserWarning, match=r"Left out: segmentation \(.*no masks.*\); attention \(.*no attention"):
        records = evaluate(
            Network(),
            splits(),
            CONFIG,
            protocols=["segmentation", "knn", "attention", "retrieval"],
            run_dir=tmp_path,
        )
    assert [r["protocol"] for r in records if r["metric"] in ("top1", "map")] == ["knn"] * 4 + ["retrieval"]
    assert read_results(tmp_path) == records


def test_results_are_on_disk_before_the_next_protocol_begins(tmp_path, monkeypatch):
    def stopped(subject, settings):
        raise KeyboardInterrupt

    monkeypatch.setitem(PROTOCOLS, "retrieval", replace(PROTOCOLS["retrieval"], run=stopped))
    with pytest.raises(KeyboardInterrupt):
        evaluate(None, splits(), CONFIG, protocols=["knn", "retrieval"], run_dir=tmp_path)
    assert {record["protocol"] for record in read_results(tmp_path)} == {"knn"}


def test_features_that_are_not_finite_are_extracted_once_and_told_once(tmp_path):
    network = Broken()
    pooled = ["diagnostics", "knn", "knn_loo", "retrieval", "clustering", "ridge", "linear_probe"]
    with pytest.raises(UserError, match="train split of 'stripes' are NaN or infinite for 4 of 50 images") as told:
        evaluate(network, splits(), CONFIG, protocols=pooled, run_dir=tmp_path)
    assert str(told.value).count("NaN") == 1
    assert network.images == 50
    assert not (tmp_path / "results.json").exists()


def test_a_class_that_training_lacks_counts_as_errors_and_nothing_is_left_out(tmp_path):
    parts = splits()
    parts = replace(parts, train=parts.train.subset((parts.train.labels != 1).nonzero().flatten()))
    chosen = ["knn", "linear_probe", "ridge", "clustering", "retrieval", "logistic"]
    with pytest.warns(UserWarning, match=r"Classes of the test features have no training image .*\[1\]"):
        records = evaluate(Network(), parts, CONFIG, protocols=chosen, run_dir=tmp_path)
    assert {record["protocol"] for record in records} == set(chosen)
    share = (parts.test.labels != 1).double().mean().item()
    assert all(record["value"] <= share for record in records if record["metric"] == "top1")
    (without,) = {r["without_match"] for r in records if r["protocol"] == "retrieval"}
    assert without == int((parts.test.labels == 1).sum())


def test_records_tell_a_lowered_precision():
    network, parts = Network(), splits()
    lowered = evaluate(network, parts, changed(CONFIG, precision="bf16"), protocols=["knn"])
    assert {record["precision"] for record in lowered} == {"bfloat16"}
    for precision in ("auto", "32"):  # the same on a CPU
        full = evaluate(network, parts, changed(CONFIG, precision=precision), protocols=["knn"])
        assert all("precision" not in record for record in full)
    double = evaluate(network.double(), parts, changed(CONFIG, precision="bf16"), protocols=["knn"])
    assert all("precision" not in record for record in double), "a float64 network is not lowered"
    with pytest.raises(UserError, match=r"eval\.precision: there is no '8'"):
        evaluate(network, parts, changed(CONFIG, precision="8"), protocols=["knn"])


def test_diagnostics_of_one_image_are_left_out():
    parts = replace(splits(), train=splits().train.subset(torch.tensor([3])))
    with pytest.raises(UserError, match="at least two training images"):
        evaluate(None, parts, CONFIG, protocols=["diagnostics"])


def test_a_factorisation_that_fails_stops_its_protocol_alone(monkeypatch):
    def failing(subject, settings):
        torch.linalg.cholesky(-torch.eye(2))
        yield

    monkeypatch.setitem(PROTOCOLS, "ridge", replace(PROTOCOLS["ridge"], run=failing))
    with pytest.warns(UserWarning, match="Left out: ridge .*positive-definite"):
        records = evaluate(None, splits(), CONFIG, protocols=["ridge", "knn"])
    assert {record["protocol"] for record in records} == {"knn"}


def test_figures_that_cannot_be_written_cost_no_number(tmp_path):
    (tmp_path / "figures").write_text("in the way")
    with pytest.warns(UserWarning, match="feature_map.png could not be (drawn|written)"):
        records = evaluate(None, splits(), changed(CONFIG, figures=True), protocols=["knn"], run_dir=tmp_path)
    assert read_results(tmp_path) == records


def test_what_fails_keeps_the_features_and_what_was_found_and_the_others_go_on(tmp_path, monkeypatch):
    def failing(subject, settings):
        yield Record(split="test", metric="before", value=float(len(subject.features.train)))
        raise RuntimeError("sizes differ")

    monkeypatch.setitem(PROTOCOLS, "clustering", replace(PROTOCOLS["clustering"], run=failing))
    network = Network()
    config = changed(CONFIG, cache=True)
    with pytest.warns(UserWarning, match=r"Left out: clustering \(RuntimeError at test_protocols.py:\d+: sizes differ"):
        records = evaluate(network, splits(), config, ["clustering", "knn"], run_dir=tmp_path)
    assert [r.protocol for r in records] == ["clustering"] + ["knn"] * 4
    assert read_results(tmp_path) == records
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["holdout.pt", "test.pt", "train.pt"]
    evaluate(network, splits(), config, ["knn"], run_dir=tmp_path)
    assert network.images == 90, "the features were kept"


def test_what_a_protocol_needs_is_looked_at_before_anything_is_computed():
    network = Network()
    with pytest.raises(UserError, match="no label"):
        evaluate(network, splits(labels=False), CONFIG, ["knn", "ridge"])
    with pytest.raises(UserError, match="no masks"):
        evaluate(network, splits(), CONFIG, ["segmentation"])
    assert network.images == 0
    with pytest.raises(UserError, match="Did you mean 'knn'"):
        evaluate(network, splits(), CONFIG, ["kn"])
