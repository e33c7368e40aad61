import math
import warnings

import pytest
import torch
from torch import nn

from selfsup.errors import UserError
from selfsup.eval import FeatureSet, linear_probe
from selfsup.eval.linear import train_classifiers


def set_of(features, labels):
    return FeatureSet(features, labels, torch.arange(len(features)))


def clusters(count, seed, labels=(3, 7, 100), dim=6, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(99))
    which = torch.randint(0, len(labels), (count,), generator=generator)
    return set_of(centres[which] + spread * torch.randn(count, dim, generator=generator), torch.tensor(labels)[which])


def probe(train, test, **settings):
    defaults = {"learning_rates": [0.1, 0.01], "weight_decays": [0.0, 1e-2], "epochs": 5, "batch_size": 16}
    return linear_probe(train, test, **{**defaults, "progress": False, **settings})


def trained_alone(inputs, targets, classes, rate, decay, epochs, batch_size, seed):
    """One classifier with torch's own layer, optimiser, schedule and loss."""
    layer = nn.Linear(inputs.shape[1], classes, dtype=inputs.dtype)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    steps = epochs * -(-len(inputs) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * t / steps)) / 2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for start in range(0, len(inputs), batch_size):
            positions = order[start : start + batch_size]
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(inputs[positions]), targets[positions]).backward()
            optimizer.step()
            schedule.step()
    return layer.weight.detach().T, layer.bias.detach()


