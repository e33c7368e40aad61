"""Several labels and real values: average precision, the multi-label probe and the regression against loops."""

import math

import numpy as np
import pytest
import torch
from measuring import evaluate
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score
from tiny import resident

from selfsup.data.base import Splits
from selfsup.data.targets import Targets
from selfsup.errors import UserError
from selfsup.eval import (
    FeatureSet,
    average_precision,
    eval_config,
    knn,
    multilabel_probe,
    raw_pixels,
    regression,
    with_targets,
)
from selfsup.report import read_table
from selfsup.types import Normalization

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = [torch.randn(n, 6, generator=GENERATOR).double() * torch.arange(1, 7) + 3 for n in (120, 50, 60)]


def _labels(features):
    noise = torch.randn(len(features), 3, generator=torch.Generator().manual_seed(len(features))).double()
    scores = torch.stack([features[:, 0] - 3, (features[:, 1] - 5) * 2, features[:, 2] * 0], 1) + noise
    return torch.cat([(scores > 0.5).long(), torch.zeros(len(features), 1, dtype=torch.long)], 1)


def _reals(features):
    noise = torch.randn(len(features), 2, generator=torch.Generator().manual_seed(len(features))).double()
    return torch.stack([features[:, 0] * 2 + features[:, 3], 1000 + 50 * features[:, 5]], 1) + noise * torch.tensor(
        [5, 90]
    )


def _sets(labels):
    return [FeatureSet(part, labels(part)) for part in FEATURES]


def _loop_precision(scores, truth):
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [y for s, y in zip(scores, truth, strict=True) if s >= threshold]
        recall = sum(taken) / sum(truth)
        total += (recall - before) * sum(taken) / len(taken)
        before = recall
    return total


def test_average_precision_is_a_loop_over_thresholds_also_with_equal_scores():
    scores = torch.randint(0, 6, (80, 4), generator=GENERATOR).double()
    scores[:, 3] = 1.0  # all alike: the share of images that have the label
    truth = torch.rand(80, 4, generator=GENERATOR) < 0.3
    found = average_precision(scores, truth).tolist()
    for column, value in enumerate(found):
        own = scores[:, column].tolist(), truth[:, column].long().tolist()
        assert value == pytest.approx(_loop_precision(*own), abs=1e-12)
        assert value == pytest.approx(average_precision_score(own[1], own[0]), abs=1e-12)
    assert found[3] == pytest.approx(truth[:, 3].double().mean().item())
    assert math.isnan(average_precision(scores, torch.zeros_like(truth))[0])
    assert average_precision(torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[True], [True], [False]])).item() == 1


def test_the_multi_label_probe_is_a_logistic_regression_for_each_label():
    train, held, test = _sets(_labels)
    with pytest.warns(UserWarning, match="1 labels are those of all or of none of the 120 training images"):
        found = multilabel_probe(train, test, holdout=held, c=[1e-4, 0.05, 1.0], progress=False)
    mean, std = FEATURES[0].mean(0), FEATURES[0].std(0, correction=0)
    inputs = [((part - mean) / std).numpy() for part in FEATURES]
    chosen, best = None, -1.0
    for c in (1e-4, 0.05, 1.0):
        models = [
            LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(inputs[0], train.labels[:, label].numpy())
            for label in range(3)
        ]
        on_held = [
            average_precision_score(held.labels[:, label], model.decision_function(inputs[1]))
            for label, model in enumerate(models)
        ]
        setting = next(one for one in found.settings if one.c == c)
        assert setting.holdout_map == pytest.approx(np.mean(on_held), abs=1e-6)
        if np.mean(on_held) > best:
            chosen, best = (c, models), np.mean(on_held)
    assert found.chosen.c == chosen[0]
    for label, model in enumerate(chosen[1]):
        np.testing.assert_allclose(found.weight[:, label].numpy(), model.coef_[0], atol=2e-4)
        expected = average_precision_score(test.labels[:, label], model.decision_function(inputs[2]))
        assert found.per_class[label] == pytest.approx(expected, abs=1e-6)
    assert set(found.per_class) == {0, 1, 2}
    assert found.mean_average_precision == pytest.approx(sum(found.per_class.values()) / 3)
    assert not found.weight[:, 3].any()


def test_the_regression_is_ridge_with_a_penalty_for_each_target():
    train, held, test = _sets(_reals)
    penalties = (1e-3, 0.1, 3.0)
    found = regression(train, test, holdout=held, penalties=penalties)
    mean, std = FEATURES[0].mean(0), FEATURES[0].std(0, correction=0)
    inputs = [((part - mean) / std).numpy() for part in FEATURES]
    for column in range(2):
        y = [part.labels[:, column].numpy() for part in (train, held, test)]
        models = [Ridge(alpha=penalty * 120).fit(inputs[0], y[0]) for penalty in penalties]
        errors = [((model.predict(inputs[1]) - y[1]) ** 2).mean() for model in models]
        best = int(np.argmin(errors))
        assert found.penalties[column] == penalties[best]
        assert found.r2[column] == pytest.approx(r2_score(y[2], models[best].predict(inputs[2])), abs=1e-9)
        assert found.mae[column] == pytest.approx(mean_absolute_error(y[2], models[best].predict(inputs[2])), abs=1e-9)
        assert found.mae_of_mean[column] == pytest.approx(np.abs(y[2] - y[0].mean()).mean(), abs=1e-9)
        loop = [sum(w * x for w, x in zip(found.weight[:, column].tolist(), row, strict=True)) for row in inputs[2]]
        assert loop[7] + found.bias[column].item() == pytest.approx(models[best].predict(inputs[2])[7], abs=1e-6)


