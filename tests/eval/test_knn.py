import math
import sys

import pytest
import torch

from selfsup.errors import UserError
from selfsup.eval import FeatureSet, knn, knn_grid


def set_of(features, labels):
    features = torch.as_tensor(features, dtype=torch.float32)
    return FeatureSet(features, None if labels is None else torch.as_tensor(labels), torch.arange(len(features)))


def clusters(count, seed, labels=(3, 7, 100), dim=6, spread=1.2):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(99))
    which = torch.randint(0, len(labels), (count,), generator=generator)
    features = centres[which] + spread * torch.randn(count, dim, generator=generator)
    return set_of(features, torch.tensor(labels)[which])


def loop_accuracy(train, test, k, temperature):
    """Brute force in Python floats; ``temperature`` None gives every neighbour one vote."""

    def unit(row):
        length = math.sqrt(sum(x * x for x in row))
        return [x / length for x in row]

    bank = [unit(row) for row in train.features.tolist()]
    right = 0
    for row, label in zip(test.features.tolist(), test.labels.tolist(), strict=True):
        query = unit(row)
        similarity = [sum(a * b for a, b in zip(query, other, strict=True)) for other in bank]
        nearest = sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]
        scores = {}
        for i in nearest:
            vote = 1.0 if temperature is None else math.exp(similarity[i] / temperature)
            scores[train.labels[i].item()] = scores.get(train.labels[i].item(), 0.0) + vote
        best = min(scores, key=lambda c: (-scores[c], c))
        right += best == label
    return right / len(test)


def test_every_setting_is_brute_force():
    train, test = clusters(90, 0), clusters(60, 1)
    results = knn_grid(train, test, [1, 5, 20, 90], [0.07, 0.5])
    assert len(results) == 4 * 3
    for result in results:
        assert result.accuracy == pytest.approx(loop_accuracy(train, test, result.k, result.temperature)), result
    # the settings have to differ for this to mean something
    assert len({result.accuracy for result in results}) > 3


def test_knn_returns_an_accuracy_for_each_k():
    train, test = clusters(90, 0), clusters(60, 1)
    found = knn(train, test, k=(20, 5), temperature=0.1)
    assert list(found) == [20, 5]
    assert found == {k: pytest.approx(loop_accuracy(train, test, k, 0.1)) for k in (20, 5)}
    assert knn(train, test, k=5, temperature=0.1) == {5: found[5]}


def test_more_queries_than_are_handled_at_once(monkeypatch):
    train, test = clusters(50, 0), clusters(23, 1)
    whole = knn(train, test, k=7)
    # the package's attribute of this name is the function
    monkeypatch.setattr(sys.modules["selfsup.eval.knn"], "QUERIES_AT_ONCE", 4)
    assert knn(train, test, k=7) == whole


def test_the_weight_of_a_neighbour_is_the_exponential_of_its_cosine():
    # one neighbour of class 1 at cosine 1 against two of class 0 at cosine c: e^(1/T) against 2 e^(c/T)
    cosine = 0.9
    even = (1 - cosine) / math.log(2)
    side = math.sqrt(1 - cosine**2)
    train = set_of([[1, 0], [cosine, side], [cosine, -side]], [1, 0, 0])
    test = set_of([[2, 0]], [1])
    assert knn(train, test, k=3, temperature=0.98 * even) == {3: 1.0}
    assert knn(train, test, k=3, temperature=1.02 * even) == {3: 0.0}


def test_the_lowest_of_equal_classes_wins():
    train = set_of([[1, 0], [1, 0], [1, 0], [1, 0]], [8, 2, 8, 2])
    for weights in ("distance", "uniform"):
        (result,) = knn_grid(train, set_of([[1, 0], [1, 0]], [2, 8]), [4], [0.07], weights=(weights,))
        assert result.accuracy == 0.5
    assert knn(train, set_of([[1, 0]], [2]), k=4) == {4: 1.0}


def test_a_low_temperature_is_the_nearest_neighbour():
    train, test = clusters(60, 0), clusters(40, 1)
    assert knn(train, test, k=30, temperature=1e-6) == {30: pytest.approx(loop_accuracy(train, test, 1, None))}


def test_k_above_the_bank_is_cut_and_said():
    train, test = clusters(30, 0), clusters(20, 1)
    with pytest.warns(UserWarning, match="uses all 30"):
        results = knn_grid(train, test, [10, 200], [0.07], weights=("distance",))
    assert [(result.k, result.neighbours) for result in results] == [(10, 10), (200, 30)]
    assert results[1].accuracy == pytest.approx(loop_accuracy(train, test, 30, 0.07))


def test_a_class_without_a_bank_image_is_an_error():
    train = set_of([[1, 0], [0, 1]], [0, 1])
    assert knn(train, set_of([[1, 0], [1, 0]], [0, 5]), k=1) == {1: 0.5}


@pytest.mark.parametrize(
    ("train", "test", "settings", "message"),
    [
        (set_of([[1, 0]], None), set_of([[1, 0]], [0]), {}, "train features have no label for 1 of 1"),
        (set_of([[1, 0]], [0]), set_of([[1, 0], [0, 1]], [0, -1]), {}, "test features have no label for 1 of 2"),
        (set_of([[1, 0]], [0]), set_of([[1, 0, 0]], [0]), {}, "2 dimensions and the test features 3"),
        (set_of([[1, 0]], [0]), set_of([[math.nan, 0]], [0]), {}, "for 1 of 1"),
        (set_of([[1, math.inf]], [0]), set_of([[1, 0]], [0]), {}, "for 1 of 1"),
        (set_of(torch.empty(0, 2), torch.empty(0, dtype=torch.int64)), set_of([[1, 0]], [0]), {}, "empty"),
        (set_of([[1, 0]], [0]), set_of([[1, 0]], [0]), {"k": 0}, "knn_k"),
        (set_of([[1, 0]], [0]), set_of([[1, 0]], [0]), {"temperature": 0.0}, "temperatures"),
    ],
)
def test_what_a_person_can_put_right(train, test, settings, message):
    with pytest.raises(UserError, match=message):
        knn(train, test, **{"k": 1, **settings})
