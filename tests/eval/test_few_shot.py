import math
import sys

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from selfsup.errors import UserError
from selfsup.eval import FeatureSet, few_shot
from selfsup.eval.protocols.few_shot import draw_episodes

LABELS = (1, 4, 9, 10, 30, 31)


def part(per_class, seed, spread, labels=LABELS, width=12):
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.eye(width)[: len(labels)]
    which = torch.arange(len(labels)).repeat(per_class)
    features = centres[which] + spread * torch.randn(len(which), width, generator=generator)
    return FeatureSet(features, torch.tensor(labels)[which], torch.arange(len(which)))


@pytest.mark.parametrize("classifier", ["centroid", "logistic"])
@pytest.mark.parametrize("shots", [1, 5])
def test_separable_features_give_all_and_no_interval(classifier, shots):
    result = few_shot(
        part(10, 0, 0.01), part(20, 1, 0.01), shots=shots, episodes=30, classifier=classifier, progress=False
    )
    assert result.accuracy == 1
    assert result.interval == 0


@pytest.mark.parametrize("classifier", ["centroid", "logistic"])
def test_features_without_a_class_are_right_by_chance(classifier):
    support, query = part(10, 0, 1.0), part(20, 1, 1.0)
    noise = [
        FeatureSet(torch.randn(p.features.shape, generator=torch.Generator().manual_seed(i)), p.labels, p.index)
        for i, p in enumerate((support, query))
    ]
    result = few_shot(*noise, ways=4, episodes=150, classifier=classifier, progress=False)
    assert abs(result.accuracy - 0.25) < 0.05


@pytest.mark.parametrize("classifier", ["centroid", "logistic"])
def test_each_episode_is_what_scikit_learn_makes_of_it(classifier, monkeypatch):
    # the last block is smaller; the package's attribute of this name is the function
    monkeypatch.setattr(sys.modules["selfsup.eval.protocols.few_shot"], "EPISODES_AT_ONCE", 3)
    support, query = part(8, 0, 3.0), part(9, 1, 3.0)
    result = few_shot(
        support, query, ways=3, shots=4, queries=7, episodes=8, classifier=classifier, seed=5, progress=False
    )
    mean = support.features.mean(0)
    rows = draw_episodes(support.labels, query.labels, 3, 4, 7, 8, 5)
    for known, asked, accuracy in zip(*rows, result.accuracies, strict=True):
        x, q = (
            torch.nn.functional.normalize(p.features[r] - mean, dim=1).numpy()
            for p, r in ((support, known), (query, asked))
        )
        model = NearestCentroid() if classifier == "centroid" else LogisticRegression(C=1.0, tol=1e-8, max_iter=2000)
        model.fit(x, support.labels[known].numpy())
        assert accuracy == pytest.approx(model.score(q, query.labels[asked].numpy()))
    assert 0.4 < result.accuracy < 1
    spread = math.sqrt(sum((a - result.accuracy) ** 2 for a in result.accuracies.tolist()) / 7)
    assert result.interval == pytest.approx(1.96 * spread / math.sqrt(8))


def test_an_episode_draws_without_replacement_and_from_its_part():
    support, query = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), torch.tensor([2, 1, 0, 1, 0, 2, 0])
    known, asked = draw_episodes(support, query, 2, 2, 2, 50, seed=0)
    assert known.shape == asked.shape == (50, 4)
    seen = set()
    for rows, others in zip(known, asked, strict=True):
        assert len(set(rows.tolist())) == len(set(others.tolist())) == 4
        classes = support[rows].view(2, 2)
        assert (classes[:, 0] == classes[:, 1]).all()
        assert classes[0, 0] != classes[1, 0]
        assert torch.equal(query[others], support[rows])
        seen |= set(classes.flatten().tolist())
    assert seen == {0, 1, 2}
    more = draw_episodes(support, query, 2, 1, 2, 50, seed=0)
    assert torch.equal(more[1], asked), "the shots do not change the queries"
    assert not torch.equal(draw_episodes(support, query, 2, 2, 2, 50, seed=1)[0], known)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 7}, r"few_shot.ways is 7 and 6 classes"),
        ({"shots": 11}, "0 classes have 11"),
        ({"queries": 21}, "lower eval.few_shot.ways"),
        ({"ways": 1}, "at least 2"),
        ({"classifier": "tree"}, "no classifier 'tree'"),
    ],
)
def test_what_a_person_can_put_right(settings, message):
    with pytest.raises(UserError, match=message):
        few_shot(part(10, 0, 1.0), part(20, 1, 1.0), **settings, progress=False)