def test_the_test_images_choose_nothing():
    train, held, test = _sets(_reals)
    other = FeatureSet(test.features, test.labels.flip(0))
    assert regression(train, test, holdout=held).penalties == regression(train, other, holdout=held).penalties
    without = regression(train, test, seed=3)
    assert without.selected_on == "10% of train (12 images)"
    train, held, test = _sets(lambda part: _labels(part)[:, :3])
    first = multilabel_probe(train, test, holdout=held, progress=False)
    again = multilabel_probe(train, FeatureSet(test.features, 1 - test.labels), holdout=held, progress=False)
    assert first.settings == again.settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(60, 2).double()}, "every target is the same for all test images"),
        ({"labels": torch.full((60, 2), math.nan)}, "NaN or infinite for 60 of 60"),
        ({"labels": torch.zeros(60, 2, dtype=torch.long)}, "no real targets; give floats"),
        ({"labels": torch.zeros(60, 3)}, "2 targets, those of the hold-out 2 and the test features 3"),
        ({"features": torch.full((60, 6), math.nan)}, "NaN or infinite for 60"),
    ],
)
def test_mistakes_of_a_regression(change, message):
    train, held, test = _sets(_reals)
    with pytest.raises(UserError, match=message):
        regression(train, FeatureSet(**{"features": test.features, "labels": test.labels, **change}), holdout=held)


def _splits(kind):
    pixels = torch.randint(0, 255, (90, 1, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    flat = pixels.flatten(1).double()
    if kind == "real":
        values = torch.stack([flat[:, 0], flat[:, 1] - flat[:, 2]], 1)
        values[3] = math.nan
    else:
        values = torch.stack([flat[:, 0] > 120, flat[:, 1] > 90], 1).to(torch.int8)
        values[3] = -1
    data = resident(pixels, name="noise", image_size=4, normalization=Normalization((0.3,), (0.2,)))
    data.targets = Targets(kind, ("first", "second"), values)
    part = torch.arange(90).split([50, 20, 20])
    return Splits(data.subset(part[0]), data.subset(part[0]), data.subset(part[1]), data.subset(part[2]))


@pytest.mark.parametrize(
    ("kind", "metrics"),
    [
        ("multilabel", {("multilabel_knn", "map"), ("multilabel_probe", "map")}),
        ("real", {("regression", "r2"), ("regression", "mae")}),
    ],
)
def test_an_evaluation_runs_what_fits_the_targets(tmp_path, kind, metrics, recwarn):
    config = eval_config(multilabel_knn={"k": [5]}, multilabel_probe={"c": [0.01]})
    splits = _splits(kind)
    records = evaluate(None, splits, config, None, run_dir=tmp_path)
    assert {(r.protocol, r.metric) for r in records if r.protocol != "diagnostics"} == metrics
    assert not [one for one in recwarn if "Left out" in str(one.message)]
    assert (tmp_path / "figures" / "feature_map.png").exists()
    for record in records:
        if record.protocol != "diagnostics":
            assert (record["split"], record["targets"]) == ("test", kind)
    if kind == "multilabel":
        assert (tmp_path / "figures" / "per_label.png").exists()
        knn_record = next(r for r in records if r.protocol == "multilabel_knn")
        assert set(knn_record["per_label"]) == {"first", "second"}
    else:
        train, held, test = (with_targets(raw_pixels(p), p) for p in (splits.train, splits.holdout, splits.test))
        assert len(train) == 49, "nothing is known of one image"
        expected = regression(train, test, holdout=held)
        by_name = {(r.metric, r["target"]): r.value for r in records if r.protocol == "regression"}
        assert by_name["r2", "mean of all"] == pytest.approx(sum(expected.r2) / 2)
        assert by_name["mae", "second"] == expected.mae[1]
    other = "regression" if kind == "multilabel" else "multilabel_knn"
    for name, message in (
        ("knn", r"have .* \(first, second\) and no classes; run"),
        (other, "are needed and the images"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(None, splits, config, [name])


def test_class_functions_refuse_tables_and_say_what_takes_them():
    train, _, test = _sets(_labels)
    with pytest.raises(UserError, match=r"labels are a table, .* evaluate tables with knn_multilabel"):
        knn(train, test, 5)


def test_a_comparison_has_columns_of_the_targets(tmp_path):
    config = eval_config(multilabel_knn={"k": [5]}, multilabel_probe={"c": [0.01]}, figures=False)
    evaluate(None, _splits("multilabel"), config, None, run_dir=tmp_path / "a")
    table = read_table([tmp_path / "a"])
    assert table.accuracies == ("mAP of kNN", "mAP of probe")
    assert not table.notes
