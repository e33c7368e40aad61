import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier

from selfsup.errors import UserError
from selfsup.eval import FeatureSet, ridge_probe
from selfsup.eval.protocols.ridge import fit_ridge


def problem(count, width, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    targets = torch.cat([torch.arange(classes), torch.randint(0, classes, (count - classes,), generator=generator)])
    return 3 + centres[targets] + torch.randn(count, width, generator=generator, dtype=torch.float64), targets


@pytest.mark.parametrize(("count", "width"), [(60, 7), (15, 40), (20, 20)])
@pytest.mark.parametrize("block", [64, 2**24])
def test_every_penalty_is_what_scikit_learn_solves_for_it_alone(count, width, block, monkeypatch):
    monkeypatch.setattr("selfsup.eval.ridge.BLOCK", block)
    inputs, targets = problem(count, width)
    penalties = [1e-4, 0.1, 30.0]
    weights, biases = fit_ridge(inputs, targets, 4, penalties)
    for penalty, weight, bias in zip(penalties, weights, biases, strict=True):
        onehot = torch.eye(4, dtype=torch.float64)[targets]
        reference = Ridge(alpha=penalty * count).fit(inputs.numpy(), onehot.numpy())
        torch.testing.assert_close(weight, torch.from_numpy(reference.coef_).T, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(bias, torch.from_numpy(reference.intercept_), rtol=1e-7, atol=1e-9)


def test_the_whole_probe_predicts_as_a_ridge_classifier():
    (train, train_labels), (held, held_labels), (test, labels) = (
        problem(n, 6, seed=s) for n, s in ((90, 1), (60, 2), (70, 3))
    )
    parts = [
        FeatureSet(features.float(), 10 * targets, torch.arange(len(targets)))
        for features, targets in ((train, train_labels), (held, held_labels), (test, labels))
    ]
    penalties = [1e-3, 1.0, 100.0]
    result = ridge_probe(parts[0], parts[2], holdout=parts[1], penalties=penalties)
    mean, std = train.mean(0), train.std(0, correction=0)
    references = []
    for penalty in penalties:
        reference = RidgeClassifier(alpha=penalty * 90).fit(((train - mean) / std).numpy(), train_labels.numpy())
        references.append(reference)
    scores = [r.score(((held - mean) / std).numpy(), held_labels.numpy()) for r in references]
    assert [s.holdout_accuracy for s in result.settings] == pytest.approx(scores)
    assert result.chosen.holdout_accuracy == max(scores)
    chosen = references[penalties.index(result.chosen.penalty)]
    assert result.accuracy == pytest.approx(chosen.score(((test - mean) / std).numpy(), labels.numpy()))
    assert result.accuracy > 0.5


def test_a_constant_dimension_and_a_repeated_one_do_no_harm():
    inputs, targets = problem(40, 5)
    wide = torch.cat([inputs, inputs[:, :1], torch.ones(40, 1, dtype=torch.float64)], 1)
    weights, biases = fit_ridge(wide, targets, 4, [1e-6])
    onehot = torch.eye(4, dtype=torch.float64)[targets]
    reference = Ridge(alpha=4e-5).fit(wide.numpy(), onehot.numpy())
    torch.testing.assert_close(
        wide @ weights[0] + biases[0], torch.from_numpy(reference.predict(wide.numpy())), rtol=1e-6, atol=1e-6
    )


def test_what_a_person_can_put_right(monkeypatch):
    inputs, targets = problem(40, 5)
    part = FeatureSet(inputs.float(), targets, torch.arange(40))
    with pytest.raises(UserError, match=r"eval\.ridge\.penalties"):
        ridge_probe(part, part, penalties=[0.0])
    monkeypatch.setattr("selfsup.eval.protocols.ridge.LARGEST", 4)
    with pytest.raises(UserError, match=r"data\.limit"):
        ridge_probe(part, part)
