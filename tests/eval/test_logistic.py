import pytest
import torch
from sklearn.linear_model import LogisticRegression

from selfsup.errors import UserError
from selfsup.eval import FeatureSet, logistic_probe
from selfsup.eval.logistic import fit_logistic


def problem(count, width, classes, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    targets = torch.randint(0, classes, (count,), generator=generator)
    return centres[targets] + spread * torch.randn(count, width, generator=generator, dtype=torch.float64), targets


def set_of(count, seed, spread=1.5):
    inputs, targets = problem(count, 6, 3, seed, spread)
    return FeatureSet(inputs.float(), torch.tensor([2, 5, 50])[targets], torch.arange(count))


@pytest.mark.parametrize(("count", "width", "classes"), [(80, 5, 3), (12, 20, 4), (60, 4, 2)])
def test_every_strength_is_what_scikit_learn_finds_for_it_alone(count, width, classes):
    inputs, targets = problem(count, width, classes, 0)
    strengths = [1e-4, 1e-2, 1.0, 30.0]
    weight, bias = fit_logistic(inputs, targets, classes, strengths, iterations=2000, tolerance=1e-9)
    for c, w, b in zip(strengths, weight, bias, strict=True):
        reference = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(inputs.numpy(), targets.numpy())
        expected = torch.from_numpy(reference.predict_proba(inputs.numpy()))
        if classes == 2:  # scikit-learn then has one vector, penalised as one: half of the two-vector penalty
            twice = LogisticRegression(C=2 * c, tol=1e-10, max_iter=10_000).fit(inputs.numpy(), targets.numpy())
            expected = torch.from_numpy(twice.predict_proba(inputs.numpy()))
        else:
            torch.testing.assert_close(w, torch.from_numpy(reference.coef_).T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close((inputs @ w + b).softmax(1), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_vanishes_at_the_minimum():
    inputs, targets = problem(100, 8, 5, 1)
    strengths = [10.0**k for k in range(-6, 3)]
    weight, bias = fit_logistic(inputs, targets, 5, strengths, iterations=3000, tolerance=1e-8)
    for c, w, b in zip(strengths, weight.clone(), bias.clone(), strict=True):
        w.requires_grad_()
        b.requires_grad_()
        loss = torch.nn.functional.cross_entropy(inputs @ w + b, targets) + w.square().sum() / (2 * c * len(inputs))
        assert max(g.abs().max() for g in torch.autograd.grad(loss, (w, b))) < 2e-8


def test_problems_with_inputs_of_their_own_are_solved_apart():
    pairs = [problem(30, 4, 3, seed) for seed in range(5)]
    inputs, targets = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    weight, bias = fit_logistic(inputs, targets, 3, [0.5] * 5, tolerance=1e-9)
    for (x, y), w, b in zip(pairs, weight, bias, strict=True):
        alone_weight, alone_bias = fit_logistic(x, y, 3, [0.5], tolerance=1e-9)
        torch.testing.assert_close(w, alone_weight[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(b, alone_bias[0], rtol=1e-5, atol=1e-6)
        reference = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit(x.numpy(), y.numpy())
        torch.testing.assert_close(w, torch.from_numpy(reference.coef_).T, rtol=1e-4, atol=1e-5)


def test_a_small_workspace_changes_nothing(monkeypatch):
    inputs, targets = problem(70, 5, 3, 2)
    strengths = [1e-3, 0.1, 1.0]
    whole = fit_logistic(inputs, targets, 3, strengths, tolerance=1e-10)
    monkeypatch.setattr("selfsup.eval.logistic.NUMBERS", 100)  # one problem at a time, 33 rows at a time
    for one, other in zip(whole, fit_logistic(inputs, targets, 3, strengths, tolerance=1e-10), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_float32_reaches_the_predictions_of_scikit_learn():
    train, holdout, test = set_of(150, 0), set_of(80, 1), set_of(90, 2)
    result = logistic_probe(train, test, holdout=holdout, c=[1e-3, 0.1, 10.0], progress=False)
    mean, std = train.features.mean(0), train.features.std(0, correction=0)
    standard = {p: ((part.features - mean) / std).numpy() for p, part in {"train": train, "holdout": holdout}.items()}
    for setting in result.settings:
        reference = LogisticRegression(C=setting.c, tol=1e-8, max_iter=5000)
        reference.fit(standard["train"], train.labels.numpy())
        assert setting.holdout_accuracy == pytest.approx(
            reference.score(standard["holdout"], holdout.labels.numpy()), abs=1 / 80 + 1e-9
        )
    assert result.chosen.holdout_accuracy == max(s.holdout_accuracy for s in result.settings)
    predicted = result.classifier.predict(test.features)
    assert result.accuracy == pytest.approx((predicted == test.labels).double().mean().item())
    assert result.labels.tolist() == [2, 5, 50]
    counted = [[int(((test.labels == t) & (predicted == p)).sum()) for p in (2, 5, 50)] for t in (2, 5, 50)]
    assert result.confusion.tolist() == counted


def test_the_choice_follows_the_holdout_and_never_the_test_images():
    train, test = set_of(150, 0, 0.5), set_of(60, 2, 0.5)
    wrong = FeatureSet(test.features, test.labels.flip(0), test.index)
    first, second = (
        logistic_probe(train, t, holdout=set_of(60, 1, 0.5), c=[1e-6, 1.0], progress=False) for t in (test, wrong)
    )
    assert first.chosen == second.chosen
    assert first.accuracy != second.accuracy
    losses = [setting.holdout_loss for setting in first.settings]
    assert losses[1] < losses[0]
    assert first.chosen.c == 1.0


@pytest.mark.parametrize("settings", [{"c": []}, {"c": [0.0]}, {"iterations": 0}])
def test_what_a_person_can_put_right(settings):
    with pytest.raises(UserError, match=r"eval\.logistic\.c"):
        logistic_probe(set_of(30, 0), set_of(30, 1), **settings)
