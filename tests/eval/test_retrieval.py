import math
import sys

import pytest
import torch

from selfsup.errors import UserError
from selfsup.eval import FeatureSet
from selfsup.eval.protocols.retrieval import retrieval


def set_of(features, labels):
    features = torch.as_tensor(features, dtype=torch.float32)
    return FeatureSet(features, None if labels is None else torch.as_tensor(labels), torch.arange(len(features)))


def clusters(count, seed, labels=(3, 7, 100), dim=5):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(99))
    which = torch.randint(0, len(labels), (count,), generator=generator)
    return set_of(centres[which] + torch.randn(count, dim, generator=generator), torch.tensor(labels)[which])


def by_loop(query, gallery, ks, leave_self_out=False):
    unit = torch.nn.functional.normalize
    table = (unit(query.features.double(), dim=1) @ unit(gallery.features.double(), dim=1).T).round(decimals=9)
    average, precise, recall = [], [], {k: [] for k in ks}
    for q, row in enumerate(table.tolist()):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        ranked = [gallery.labels[i] == query.labels[q] for i in order if not (leave_self_out and i == q)]
        total = sum(map(int, ranked))
        if not total:
            continue
        precision = [sum(map(int, ranked[: r + 1])) / (r + 1) for r in range(len(ranked))]
        average.append(sum(p for p, hit in zip(precision, ranked, strict=True) if hit) / total)
        precise.append(precision[total - 1])
        for k in ks:
            recall[k].append(any(ranked[:k]))
    mean = [sum(values) / len(values) for values in (average, precise)]
    return mean[0], {k: sum(hits) / len(hits) for k, hits in recall.items()}, mean[1], len(average)


def check(result, expected):
    mean, recall, precise, count = expected
    assert result.mean_average_precision == pytest.approx(mean, abs=1e-9)
    assert result.recall == pytest.approx(recall, abs=1e-9)
    assert result.r_precision == pytest.approx(precise, abs=1e-9)
    assert result.queries == count


@pytest.mark.parametrize("pairs", [8_000_000, 200])
def test_every_score_is_brute_force(pairs, monkeypatch):
    monkeypatch.setattr(sys.modules["selfsup.eval.protocols.retrieval"], "PAIRS_AT_ONCE", pairs)
    gallery, query = clusters(70, 0), clusters(40, 1, labels=(3, 7, 50))  # nobody in the gallery is of class 50
    result = retrieval(query, gallery, (1, 2, 5, 500))
    check(result, by_loop(query, gallery, (1, 2, 5, 500)))
    assert result.without_match == int((query.labels == 50).sum()) > 0
    assert 0 < result.recall[1] < result.recall[2] < result.recall[500] == 1


@pytest.mark.parametrize("pairs", [8_000_000, 200])
def test_one_set_is_ranked_without_the_query_itself(pairs, monkeypatch):
    monkeypatch.setattr(sys.modules["selfsup.eval.protocols.retrieval"], "PAIRS_AT_ONCE", pairs)
    data = clusters(41, 0)
    expected = by_loop(data, data, (1, 3), leave_self_out=True)
    check(retrieval(data, ks=(1, 3)), expected)
    check(retrieval(data, data, ks=(1, 3)), expected)
    lonely = set_of([[1, 0], [1, 0.1], [0, 1]], [5, 5, 6])
    result = retrieval(lonely)
    assert (result.queries, result.without_match, result.mean_average_precision) == (2, 1, 1.0)


def test_a_ranking_by_hand():
    gallery = set_of([[math.cos(a), math.sin(a)] for a in (0.1, 0.2, 0.3, 0.4, 0.5)], [8, 1, 8, 1, 1])
    result = retrieval(set_of([[1, 0]], [1]), gallery, (1, 2))
    assert result.mean_average_precision == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert result.recall == {1: 0, 2: 1}
    assert result.r_precision == pytest.approx(1 / 3)


def test_equal_images_are_ranked_by_position():
    first, second = (set_of([[2, 0]] * 3, labels) for labels in ([1, 0, 0], [0, 0, 1]))
    query = set_of([[1, 0]], [1])
    assert retrieval(query, first).mean_average_precision == 1
    assert retrieval(query, second).mean_average_precision == pytest.approx(1 / 3)


def test_files_are_the_sets_they_hold(tmp_path):
    gallery, query = clusters(30, 0), clusters(20, 1)
    gallery.save(tmp_path / "gallery.pt")
    query.save(tmp_path / "query.pt")
    assert retrieval(tmp_path / "query.pt", str(tmp_path / "gallery.pt")) == retrieval(query, gallery)
    assert retrieval(tmp_path / "query.pt") == retrieval(query)
    assert retrieval(tmp_path / "query.pt", str(tmp_path / "query.pt")) == retrieval(query)
    with pytest.raises(UserError, match="cannot be read"):
        retrieval(tmp_path / "absent.pt", gallery)


@pytest.mark.parametrize(
    ("query", "gallery", "settings", "message"),
    [
        (set_of([[1, 0]], None), set_of([[1, 0]], [0]), {}, "query features have no label"),
        (set_of([[1, 0]], [0]), set_of([[1, 0]], [-1]), {}, "gallery features have no label for 1 of 1"),
        (set_of([[1, 0]], [0]), set_of([[1, 0, 0]], [0]), {}, "dimensions"),
        (set_of([[math.nan, 0]], [0]), set_of([[1, 0]], [0]), {}, "query features are NaN"),
        (set_of([[1, 0]], [0]), set_of([[1, 0]], [1]), {}, "No query has an image of its class"),
        (set_of([[1, 0]], [0]), set_of([[1, 0]], [0]), {"ks": (0,)}, "eval.retrieval.k"),
    ],
)
def test_what_a_person_can_change(query, gallery, settings, message):
    with pytest.raises(UserError, match=message):
        retrieval(query, gallery, **settings)