@pytest.mark.parametrize(("count", "batch_size"), [(48, 16), (50, 16), (20, 64)])
def test_each_classifier_is_what_sgd_gives_for_it_alone(count, batch_size):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (count,), generator=generator)
    grid = [(0.01, 0.0), (0.3, 0.0), (0.3, 0.1), (1.0, 1e-3)]
    weight, bias = train_classifiers(inputs, targets, 4, grid, epochs=6, batch_size=batch_size, seed=3)
    assert weight.shape == (4, 7, 4)
    for (rate, decay), w, b in zip(grid, weight, bias, strict=True):
        alone_weight, alone_bias = trained_alone(inputs, targets, 4, rate, decay, 6, batch_size, 3)
        torch.testing.assert_close(w, alone_weight, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(b, alone_bias, rtol=1e-10, atol=1e-10)


def test_float32_agrees_with_sgd_too():
    train = clusters(64, 0)
    targets = torch.searchsorted(torch.tensor([3, 7, 100]), train.labels)
    weight, bias = train_classifiers(train.features, targets, 3, [(0.03, 1e-3)], epochs=5, batch_size=16, seed=1)
    alone_weight, alone_bias = trained_alone(train.features, targets, 3, 0.03, 1e-3, 5, 16, 1)
    torch.testing.assert_close(weight[0], alone_weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias[0], alone_bias, rtol=1e-5, atol=1e-5)


def test_result_of_the_whole_probe():
    train, holdout, test = clusters(120, 0), clusters(60, 1), clusters(80, 2)
    result = probe(train, test, holdout=holdout)
    predicted = result.classifier.predict(test.features)
    assert result.accuracy == pytest.approx((predicted == test.labels).double().mean().item())
    assert result.accuracy > 0.6  # a third by chance
    for label in (3, 7, 100):
        mine = predicted[test.labels == label]
        assert result.per_class[label] == pytest.approx((mine == label).double().mean().item())
    assert len(result.settings) == 4
    assert {(s.learning_rate, s.weight_decay) for s in result.settings} == {
        (rate, decay) for rate in (0.1, 0.01) for decay in (0.0, 1e-2)
    }
    assert result.chosen.holdout_accuracy == max(setting.holdout_accuracy for setting in result.settings)
    held = (result.classifier.predict(holdout.features) == holdout.labels).double().mean().item()
    assert result.chosen.holdout_accuracy == pytest.approx(held)
    assert result.selected_on == "holdout"


def test_features_are_standardised_with_the_training_features():
    train, holdout, test = clusters(120, 0), clusters(60, 1), clusters(80, 2)

    def moved(part):
        return set_of(part.features * torch.tensor([1e-3, 1, 10, 100, 5, 2]) + 50, part.labels)

    plain, other = probe(train, test, holdout=holdout), probe(moved(train), moved(test), holdout=moved(holdout))
    torch.testing.assert_close(plain.classifier.weight, other.classifier.weight, rtol=1e-2, atol=1e-2)
    inputs = (train.features - train.features.mean(0)) / train.features.std(0, correction=0)
    targets = torch.searchsorted(torch.tensor([3, 7, 100]), train.labels)
    rate, decay = plain.chosen.learning_rate, plain.chosen.weight_decay
    weight, bias = trained_alone(inputs, targets, 3, rate, decay, 5, 16, 0)
    torch.testing.assert_close(plain.classifier.weight, weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.classifier.bias, bias, rtol=1e-4, atol=1e-4)


def test_the_choice_never_sees_the_test_images():
    train, holdout = clusters(120, 0), clusters(40, 1)
    wrong = clusters(40, 1)
    wrong = set_of(wrong.features, wrong.labels.flip(0))
    first, second = (probe(train, test, holdout=holdout) for test in (clusters(40, 2), wrong))
    assert first.settings == second.settings
    assert first.chosen == second.chosen
    assert first.accuracy != second.accuracy


def test_the_choice_follows_the_holdout():
    train, test = clusters(200, 0, spread=0.5), clusters(80, 2, spread=0.5)
    backwards = clusters(80, 1, spread=0.5)
    permuted = torch.tensor([7, 100, 3])[torch.searchsorted(torch.tensor([3, 7, 100]), backwards.labels)]
    # a classifier that learned is wrong on these labels, one that hardly moved is right by chance
    result = probe(
        train, test, holdout=set_of(backwards.features, permuted), learning_rates=[0.1, 0.0], weight_decays=[0.0]
    )
    assert result.chosen.learning_rate == 0.0
    assert probe(train, test, learning_rates=[0.1, 0.0], weight_decays=[0.0]).chosen.learning_rate == 0.1


def test_without_a_holdout_a_tenth_of_train_is_set_aside():
    train, test = clusters(200, 0), clusters(80, 2)
    result = probe(train, test, seed=4)
    assert result.selected_on == "10% of train (20 images)"
    again = probe(train, test, seed=4)
    assert torch.equal(result.classifier.weight, again.classifier.weight)
    # accuracies on 20 images are multiples of 1/20
    assert all(abs(20 * s.holdout_accuracy - round(20 * s.holdout_accuracy)) < 1e-9 for s in result.settings)


def test_the_images_set_aside_are_not_trained_on():
    # every image has a class of its own: those set aside can only be wrong
    train = set_of(torch.eye(50), torch.arange(50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = probe(train, train, learning_rates=[1.0], weight_decays=[0.0], epochs=20)
    assert result.chosen.holdout_accuracy == 0
    assert result.accuracy == pytest.approx(0.9)


def test_a_classifier_that_diverges_leaves_the_others_alone():
    train, holdout, test = clusters(120, 0), clusters(60, 1), clusters(80, 2)
    mixed = probe(train, test, holdout=holdout, learning_rates=[1e30, 0.1], weight_decays=[1.0])
    alone = probe(train, test, holdout=holdout, learning_rates=[0.1], weight_decays=[1.0])
    assert mixed.settings[0].holdout_accuracy == 0
    assert mixed.settings[0].holdout_loss == math.inf
    assert mixed.chosen.learning_rate == 0.1
    torch.testing.assert_close(mixed.classifier.weight, alone.classifier.weight)


def test_a_class_that_training_lacks_counts_as_an_error():
    train, holdout = clusters(100, 0, labels=(0, 1), spread=0.1), clusters(40, 1, labels=(0, 1), spread=0.1)
    seen = clusters(30, 2, labels=(0, 1), spread=0.1)
    test = set_of(seen.features.repeat(2, 1), torch.cat([seen.labels, torch.full((30,), 9)]))
    with pytest.warns(UserWarning, match=r"Classes of the test features .* \[9\]") as caught:
        result = probe(train, test, holdout=holdout)
    assert len([w for w in caught if "count as errors" in str(w.message)]) == 1
    assert result.per_class == {0: 1.0, 1: 1.0, 9: 0.0}
    assert result.accuracy == 0.5


def test_a_dimension_that_is_constant_in_training_is_ignored():
    train, holdout, test = clusters(120, 0), clusters(60, 1), clusters(80, 2)

    def widened(part, value):
        return set_of(torch.cat([part.features, torch.full((len(part), 1), value)], 1), part.labels)

    plain = probe(train, test, holdout=holdout)
    wide = probe(widened(train, 0.1), widened(test, 1e4), holdout=widened(holdout, 0.1))
    assert wide.accuracy == plain.accuracy


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        (set_of(torch.ones(20, 6), None), {}, "no label for"),
        (set_of(torch.ones(20, 5), torch.arange(20) % 3), {}, "5 dimensions and the test features 6"),
        (set_of(torch.full((20, 6), math.nan), torch.arange(20) % 3), {}, "NaN"),
        (set_of(torch.ones(3, 6), torch.arange(3)), {}, "give a holdout"),
        (clusters(20, 0), {"learning_rates": []}, "at least one"),
        (clusters(20, 0), {"epochs": 0}, "at least 1"),
    ],
)
def test_what_a_person_can_put_right(train, settings, message):
    with pytest.raises(UserError, match=message):
        probe(train, clusters(20, 1), **settings)
