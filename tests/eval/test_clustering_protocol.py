import itertools
import math

import pytest
import torch

from selfsup.errors import UserError
from selfsup.eval import FeatureSet
from selfsup.eval.protocols.clustering import agreement, clustering, spherical_kmeans


def set_of(features, labels):
    features = torch.as_tensor(features, dtype=torch.float32)
    return FeatureSet(features, None if labels is None else torch.as_tensor(labels), torch.arange(len(features)))


def groups(count, seed, labels=(3, 7, 100), spread=0.02):
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, len(labels), (count,), generator=generator)
    features = torch.eye(len(labels))[which] + spread * torch.randn(count, len(labels), generator=generator)
    lengths = 0.1 + 10 * torch.rand(count, 1, generator=generator)
    return set_of(lengths * features, torch.tensor(labels)[which])


def entropy(counts, total):
    return -sum(c / total * math.log(c / total) for c in counts if c)


def scores_by_counting(assignment, labels):
    """NMI from entropies, ARI from all pairs, accuracy from all one-to-one assignments."""
    a, y = assignment.tolist(), labels.tolist()
    n, clusters, classes = len(a), sorted(set(a)), sorted(set(y))
    joint = [sum(i == c and j == d for i, j in zip(a, y, strict=True)) for c in clusters for d in classes]
    ha, hy = (entropy([values.count(v) for v in set(values)], n) for values in (a, y))
    nmi = (ha + hy - entropy(joint, n)) / ((ha + hy) / 2)
    pairs = list(itertools.combinations(range(n), 2))
    same_a, same_y = ([v[i] == v[j] for i, j in pairs] for v in (a, y))
    both, in_a, in_y = sum(p and q for p, q in zip(same_a, same_y, strict=True)), sum(same_a), sum(same_y)
    chance = in_a * in_y / len(pairs)
    ari = (both - chance) / ((in_a + in_y) / 2 - chance)
    size = max(len(clusters), len(classes))
    best = 0
    for order in itertools.permutations([*classes, *[None] * (size - len(classes))], len(clusters)):
        named = dict(zip(clusters, order, strict=True))
        best = max(best, sum(named[i] == j for i, j in zip(a, y, strict=True)))
    return nmi, ari, best / n


@pytest.mark.parametrize(("clusters", "labels"), [(3, (3, 7, 100)), (5, (3, 7)), (2, (1, 4, 9, 20))])
def test_agreement_is_counted(clusters, labels):
    generator = torch.Generator().manual_seed(clusters)
    truth = torch.tensor(labels)[torch.randint(0, len(labels), (40,), generator=generator)]
    noise = torch.randint(0, clusters, (40,), generator=generator)
    assignment = torch.where(torch.rand(40, generator=generator) < 0.5, truth % clusters, noise)
    result = agreement(assignment, truth, clusters)
    assert (result.nmi, result.ari, result.accuracy) == pytest.approx(scores_by_counting(assignment, truth), abs=1e-9)
    assert 0.2 < result.accuracy < 1


def test_empty_clusters_count_nothing():
    truth = torch.tensor([5, 5, 9, 9])
    assert agreement(torch.tensor([6, 6, 2, 2]), truth, 8).accuracy == 1
    assert agreement(torch.tensor([6, 6, 6, 6]), truth, 8).accuracy == 0.5


def test_groups_that_are_there_are_found():
    train, test = groups(120, 0), groups(50, 1)
    result = clustering(train, test, progress=False)
    assert (result.nmi, result.ari, result.accuracy) == pytest.approx((1, 1, 1))
    assert result.clusters == 3
    for label in (3, 7, 100):
        assert len(result.assignment[test.labels == label].unique()) == 1
    unlabelled = set_of(train.features, None)
    assert clustering(unlabelled, test, progress=False).accuracy == 1
    assert clustering(train, test, 2, progress=False).accuracy < 1
    # images without a label are no class
    some = set_of(train.features, torch.where(train.labels == 3, -1, train.labels))
    assert clustering(some, test, progress=False).clusters == 2


def test_the_fit_sees_only_the_training_features():
    train = groups(120, 0)
    centroids = spherical_kmeans(train.features, 3, progress=False)
    assert centroids.norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    expected = torch.stack(
        [torch.nn.functional.normalize(train.features[train.labels == c], dim=1).mean(0) for c in (3, 7, 100)]
    )
    closest = (torch.nn.functional.normalize(expected, dim=1) @ centroids.T).max(1)
    assert closest.values.tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert sorted(closest.indices.tolist()) == [0, 1, 2]


def test_the_seed_decides_the_start():
    features = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    first, again, other = (spherical_kmeans(features, 12, seed=seed, progress=False) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_features_that_are_all_equal_still_give_an_answer():
    result = clustering(set_of(torch.ones(30, 4), None), set_of(torch.ones(10, 4), [0, 1] * 5), progress=False)
    assert result.accuracy == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("train", "test", "clusters", "message"),
    [
        (set_of([[1, 0]], [0]), set_of([[1, 0]], None), None, "test features have no label"),
        (set_of([[1, 0]], [0]), set_of([[1, 0]], [0]), 2, "eval.clustering.clusters: 2 clusters cannot be made of 1"),
        (set_of([[1, 0]], [0]), set_of([[1, 0]], [0]), 0, "eval.clustering.clusters"),
        (set_of([[1, 0, 0]], [0]), set_of([[1, 0]], [0]), None, "dimensions"),
        (set_of([[math.inf, 0]], [0]), set_of([[1, 0]], [0]), None, "train features are NaN or infinite"),
    ],
)
def test_what_a_person_can_mend(train, test, clusters, message):
    with pytest.raises(UserError, match=message):
        clustering(train, test, clusters, progress=False)
