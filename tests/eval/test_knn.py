import math
import sys

import pytest
import torch

from selfsup.errors import UserError
from selfsup.eval import FeatureSet, knn, knn_grid, search
from selfsup.eval.protocols.multilabel_knn import knn_multilabel
from selfsup.eval.voting import knn_loo


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
    monkeypatch.setattr(sys.modules["selfsup.eval.voting"], "QUERIES_AT_ONCE", 4)
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
        (set_of([[1, 0]], [0]), set_of([[1, 0]], [0]), {"k": 0}, "knn.k"),
        (set_of([[1, 0]], [0]), set_of([[1, 0]], [0]), {"temperature": 0.0}, "temperatures"),
    ],
)
def test_what_a_person_can_put_right(train, test, settings, message):
    with pytest.raises(UserError, match=message):
        knn(train, test, **{"k": 1, **settings})


@pytest.mark.parametrize("index", ["flat", "half"])
def test_leave_one_out_is_each_image_against_the_others(index):
    data = clusters(50, 0)
    results = knn_loo(data, [1, 5, 49], [0.07, 0.5], ("distance", "uniform"), index=index)
    assert len(results) == 3 * 3
    for result in results:
        right = 0
        for i in range(50):
            others = torch.arange(50) != i
            rest, one = set_of(data.features[others], data.labels[others]), set_of(data.features[[i]], data.labels[[i]])
            right += loop_accuracy(rest, one, result.k, result.temperature)
        assert result.accuracy == pytest.approx(right / 50), result
    assert len({result.accuracy for result in results}) > 2


def test_leave_one_out_does_not_see_itself():
    # every image has a copy of the other class: without leaving it out, half would be right
    data = set_of([[1, 0], [1, 0], [0, 1], [0, 1]], [4, 9, 4, 9])
    assert knn_loo(data, [1])[0].accuracy == 0
    with pytest.warns(UserWarning, match="uses all 3"):
        (result,) = knn_loo(data, [20])
    assert (result.k, result.neighbours) == (20, 3)
    with pytest.raises(UserError, match="at least two images"):
        knn_loo(set_of([[1, 0]], [0]))


def loop_average_precision(scores, truth):
    """Precision at each distinct score, weighted by the recall it adds."""
    total, last, area = sum(truth), 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [t for s, t in zip(scores, truth, strict=True) if s >= threshold]
        area += (sum(taken) / total - last) * sum(taken) / len(taken)
        last = sum(taken) / total
    return area


def test_multi_label_knn_is_brute_force():
    generator = torch.Generator().manual_seed(3)
    single_train, single_test = clusters(60, 0), clusters(30, 1)
    labels = [(torch.rand(n, 5, generator=generator) < 0.3).long() for n in (60, 30)]
    for table, part in zip(labels, (single_train, single_test), strict=True):
        table[:, 0] = part.labels == 3  # one class that the features know
        table[:, 4] = 0  # and one that no image has
    labels[0][:, 3] = 0  # one that no bank image has
    train, test = set_of(single_train.features, labels[0]), set_of(single_test.features, labels[1])
    results = knn_multilabel(train, test, [5, 60], [0.1, 0.5])
    unit = torch.nn.functional.normalize
    table = unit(test.features.double(), dim=1) @ unit(train.features.double(), dim=1).T
    assert [(r.k, r.temperature) for r in results] == [(5, 0.1), (5, 0.5), (60, 0.1), (60, 0.5)]
    for result in results:
        expected = {}
        for c in range(4):
            scores = []
            for row in table.tolist():
                nearest = sorted(range(60), key=lambda i: -row[i])[: result.k]
                votes = [math.exp((row[i] - row[nearest[0]]) / result.temperature) for i in nearest]
                have = [v for v, i in zip(votes, nearest, strict=True) if train.labels[i, c]]
                scores.append(round(sum(have) / sum(votes), 6))
            expected[c] = loop_average_precision(scores, test.labels[:, c].tolist())
        assert result.per_class == pytest.approx(expected, abs=1e-6)
        assert result.mean_average_precision == pytest.approx(sum(expected.values()) / 4, abs=1e-6)
    assert len({round(r.mean_average_precision, 6) for r in results}) == 4


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1], [[1, 0]], "train labels are not a table"),
        ([[0, 1], [1, 0]], [[1, 0, 0]], "2 classes and the test labels 3"),
        ([[0, 1], [1, 0]], [[2, 0]], "test labels hold other values"),
        ([[0, 1], [1, 0]], [[0, 0]], "No test image has any class"),
    ],
)
def test_multi_label_mistakes(train, test, message):
    with pytest.raises(UserError, match=message):
        knn_multilabel(set_of(torch.eye(2), train), set_of([[1, 0]], test), [1])


def test_an_approximate_search_says_what_it_missed():
    generator = torch.Generator().manual_seed(0)
    train = set_of(torch.randn(1500, 8, generator=generator), [0, 1, 2] * 500)
    test = set_of(torch.randn(60, 8, generator=generator), [0, 1, 2] * 20)
    unit = torch.nn.functional.normalize
    order = (unit(test.features, dim=1) @ unit(train.features, dim=1).T).argsort(dim=1, descending=True)
    near = search(train.features, test.features, 30, index="ivf")[1]
    for result in knn_grid(train, test, [5, 30], [0.1], index="ivf"):
        shared = sum(
            len(set(a) & set(b))
            for a, b in zip(near[:, : result.k].tolist(), order[:, : result.k].tolist(), strict=True)
        )
        assert result.recall == pytest.approx(shared / (60 * result.k))
        assert result.recall < 1
    assert {result.recall for result in knn_grid(train, test, [5, 30], [0.1])} == {1.0}
    assert knn_loo(train, [5], index="ivf")[0].recall < 1


def test_a_class_that_the_bank_lacks_is_told():
    bank = FeatureSet(torch.eye(4), torch.tensor([0, 0, 1, 1]), torch.arange(4))
    queries = FeatureSet(torch.eye(4)[[0, 2]], torch.tensor([0, 7]), torch.arange(2))
    with pytest.warns(UserWarning, match=r"Classes of the test features .* \[7\]"):
        assert knn(bank, queries, k=1) == {1: 0.5}
